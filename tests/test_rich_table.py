"""Tables in a terminal of any width: nothing is cut, and no interval is broken."""

import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedcats.report.rich_table import to_rich
from fedcats.report.tables import Table

names = st.text("abcdefgh =.,", min_size=1, max_size=40).map(lambda text: f"n{text.strip()}")
numbers = st.floats(-100, 100)
intervals = st.tuples(numbers, numbers, numbers).map(
    lambda v: f"{v[0]:.2f} ({v[1]:+.3f} to {v[2]:+.5f})"
)
rows = st.lists(st.tuples(names, st.lists(intervals, min_size=5, max_size=5)), min_size=1)


@given(rows=rows, columns=st.integers(1, 5), width=st.integers(45, 200))
def test_an_interval_is_never_broken(rows: list[tuple[str, list[str]]], columns: int, width: int):
    header = ("model", *(f"{i} holm p"[:width] for i in range(columns)))
    table = Table("A title", header, [(name, *cells[:columns]) for name, cells in rows])
    stream = io.StringIO()
    Console(file=stream, width=width).print(to_rich(table, width))
    printed = stream.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    for name, cells in rows:
        for cell in cells[:columns]:
            difference, interval = cell.split(" ", 1)
            assert interval in printed
            assert difference in printed
        for word in name.split():
            assert len(word) > 12 or word in printed
    assert len(re.findall(r" to ", printed)) == columns * len(rows)
