"""What ``mode=explain`` shows, in sentences; each word from a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from fedcats.report import view
from fedcats.report.explain_figures import kinds
from fedcats.report.tables import number
from fedcats.report.view import interval, percent, points
from fedcats.results import Results
from fedcats.results.explained import Explained, Orders
from fedcats.results.names import client_of, is_submodel


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, what its figures show, their names."""

    title: str
    text: str
    figures: tuple[str, ...]


def sections(results: Results) -> list[Section]:
    """All that ``mode=explain`` found; empty of another run."""
    if "explained" not in results:
        return []
    found = results["explained"]
    parts: list[tuple[str, Callable[[Results, Explained], str], tuple[str, ...]]] = [
        ("The order of the merge", order, ("orders",)),
        ("Between the models", between, ("barriers", "lines")),
        ("Where the clients disagree", directions, ("updates",)),
        ("Client by client", matrix, ("clients",)),
        ("Who helps", helps, ("without",)),
        ("Without the threshold of 1/2", thresholds, ("curves", "reliability")),
    ]
    return [
        Section(title, text, names) for title, say, names in parts if (text := say(results, found))
    ]


def order(results: Results, found: Explained) -> str:
    """How much the order matters, for each beta."""
    return " ".join(_of_beta(results, one) for one in found["orders"])


def _of_beta(results: Results, one: Orders) -> str:
    count = len(one["accuracies"])
    which = f"all {count}" if one["every"] else f"{count} random"
    start = f"Polyak β = {one['beta']:g} over {which} orders of the clients"
    if count == 1:
        return f"There is one order of the clients: {percent(one['reported'])} accuracy."
    mean = results["config"]["strategy"].get("start", "first") == "first"
    words = ", which the merges are on average," if mean else ""
    plain = f"the plain mean{words} has {percent(one['plain_mean'])}"
    if one["best"] == one["worst"]:
        return f"{start} always has {percent(one['mean'])} accuracy; {plain}."
    text = (
        f"{start} has {percent(one['worst'])} to {percent(one['best'])} accuracy, mean "
        f"{percent(one['mean'])}, SD {100 * one['sd']:.2f} points; {plain}. The run's own order, "
        f"{percent(one['reported'])}, is better than {percent(one['below'], 0)} of them "
        "(equal ones count half)."
    )
    shares = one["explained"]
    known = [
        f"{who} with {percent(share, 0)}"
        for who, share in (("the last two", shares["last_two"]), ("three", shares["last_three"]))
        if share is not None
    ]
    if shares["last"] is None:
        return text
    last = f"Who is merged last goes with {percent(shares['last'], 0)} of the variance"
    return f"{text} {', '.join([last, *known])}."


def between(results: Results, found: Explained) -> str:
    """The barriers, by what the lines join."""
    said = []
    for words, group in kinds(results, found["lines"]).items():
        top = max(group, key=lambda line: line["barrier"])
        below = sum(min(one["loss"][1:-1]) < min(one["loss"][0], one["loss"][-1]) for one in group)
        drop = max(one["drop"] for one in group)
        if top["barrier"] == 0:
            lines = "line has no" if len(group) == 1 else f"{len(group)} lines have no"
            where = "there" if len(group) == 1 else f"on {below}"
            lower = f"; {where} the loss is somewhere lower than at both ends" if below else ""
            said.append(f"Between {words} the {lines} barrier{lower}.")
            continue
        if len(group) == 1:
            lower = "lower" if below else "nowhere lower"
            said.append(
                f"Between {words} the barrier is {top['barrier']:.3f} nats, and on the way the "
                f"loss is {lower} than at both ends."
            )
            continue
        said.append(
            f"Between {words} the largest barrier of {len(group)} lines is {top['barrier']:.3f} "
            f"nats ({_ends(results, top['first'], top['second'])}), the median "
            f"{median(one['barrier'] for one in group):.3f}; accuracy falls at most "
            f"{100 * drop:.1f} points below the line, and on {below} of the lines the loss is "
            "somewhere lower than at both ends."
        )
    return " ".join(said)


def _ends(results: Results, *names: str) -> str:
    return " and ".join(view.title(results, name) for name in names)


def directions(results: Results, found: Explained) -> str:
    """In which layers the clients agree."""
    pairs = [v for i, row in enumerate(found["cosines"]) for v in row[i + 1 :]]
    known = [one for one in found["layers"] if one["cosine"] is not None]
    if not pairs or not known:
        return ""
    alike = max(known, key=lambda one: one["cosine"] or 0)
    apart = min(known, key=lambda one: one["cosine"] or 0)
    moved = max(found["layers"], key=lambda one: one["relative"] or 0)
    text = (
        f"Two clients' updates have a cosine of {fmean(pairs):.2f} on average ({min(pairs):.2f} to "
        f"{max(pairs):.2f})"
    )
    if alike["cosine"] != apart["cosine"]:
        text += (
            f"; by layer the most alike are those of {alike['layer']} ({alike['cosine']:.2f}), the "
            f"least those of {apart['layer']} ({apart['cosine']:.2f})"
        )
    return (
        f"{text}. Against the weights that they start from, {moved['layer']} moves most, by "
        f"{percent(moved['relative'] or 0)} of their length."
    )


def matrix(results: Results, found: Explained) -> str:
    """A sub-model on its own photos, on others', and the merged models."""
    said = []
    for key, what in (("trained", "trained on"), ("held_out", "held out")):
        mine, others, merged = [], [], dict[str, list[float]]()
        for one in found["own"]:
            row = one["trained"] if key == "trained" else one["held_out"]
            name = one["model"]
            for client, value in enumerate(row):
                if value is None:
                    continue
                if not is_submodel(name):
                    merged.setdefault(view.title(results, name), []).append(value)
                elif client_of(name) == client:
                    mine.append(value)
                else:
                    others.append(value)
        if not mine:
            continue
        rest = f", {percent(fmean(others))} on other clients'" if others else ""
        each = "".join(f", {name} {percent(fmean(values))}" for name, values in merged.items())
        said.append(
            f"On the {view.things(results)} {what} at its own client a sub-model has "
            f"{percent(fmean(mine))} accuracy on average{rest}{each}."
        )
    return " ".join(said)


def helps(results: Results, found: Explained) -> str:
    """Who helps and who hurts, and what the interval says of it."""
    said = []
    for rule, rows in found["without"].items():
        top = max(rows, key=lambda one: one["difference"])
        low = min(rows, key=lambda one: one["difference"])
        if top["difference"] == low["difference"]:
            title, by = view.title(results, rule), points(top["difference"])
            said.append(f"In {title} every client adds as much as every other, {by} points.")
            continue
        clear = [one for one in rows if one["low"] > 0 or one["high"] < 0]
        helping = sum(one["difference"] > 0 for one in clear)
        said.append(
            f"In {view.title(results, rule)} no client adds more than client {top['client']}, "
            f"{points(top['difference'])} points of accuracy ({interval(top)}), and none less than "
            f"client {low['client']}, {points(low['difference'])} ({interval(low)}); of "
            f"{len(rows)} intervals {len(clear) or 'none'} "
            f"{'leaves' if len(clear) < 2 else 'leave'} out 0"
            + (f", {helping} of them above it." if clear else ".")
        )
    if game := found["shapley"]:
        ranked = sorted(
            zip(game["values"], game["low"], game["high"], game["clients"], strict=True)
        )
        how = "exact" if game["exact"] else f"from {game['coalitions']} coalitions"
        worth = " and ".join(
            f"client {one[3]} is worth {word}, {points(one[0])}"
            + ("" if game["exact"] else f" ({points(one[1])} to {points(one[2])})")
            for one, word in [(ranked[-1], "most"), (ranked[0], "least")]
        )
        if ranked[-1][0] == ranked[0][0]:
            worth = f"each client is worth {points(ranked[0][0])}"
        said.append(
            f"Of the {points(game['everybody'] - game['nobody'])} points that the plain mean of "
            f"all has over the start, by Shapley values ({how}) {worth}."
        )
    return " ".join(said)


def thresholds(results: Results, found: Explained) -> str:
    """Whether the ranking differs from the centralized model's, or the threshold."""
    said = []
    for name in view.merged(results):
        one = found["thresholds"].get(name)
        if one is None or not one["against"]:
            continue
        area, error = one["against"]["roc_auc"], one["against"]["ece"]
        if area["difference"] is None or area["low"] is None or area["high"] is None:
            continue
        if area["low"] <= 0 <= area["high"]:
            ranks = "is not shown to rank the {} better or worse"
        else:
            ranks = f"ranks the {{}} {'better' if area['low'] > 0 else 'worse'}"
        text = (
            f"{view.title(results, name)} {ranks.format(view.things(results))} than the "
            f"centralized model: ROC AUC {number(one['measures']['roc_auc'])}, "
            f"{points(area['difference'], 2)} points ({interval(area)})"
        )
        if error["difference"] is not None:
            text += (
                f"; its calibration error (ECE) is {number(one['measures']['ece'])}, "
                f"{points(error['difference'])} points ({interval(error)})"
            )
        if own := one["at_own"]:
            text += (
                "; at thresholds of their own, chosen on held-out images, it gets "
                f"{points(own['difference'])} points of accuracy ({interval(own)})"
            )
        if shift := _shift(results, name):
            text += f"; {shift}"
        said.append(f"{text}.")
    return " ".join(said)


def _shift(results: Results, name: str) -> str:
    """Where precision went one way and recall the other: the mark of a moved threshold."""
    both = results["comparison"].get(name)
    if both is None:
        return ""
    precision, recall = both["precision"]["difference"], both["recall"]["difference"]
    if precision * recall >= 0:
        return ""
    one, other = ("lower", "higher") if precision < 0 else ("higher", "lower")
    return (
        f"its precision is {one} by {abs(100 * precision):.1f} points and its recall {other} by "
        f"{abs(100 * recall):.1f}, as with a threshold that has moved"
    )
