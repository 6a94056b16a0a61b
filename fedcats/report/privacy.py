"""What is said of privacy: only what was measured, each word from a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedcats.report import view
from fedcats.report.tables import EMPTY, Table
from fedcats.results import Results
from fedcats.results.names import is_submodel
from fedcats.results.privacy import Estimate, Membership

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTACKS = {"loss": "loss", "lira": "LiRA / FedMIA", "rmia": "RMIA"}
CLIENTS = "all clients' updates"
CURVES = (
    "Share of the photos that a model was trained on which an attack finds, over the share of the "
    "others that it takes for them, both on log axes; dotted: guessing. From one false alarm on."
)
_GUESSING = 0.5


def sentences(results: Results) -> list[str]:
    """What an attack finds out from an update, from the merged model, and what merging hides."""
    if (found := results.get("privacy")) is None:
        return []
    what = view.things(results)
    said = [_found(*one, what) for one in _rows(results) if not one[0].startswith("sub-model ")]
    for rule, hidden in found["hidden"].items():
        if not hidden:
            continue
        attack = "lira" if "lira" in hidden else "loss"
        by, title = hidden[attack], view.title(results, rule)
        if by["low"] > 0:
            word = "hides part of that"
        elif by["high"] < 0:
            word = "hides nothing of that, but adds to it"
        else:
            word = f"hides nothing that these {what} could show"
        said.append(
            f"Merging by {title} {word}: by {ATTACKS[attack]} the area under the curve against the "
            f"updates, minus that against the merged model, is {_signed(by)}, on the same {what}."
        )
    if any(not one["shadows"] for one in found["models"].values()):
        said.append(
            "With so few clients too few models did not train on a "
            f"{what.removesuffix('s')}: some were attacked by the loss only; better attacks exist."
        )
    return said


def membership(results: Results) -> Table | None:
    """Each attack on each model; of many clients' updates only all together."""
    rows = []
    for title, one in _rows(results):
        for attack, scores in one["attacks"].items():
            rates = (scores["tpr"][rate] for rate in ("0.01", "0.001"))
            rows.append(
                (
                    title,
                    ATTACKS[attack],
                    _ends(scores["auc"]),
                    *("not resolvable" if rate is None else _shares(rate) for rate in rates),
                    f"{one['members']:,} : {one['nonmembers']:,}",
                )
            )
    hidden = results["privacy"]["hidden"] if "privacy" in results else {}
    for rule, by_attack in hidden.items():
        for attack, by in by_attack.items():
            hides = f"what {view.title(results, rule)} hides"
            rows.append((hides, ATTACKS[attack], _signed(by), EMPTY, EMPTY, EMPTY))
    if not rows:
        return None
    what = view.things(results)
    shadows = {one["shadows"] for _, one in _rows(results) if one["shadows"]}
    models = " or ".join(map(str, sorted(shadows)))
    note = (
        f"AUC: area under the ROC curve, 0.5 is guessing; then the share of the training {what} "
        f"that is found at 1% and 0.1% false alarms. 95% intervals from {what} drawn again. "
        "Last: members to non-members, for all updates together pairs of update and "
        f"{what.removesuffix('s')}. "
        "What merging hides: the AUC against the clients' updates minus that against the merged "
        f"model, in both with the {what} that nobody trained on as non-members."
    )
    if models:
        note += f" LiRA and RMIA know {models} models that did not train on the {what[:-1]}."
    if any(one["left_out"] for _, one in _rows(results)):
        note += f" Left out: {what} for which there are fewer, as several clients have them."
    header = ("attacked", "by", "AUC", "TPR at 1%", "TPR at 0.1%", what)
    return Table("Which photos it was trained on", header, rows, text=(0, 1), note=note)


def who_sees_what(results: Results) -> Table | None:
    """Server, site and everybody else: what each gets, and what an attack makes of it."""
    found = results.get("privacy")
    merged = next(iter(view.merged(results).items()), None)
    if found is None or merged is None or "clients" not in found:
        return None
    name, model = merged
    count = len(view.submodels(results))
    up, down = (model["bytes"][way] / 1e6 for way in ("up", "down"))
    from_merged = _strongest(found["models"][name]) if name in found["models"] else EMPTY
    title = view.title(results, name)
    seen = ("server", f"{count} updates, {up:,.1f} MB a round", _strongest(found["clients"]))
    if results["config"]["strategy"]["secure"]:
        seen = ("server", f"the sum of the updates (secure sum), {up:,.1f} MB a round", from_merged)
    rows: list[tuple[str, ...]] = [
        seen,
        ("site", f"the model of each round, {down / max(count, 1):,.1f} MB", from_merged),
        ("everybody with the result", f"{title}, the last round's", from_merged),
    ]
    note = (
        "AUC of the strongest of the attacks above, which one finds out only afterwards. It is no "
        "upper bound: a stronger attack may find more"
        + (", as far as epsilon lets it." if results.get("dp", {}).get("epsilon") else ".")
    )
    return Table("Who sees what", ("who", "sees", "AUC"), rows, text=(0, 1, 2), note=note)


def curves(results: Results) -> Figure | None:
    """ROC curves of each attack on all updates, the merged and the centralized models."""
    from fedcats.report.drawing import INK, MUTED, legend_beside, look

    found = results.get("privacy")
    if found is None:
        return None
    shown = [(CLIENTS, INK, found["clients"])] if "clients" in found else []
    shown += [
        (view.title(results, name), look(results, name)[0], one)
        for name, one in found["models"].items()
        if not is_submodel(name)
    ]
    attacks = [name for name in ATTACKS if any(name in one["attacks"] for *_, one in shown)]
    if not attacks:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.6 + 3.2 * len(attacks), 4.1), layout="constrained")
    axes = figure.subplots(1, len(attacks), sharex=True, sharey=True, squeeze=False)[0]
    for ax, attack in zip(axes, attacks, strict=True):
        ax.set_title(ATTACKS[attack])
        least = 1.0
        for title, colour, one in shown:
            if attack in one["attacks"]:
                roc = one["attacks"][attack]["roc"]
                points = [(x, y) for x, y in roc if y > 0]
                ax.plot(*zip(*points, strict=True), color=colour, label=title, linewidth=1.5)
                least = min(least, roc[0][0])
        ax.plot([least, 1], [least, 1], ":", color=MUTED, linewidth=1)
        ax.set_xscale("log")
        ax.set_yscale("log")
        for axis in (ax.xaxis, ax.yaxis):  # the logarithms' own labels are formulas
            axis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        ax.set_xlabel("false positives")
    axes[0].set_ylabel("true positives")
    legend_beside(figure, *axes[0].get_legend_handles_labels())
    return figure


def _rows(results: Results) -> Iterator[tuple[str, Membership]]:
    """What is attacked, with its title: all updates, each of a few, the others."""
    from fedcats.report.drawing import MANY

    found = results.get("privacy")
    if found is None:
        return
    if "clients" in found:
        yield CLIENTS, found["clients"]
    single = [name for name in found["models"] if is_submodel(name)]
    for name, one in found["models"].items():
        if name not in single:
            yield view.title(results, name), one
    if len(single) <= MANY:
        for name in single:
            yield view.title(results, name), found["models"][name]


def _found(title: str, one: Membership, what: str) -> str:
    attack = strongest(one)
    scores = one["attacks"][attack]
    auc, rate = scores["auc"], scores["tpr"]["0.01"]
    if auc["low"] > _GUESSING:
        word = "better than guessing"
    elif auc["high"] < _GUESSING:
        word = "worse than guessing"
    else:
        word = f"no better than guessing, as far as these {what} can show"
    text = f"{title[0].upper()}{title[1:]}: the strongest attack ({ATTACKS[attack]}) is {word}; it "
    text += f"tells training {what} from others with an area under the curve of {_ends(auc)}"
    if rate is not None:
        text += f", and finds {_shares(rate)} of them at 1% false alarms"
    return f"{text}."


def strongest(one: Membership) -> str:
    """Return the attack with the largest area under the curve."""
    return max(one["attacks"], key=lambda name: one["attacks"][name]["auc"]["value"])


def _strongest(one: Membership) -> str:
    attack = strongest(one)
    return f"{_ends(one['attacks'][attack]['auc'])}, {ATTACKS[attack]}"


def _ends(one: Estimate) -> str:
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def _signed(one: Estimate) -> str:
    text = f"{one['value']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})"
    return text.replace("-", view.MINUS)


def _shares(one: Estimate) -> str:
    return f"{100 * one['value']:.1f}% ({100 * one['low']:.1f} to {100 * one['high']:.1f})"
