"""``tracking=..``: what a tracker's own reader finds equals results.json; off costs nothing."""

import csv
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fedcats.errors import UserError


def test_tensorboard_has_what_the_results_have(run: Callable[..., Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = (
        "runner=local",
        "tracking=tensorboard",
        "seed=31",
        "store.enabled=false",
        "figures=[png]",
    )
    for _ in range(2):  # the second one leaves nothing of the first
        results, folder = run(*given)
    assert len([*(folder / "tensorboard").iterdir()]) == 1
    found = EventAccumulator(str(folder / "tensorboard"), {"images": 0})
    found.Reload()
    for name, model in results["models"].items():
        for key in ("accuracy", "precision", "recall", "f1", "loss"):
            (one,) = found.Scalars(f"test_{key}/{name}")
            assert one.value == pytest.approx(model[key])
    with (folder / "history.csv").open() as file:
        history = [row for row in csv.DictReader(file) if row["model"] == "centralized"]
    curve = found.Scalars("loss/centralized")
    assert [one.step for one in curve][-1] == len(history)
    assert curve[-1].value == pytest.approx(float(history[-1]["loss"]))
    assert "scores" in found.Tags()["images"]


def test_what_is_not_installed_is_said_before_anything_starts(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="tracking=tensorboard: the package tensorboard is not"):
        run("runner=local", "tracking=tensorboard")


def test_without_it_nothing_of_it_is_imported() -> None:
    code = "import sys, fedcats.experiment.run; print('tensorboard' in ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
