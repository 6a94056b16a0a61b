"""A table in a terminal, where no number and no interval is broken, however narrow it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fedcats.report.tables import Table

if TYPE_CHECKING:
    import rich.table

PLAIN = 80  # columns of a terminal that does not say how many it has


def to_rich(table: Table, width: int = PLAIN) -> rich.table.Table:
    """Render for a terminal of so many columns.

    A table that is too wide is set closer, its intervals in lines of their own; then words wrap;
    and where its numbers have no room side by side, each row becomes a list.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    if sum(_widths(table)) + 2 * len(table.header) > width + 1:
        rows = [tuple(cell.replace(" (", "\n(") for cell in row) for row in table.rows]
        numbers = {i: name.replace(" ", "\n") for i, name in enumerate(table.header)}
        numbers |= {i: table.header[i] for i in table.text}
        closer = _Lines(table.title, tuple(numbers.values()), rows, table.text, table.note)
        words = sum(w for i, w in enumerate(_widths(closer, " ")) if i in table.text)
        rest = sum(w for i, w in enumerate(_widths(closer)) if i not in table.text)
        if words + rest + len(table.header) > width + 1 and len(table.header) > 2:
            return to_rich(_as_list(table), width)
        table = closer
    widths = _widths(table)
    gap = 2 if sum(widths) + 2 * len(widths) <= width + 1 else 1
    rendered = RichTable(
        title=Text(table.title),
        caption=Text(table.note) if table.note else None,
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap - 1, 0, 0),
    )
    for i, name in enumerate(table.header):
        if i in table.text:
            rendered.add_column(Text(name), overflow="fold")
        else:
            rendered.add_column(Text(name), justify="right", no_wrap=True, overflow="fold")
    for row in table.rows:
        rendered.add_row(*map(Text, row))
    return rendered


class _Lines(Table):
    """Its cells are shown already, and may have several lines."""

    def __post_init__(self) -> None:
        """Leave line breaks as they are."""


def _widths(table: Table, at: str = "\n") -> list[int]:
    """Of each column, as wide as its longest part between such characters."""
    columns = zip(table.header, *table.rows, strict=True)
    return [
        max(len(part) for cell in column for line in cell.split("\n") for part in line.split(at))
        for column in columns
    ]


def _as_list(table: Table) -> Table:
    """Each row below the other: its name, then the name of each column and what is there."""
    rows: list[tuple[str, ...]] = []
    for name, *cells in table.rows:
        named = zip(table.header[1:], cells, strict=True)
        rows += [(name, ""), *((f"  {column}", cell) for column, cell in named)]
    return replace(table, header=(table.header[0], ""), rows=rows, text=(0,))
