"""Names of anybody's on terminals, pages and in tables: they say what they are and do nothing."""

import csv
import io
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.live import Live
from rich.table import Table as RichTable
from rich.text import Text

from fedcats.cli import data
from fedcats.environment import fail, say
from fedcats.report import page, tables
from fedcats.report.console import SafeConsole
from fedcats.report.rich_table import to_rich
from fedcats.text import MAX_LINE, cell, from_cell, one_line, shown, size_text, write_csv

HOSTILE = [
    "\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "a\nb", "a\rb", "\u202egpj.exe", "\u2066x", "\u2028",
    "\udc9b31m", "\udcff", "[red]x[/red]", "=cmd|' /C calc'!A0", "@SUM(1)", "-1+1", "+1", "\t=1",
    "'=1", "a;=1", "＝1", "<script>alert(1)</script>", "\x7f", "\xad", "\ufeff", "a\u200db",
]  # fmt: skip
names = st.one_of(
    st.sampled_from(HOSTILE),
    st.binary(min_size=1, max_size=40).map(os.fsdecode),
    st.text(min_size=1, max_size=20),
)


def harmless(text: str) -> bool:
    return all(
        c in "\n\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        for c in text
    )


@given(names)
def test_shown_is_harmless_one_line_and_stays_as_it_is(name: str) -> None:
    assert harmless(shown(name)) and "\n" not in shown(name)
    assert shown(shown(name)) == shown(name)
    assert shown("Käse 猫 \U0001f408") == "Käse 猫 \U0001f408"


def test_a_long_message_keeps_both_ends() -> None:
    text = one_line("begin " + "x " * 10**6 + "end")
    assert text.startswith("begin x") and text.endswith("x end") and len(text) < MAX_LINE + 9


@given(names)
def test_every_way_to_a_terminal_is_harmless(name: str) -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, width=80)
    table = tables.Table(name, (name, "n"), [(name, name)], note=name)
    console.print(to_rich(table))
    console.print(name, markup=False, highlight=False, soft_wrap=True)
    console.print(Text(name))
    with Live(RichTable.grid(), console=console) as live:
        live.update(Text(name))
    assert harmless(out.getvalue())
    assert harmless(tables.to_markdown(table))


@given(names)
def test_pages_hold_no_markup_of_a_name(name: str) -> None:
    table = tables.Table("t", (name, "n"), [(name, name)])
    text = page.render("{{ name }}{{ to_html(table) }}", [], name=name, table=table)
    assert harmless(text)
    assert "<script>" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_lines_and_errors_are_harmless(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(name)
    with pytest.raises(SystemExit):
        fail(f"data.root={name}: does not exist", 2)
    out, err = capsys.readouterr()
    assert harmless(out) and harmless(err)
    assert (out.count("\n"), err.count("\n")) == (1, 1)


@given(st.lists(st.one_of(names, st.text("'=+-@;\t\r\n a", max_size=6)), min_size=1))
def test_no_cell_starts_a_formula_and_all_are_read_back(cells: list[str]) -> None:
    for text in cells:
        safe = cell(text)
        assert from_cell(safe) == text
        for part in safe.split(";"):
            assert not part.lstrip().startswith(tuple("=+-@＝＋－＠"))
            assert not part.startswith(("\t", "\r", "\n"))


def test_tables_are_read_back(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [["file", "n"], *([name, -1.5] for name in HOSTILE)])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        _, *rows = csv.reader(file)
    assert [from_cell(row[0]) for row in rows] == HOSTILE
    assert {row[1] for row in rows} == {"-1.5"}  # a number stays one


@pytest.mark.slow
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.binary(min_size=1, max_size=40).filter(
        lambda b: not {0, 47} & {*b} and b not in (b".", b"..")
    )
)
def test_any_folder_name_of_the_file_system(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    """As root, class and file: listed or refused, and nothing on the terminal but text."""
    root = tmp_path_factory.mktemp("names") / os.fsdecode(name)
    for number, label in enumerate((os.fsdecode(name), "other")):
        for i in range(2):
            file = root / label / f"{i}{os.fsdecode(name[:30])}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (20 * i, 99 * number, 7)).save(file, "PNG")
    (root / "other" / "3.jpg").write_bytes(name)
    try:
        code = data.main(["check", "data=folder", f"data.root={root}", "data.max_bad_fraction=0.9"])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code in (0, 2)
    assert harmless(out) and harmless(err)
    assert out or err.count("\n") == 1


def test_sizes_in_words() -> None:
    sizes = [0.5, 12, 999, 4112, 251e3, 57.5e6, 228e6, 3e9, 999_499, 999_500, 1e12]
    assert [size_text(one) for one in sizes] == [
        "0.5 bytes", "12 bytes", "999 bytes", "4.11 kB", "251 kB", "57.5 MB", "228 MB", "3 GB",
        "999 kB", "1 MB", "1 TB",
    ]  # fmt: skip
