"""What the page shows and says of mode=explain."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import fake_run

from fedcats.metrics import explained as metrics
from fedcats.report import drawing, explain_figures, write_report
from fedcats.report import explained as words

# --- the report -------------------------------------------------------------------------------


def fake_explained(results: dict[str, Any], *, exact: bool = False) -> dict[str, Any]:
    """What `explain` might say of a made-up run."""
    draw = np.random.default_rng(5)
    models, classes = list(results["models"]), results["data"]["classes"]
    clients = [int(n.split("/")[1]) for n in models if n.startswith("submodel/")]
    rules = [n for n in models if n in ("polyak", "fedavg")]
    some, n = clients[:10], len(clients)
    names = [*(f"submodel/{c}" for c in some), *rules[:1], "centralized"]
    points = np.linspace(0, 1, 11)

    def line(first: str, second: str) -> dict[str, Any]:
        loss = 0.2 + draw.normal() * 0.02 + 0.1 * points * (1 - points) * draw.normal()
        barrier = metrics.excess(loss, points)
        return {
            "first": first, "second": second, "loss": loss.tolist(), "barrier": barrier,
            "accuracy": (1 - loss / 3).tolist(), "drop": barrier / 3,
        }  # fmt: skip

    def shares() -> list[float | None]:
        return [None if draw.random() < 0.1 else float(draw.uniform(0.8, 1)) for _ in clients]

    def ends(scale: float) -> dict[str, Any]:
        value = float(draw.normal() * scale)
        return {"difference": value, "low": value - scale, "high": value + scale}

    orders = metrics.draw_orders(clients, 200, 0)
    values = (0.94 + 0.01 * draw.normal(size=len(orders))).tolist()
    last = dict.fromkeys(("last", "last_two", "last_three"), 0.4)
    measures = dict.fromkeys(("roc_auc", "average_precision", "log_loss", "brier", "ece"), 0.9)
    cosines = np.clip(0.3 + 0.1 * draw.normal(size=(len(some), len(some))), -1, 1)
    added = [float(draw.normal() * 0.01) for _ in clients]
    return {
        "precision": "bfloat16",
        "disagreement": 0.001,
        "clients": some,
        "orders": [
            {
                "beta": beta, "n_eff": 3.0, "every": len(orders) < 200, "accuracies": values,
                "last": [one[-1] for one in orders], "mean": float(np.mean(values)),
                "sd": float(np.std(values)), "worst": min(values), "best": max(values),
                "reported": values[0], "below": 0.5, "plain_mean": 0.95, "explained": last,
            }
            for beta in (0.1, 0.5)
        ],
        "points": points.tolist(),
        "lines": [line(a, b) for a, b in itertools.combinations(names, 2)],
        "layers": [
            {
                "layer": f"features.{i}", "weights": 1000 + i, "length": [1.0] * len(some),
                "relative": float(draw.uniform(0, 0.1)),
                "cosine": float(draw.uniform(0, 1)) if n > 1 else None,
            }
            for i in range(60 if n > 20 else 8)
        ],
        "cosines": ((cosines + cosines.T) / 2).tolist(),
        "own": [
            {
                "model": name, "trained": shares(), "held_out": shares(),
                "trained_by_class": [[0.9] * len(classes)] * n,
                "held_out_by_class": [[None] * len(classes)] * n,
            }
            for name in models
        ],
        "without": {rule: [{"client": c, **ends(0.01)} for c in clients] for rule in rules},
        "shapley": {
            "clients": clients, "values": added, "low": [v - 0.01 for v in added],
            "high": [v + 0.01 for v in added], "nobody": 0.5, "everybody": 0.5 + sum(added),
            "coalitions": 255, "exact": exact,
        },
        "thresholds": {
            name: {
                "measures": measures,
                "against": {} if name == "centralized" else {m: ends(0.01) for m in measures},
                "at_own": None if n > 20 else {"threshold": 0.4, "accuracy": 0.9, **ends(0.01)},
            }
            for name in models
        },
        "seconds": {"tests": 1.0},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "k"), [(1, 2), (30, 20)])
def test_the_page_shows_and_says_it(tmp_path: Path, clients: int, k: int) -> None:
    classes = ("cat", "dog") if k == 2 else tuple(f"class {i}" for i in range(k))
    results: Any = fake_run(tmp_path, clients=clients, classes=classes, per_class=4, epochs=1)
    results["explained"] = fake_explained(results)
    drawn = drawing.write(tmp_path / "figures", explain_figures.all_figures(results, tmp_path))
    expected = {"orders", "barriers", "lines", "updates", "clients", "without", "curves"}
    assert {one.name for one in drawn} == expected | {"reliability"}
    said = words.sections(results)
    assert {name for one in said for name in one.figures} >= expected - {"updates"}
    for one in said:
        assert "nan" not in one.text
        assert one.text.endswith(".")
    if clients == 1:
        write_report(tmp_path, results)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert all(f"<h3>{one.title}</h3>" in page for one in said)


def test_the_sentences_follow_from_the_numbers(tmp_path: Path) -> None:
    results: Any = fake_run(tmp_path, clients=3, per_class=20, epochs=1)
    found: Any = fake_explained(results, exact=True)
    results["explained"] = found
    found["orders"] = found["orders"][:1]
    found["orders"][0] |= {
        "accuracies": [0.9, 0.8] * 3, "every": True, "worst": 0.8, "best": 0.9, "mean": 0.85,
        "sd": 0.0548, "reported": 0.9, "below": 0.75,
        "explained": {"last": 1.0, "last_two": None, "last_three": None},
    }  # fmt: skip
    assert words.order(results, found) == (
        "Polyak β = 0.1 over all 6 orders of the clients has 80.0% to 90.0% accuracy, mean 85.0%, "
        "SD 5.48 points; the plain mean, which the merges are on average, has 95.0%. The run's own "
        "order, 90.0%, is better than 75% of them (equal ones count half). Who is merged last goes "
        "with 100% of the variance."
    )
    found["orders"][0] |= {"worst": 0.9, "mean": 0.9}
    assert "always has 90.0% accuracy" in words.order(results, found)
    (line, *_) = found["lines"]
    found["lines"] = [line | {"loss": [1, 0.5, 1.5], "barrier": 0.25, "drop": 0.1}]
    assert words.between(results, found) == (
        "Between two sub-models the barrier is 0.250 nats, and on the way the loss is lower than "
        "at both ends."
    )
    found["lines"] = [line | {"barrier": 0.0}] * 2
    assert words.between(results, found) == (
        "Between two sub-models the 2 lines have no barrier; on 2 the loss is somewhere lower than "
        "at both ends."
    )
    for low, word in ((-0.01, "not shown"), (0.001, "ranks the photos better"), (None, "")):
        area = {"difference": 0.005, "low": low, "high": 0.01}
        found["thresholds"]["polyak"]["against"]["roc_auc"] = area
        text = words.thresholds(results, found).split("FedAvg")[0]
        assert word in text if word else "rank" not in text
    same = {"difference": 0.0, "low": -0.1, "high": 0.1}
    found["without"] = {"polyak": [{"client": c, **same} for c in range(3)]}
    found["shapley"] |= {"values": [0.3, 0.1, 0.0], "nobody": 0.5, "everybody": 0.9}
    assert words.helps(results, found) == (
        "In Polyak β = 0.5 every client adds as much as every other, 0.0 points. "
        "Of the +40.0 points that the plain mean of all has over the start, by Shapley values "
        "(exact) client 0 is worth most, +30.0 and client 2 is worth least, 0.0."
    )
