"""What a report says of models without the threshold of 1/2 that an accuracy has."""

from __future__ import annotations

from fedcats.report import view
from fedcats.report.tables import EMPTY, Table, number
from fedcats.report.view import interval, points
from fedcats.results import OverSeeds, Results, Unbounded

_NAMES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "brier": "Brier",
    "ece": "calibration error",
}


def table(results: Results) -> Table | None:
    """Each model's measures, and each merged model's less the centralized one's."""
    models = view.of_all(results)
    if not all("thresholdless" in model for model in models.values()):
        return None  # of an earlier version
    chosen = any("threshold" in model for model in models.values())
    rows = []
    for name, model in models.items():
        cells = [number(model["thresholdless"][key]) for key in _NAMES]
        if own := model.get("threshold"):
            cells += [f"{own['accuracy']:.4f} at {own['value']:.3g}"]
        rows.append((view.title(results, name), *cells))
    for name, one in (results.get("comparison") or {}).items():
        without, at = one.get("thresholdless", {}), one.get("at_thresholds")
        cells = [_difference(without[key]) for key in _NAMES if key in without]
        if at:
            cells += [f"{points(at['difference'])} ({interval(at)})"]
        if cells:
            rows.append((f"{view.title(results, name)} minus centralized", *cells))
    header = ("model", *_NAMES.values(), *(("accuracy at own threshold",) if chosen else ()))
    note = (
        "Differences with 95% intervals. Of log loss, Brier score and calibration error less is "
        "better."
    )
    if chosen:
        note += (
            " A model's own threshold is the best one on the held-out training images; the "
            "difference there is in percentage points."
        )
    return Table(f"Without the threshold 1/2{view.of_seed(results)}", header, rows, note=note)


def sentences(results: Results, name: str) -> list[str]:
    """Say it when the accuracy and the area under the ROC curve differ in sign."""
    if found := view.replication(results).get(name):
        difference, area = found["difference"], found["measures"]["roc_auc"]
        return [other_way(area)] if differ(difference, area["difference"]) else []
    one = results.get("comparison", {}).get(name)
    if one is None or "thresholdless" not in one:
        return []
    area_of_one = one["thresholdless"]["roc_auc"]
    if not differ(one["accuracy"]["difference"], area_of_one["difference"]):
        return []
    said = [other_way(area_of_one)]
    if at := one.get("at_thresholds"):
        held = results["models"][name]["validation"]["n"]
        said.append(
            f"With thresholds chosen on {held:,} held-out {view.things(results)} the accuracies "
            f"differ by {points(at['difference'])} points ({interval(at)})."
        )
    return said


def other_way(area: Unbounded | OverSeeds, what: str = "") -> str:
    """Say it of the area; ``what`` comes first, such as " with fewer steps"."""
    return (
        f"The area under the ROC curve, which has no threshold, differs{what} the other way, by "
        f"{points(area['difference'] or 0, 2)} points ({interval(area)})."
    )


def differ(first: float | None, second: float | None) -> bool:
    """Whether two differences are of different sign."""
    return bool(first and second) and (first or 0) * (second or 0) < 0


def _difference(one: Unbounded) -> str:
    if one["difference"] is None:
        return EMPTY
    ends = (one["low"], one["high"])
    around = " to ".join(number(end, "{:+.4f}") for end in ends if end is not None) or "no interval"
    return f"{number(one['difference'], '{:+.4f}')} ({around})"
