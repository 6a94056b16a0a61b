"""Accuracy against bytes: who is on the frontier, what is drawn, what is said."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcats.report import drawing
from fedcats.report.frontier import (
    frontier,
    frontier_answer,
    frontier_table,
    spots,
)

Rows = list[dict[str, Any]]


def row(model: str, size: float, accuracy: float, **more: Any) -> dict[str, Any]:
    scores = dict.fromkeys(("precision", "recall", "f1", "loss"), accuracy)
    said = {"title": model, "chosen": "as configured"}
    return {"model": model, "bytes": size, "accuracy": accuracy, "n": 100, **said, **scores, **more}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from([1e3, 1e5, 2e8, 3e8]), st.integers(0, 5)),
        min_size=2, max_size=12,
    )
)  # fmt: skip
def test_on_the_frontier_is_what_nothing_dominates(points: list[tuple[float, int]]) -> None:
    found = spots([row(f"m{i}", size, 0.9 + n / 100) for i, (size, n) in enumerate(points)])
    if len({size for size, _ in points}) < 2:
        assert found == []
        return
    for one in found:
        better = [
            other
            for other in found
            if (other.size < one.size and other.accuracy >= one.accuracy)
            or (other.size <= one.size and other.accuracy > one.accuracy)
        ]
        assert one.best == (not better)
    assert [one.accuracy for one in found] == sorted((f.accuracy for f in found), reverse=True)


def test_what_is_not_chosen_is_no_point_and_the_ensemble_is_a_line() -> None:
    rows = [row("polyak", 2e8, 0.90 + i / 100, chosen=None, **{"b.beta": i}) for i in range(5)]
    rows += [row("fedavg", 2e8, 0.93), row("lda", 1e5, 0.92), row("ensemble", 2e8, 0.99)]
    found = spots(rows)
    assert [(one.name, one.best) for one in found] == [("fedavg", True), ("lda", True)]
    assert frontier(rows) is not None
    assert "another partition" not in str(frontier_table(rows))


@pytest.mark.parametrize("count", [2, 12, 60])
def test_few_and_many_points_can_be_drawn_and_are_in_the_table(count: int) -> None:
    base = row("centralized", 0, 0.97)
    del base["bytes"], base["chosen"]
    rows = [base, *(row(f"rule {i}", 4e3 * 1.3**i, 0.8 + (i % 7) / 50) for i in range(count))]
    with drawing.style():
        figure = frontier(rows)
        assert figure is not None
        figure.draw_without_rendering()
    table = frontier_table(rows)
    assert table is not None
    assert len(table.rows) == count
    assert {cells[-1] for cells in table.rows} == {"as configured"}


def test_it_says_what_the_numbers_say() -> None:
    rows = [row("FedAvg", 2e8, 0.95), row("ridge", 2.6e5, 0.94), row("means", 4e3, 0.9)]
    first, second = frontier_answer(rows)
    assert "Of 3 merges of one round 3 are on the frontier" in first
    assert "from means (4 kB a client, accuracy 90.0%) to FedAvg (200 MB" in first
    assert "none of 2 others has more than it, none of 2 others has at least as much" in second
    (alone,) = frontier_answer([row("a", 2e8, 0.9), row("b", 1e8, 0.95)])
    assert alone.startswith("Of 2 merges of one round 1 leaves all others behind")
    assert frontier_answer([row("a", 2e8, 0.9), row("b", 2e8, 0.95)]) == []
    # Scores on other photos are not to be compared.
    apart = [row("a", 2e8, 0.9, data="x"), row("b", 1e8, 0.9, data="y")]
    assert frontier(apart) is None
