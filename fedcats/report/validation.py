"""What the tests after each epoch, on held-out photos, say of how long to train."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from fedcats.report import view
from fedcats.results import EpochRecord, Results
from fedcats.results.names import submodel

NOTE = (
    "Held out: mean loss on held-out {things} after the last epoch, and after which epoch it was "
    "lowest; the other is the mean while the epoch went on, with flips and dropout."
)


def on_held_out(epoch: EpochRecord) -> float | None:
    """The loss on held-out photos after an epoch; None where there is none."""
    found = epoch.get("validation")
    return found["loss"] if found else None


def lowest(epochs: Sequence[EpochRecord]) -> int | None:
    """After which epoch, from 1, the loss on held-out photos was lowest, the last of equal ones.

    None where there is none.
    """
    losses = [(on_held_out(one), -i) for i, one in enumerate(epochs, 1)]
    found = [(loss, i) for loss, i in losses if loss is not None]
    return -min(found)[1] if found else None


def sentences(results: Results) -> list[str]:
    """Say after which epoch models are best on held-out photos; nothing where none was tested."""
    things, said = view.things(results), []
    base = view.centralized(results)
    if base and "training" in base and (best := lowest(base["training"]["epochs"])):
        who = f"the centralized model{view.of_seed(results)}"
        said.append(_of_one(who, things, base["training"]["epochs"], best))
    own = {
        client: model["training"]["epochs"]
        for client, model in view.submodels(results).items()
        if "training" in model
    }
    tested = {client: best for client, epochs in own.items() if (best := lowest(epochs))}
    if not tested:
        return said
    first = " in the first round" * (len(results.get("rounds") or ()) > 1)
    if len(tested) == 1:
        ((client, best),) = tested.items()
        who = view.title(results, submodel(client)) + first
        said.append(_of_one(who, f"{things} of its own", own[client], best))
        return said
    all_epochs = max(len(own[client]) for client in tested)
    early = [best for client, best in tested.items() if best < len(own[client])]
    where = f"on its client's held-out {things}{first}"
    if all_epochs == 1:
        losses = [loss for one in tested if (loss := on_held_out(own[one][0])) is not None]
        text = f"Each of {len(tested)} sub-models was tested once {where}: median loss "
        text += f"{median(losses):.4f}."
    elif early:
        text = (
            f"Of {len(tested)} sub-models, each {where}, {len(early)} had the lowest loss before "
            f"the last of {all_epochs} epochs (the median of these after epoch {median(early):g})."
        )
    else:
        text = (
            f"Each of {len(tested)} sub-models has its lowest loss {where} after the last of "
            f"{all_epochs} epochs: none of these was too many."
        )
    if rest := len(own) - len(tested):
        text += f" {rest} more had no held-out {things}, or no finite answers there."
    return [*said, text]


def _of_one(who: str, things: str, epochs: Sequence[EpochRecord], best: int) -> str:
    """Of one model, of which there is a best epoch."""
    least, last = on_held_out(epochs[best - 1]) or 0.0, on_held_out(epochs[-1])
    text = f"On held-out {things} the loss of {who} is "
    if len(epochs) == 1:
        return f"{text}{least:.4f} after its only epoch ({epochs[0]['loss']:.4f} in training)."
    if best == len(epochs):
        few = "no epoch was too many"
        return f"{text}lowest after the last of {best} epochs, {least:.4f}: {few}."
    text += f"lowest after epoch {best} of {len(epochs)}, {least:.4f}"
    if last is None:
        return f"{text}, and not finite after the last."
    before, after = epochs[best - 1]["loss"], epochs[-1]["loss"]
    text += f", and {last - least:.2g} more after the last"
    if after < before:
        return (
            f"{text}, while the training loss fell from {before:.4f} to {after:.4f}: the later "
            "epochs overfit."
        )
    return f"{text}; the training loss did not fall meanwhile ({before:.4f}, {after:.4f})."
