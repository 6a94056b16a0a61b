"""The command ``fedcats-gaps``: several sweeps side by side, what each does to the gap."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedcats.environment import disk_error, output_lost, settle, tell
from fedcats.errors import RunError, UserError
from fedcats.limits import FORMATS, WIDTHS
from fedcats.results import Results

if TYPE_CHECKING:
    from fedcats.report.view import Files


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 2 when a folder holds no runs to compare."""
    low, high = WIDTHS
    parser = argparse.ArgumentParser(
        prog="fedcats-gaps",
        description="Merged minus centralized over what each sweep varied, in one figure: writes "
        "gaps.html, gaps.csv and figures/ into --out.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="of sweeps, or of runs in folders")
    parser.add_argument("--out", type=Path, default=Path("gaps"), help="folder (default: gaps)")
    parser.add_argument(
        "--figures",
        metavar="FORMATS",
        default="png,svg",
        help=f"formats of the files, some of {','.join(FORMATS)} (default: png,svg)",
    )
    parser.add_argument(
        "--figure-width",
        metavar="INCHES",
        type=float,
        help=f"width of the files, {low} to {high}, at most",
    )
    settle()
    chosen = parser.parse_args(arguments)
    formats, width = chosen.figures.split(","), chosen.figure_width
    if not {*formats} <= {*FORMATS}:
        parser.error(f"--figures {chosen.figures}: allowed are some of {','.join(FORMATS)}")
    if width is not None and not low <= width <= high:
        parser.error(f"--figure-width {width:g}: allowed are {low} to {high}")
    from fedcats.report.view import Files

    try:
        _write([_read(folder) for folder in chosen.folders], chosen.out, Files(formats, width))
    except (UserError, RunError) as error:
        return tell(error, "fedcats-gaps")
    except OSError as error:
        return tell(disk_error(error), "fedcats-gaps")
    sys.stdout.flush()
    return 1 if output_lost() else 0


def _read(folder: Path) -> list[Results]:
    """Results of the runs in a folder's folders."""
    runs: list[Results] = []
    for path in sorted(folder.glob("*/results.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        if isinstance(found, dict) and found.get("comparison") and "config" in found:
            runs.append(found)  # type: ignore[arg-type]
    if not runs:
        raise UserError(
            f"{folder}: no finished runs with both ways of training in its folders; allowed are "
            "folders of sweeps (fedcats -m ..)"
        )
    return runs


def _write(sweeps: Sequence[Sequence[Results]], out: Path, files: Files) -> None:
    from rich.text import Text

    from fedcats.report import cautions, drawing, gaps, page
    from fedcats.report.console import SafeConsole
    from fedcats.report.rich_table import to_rich
    from fedcats.text import write_csv

    found = [gaps.gaps(runs) for runs in sweeps]
    table = gaps.table(found)
    if table is None:
        raise UserError(
            "nobody has learned in any of these runs; raise train.epochs, train.lr or rounds"
        )
    drawn = drawing.write(
        out / "figures",
        {
            "gaps": (gaps.GAPS, lambda: gaps.side_by_side(found)),
            "barrier-gap": (gaps.BARRIER_GAP, lambda: gaps.scatter(found)),
        },
        files,
    )
    said = gaps.sentences(found)
    all_runs = [one for runs in sweeps for one in runs]
    text = page.render(
        page.SWEEP,
        drawn,
        title="fedcats gaps",
        kind="FEDCATS SWEEPS",
        heading="What changes the gap to training in one place?",
        warnings=cautions.of_runs(all_runs),
        answer=said,
        meta=f"{sum(map(len, sweeps))} runs",
        points=table,
        csv="gaps.csv",
        frontier=None,
        seeds=[],
        jobs=[],
    )
    write_csv(out / "gaps.csv", gaps.rows(found))
    (out / "gaps.html").write_text(text, encoding="utf-8", errors="backslashreplace")
    console = SafeConsole()
    console.print(to_rich(table, console.width))
    console.print(Text(" ".join(said), style="bold"))
    console.print(str(out.resolve()), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
