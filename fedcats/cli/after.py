"""``fedcats predict``, ``runs``, ``compare``, ``export``: what finished runs are good for; ``app``.

What needs PyTorch is imported when the arguments are parsed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedcats.environment import output_lost, say, tell
from fedcats.errors import RunError, UserError
from fedcats.experiment.finished import read_results, run_folders
from fedcats.home import home, runs
from fedcats.results import Results

SHOWN = 40  # photos; of more only the file that is written has all
_RUN = "a run folder: the last line that the run printed"


def main(arguments: Sequence[str]) -> int:
    """Do what the first argument says; 0, or the exit code of the error printed in one line."""
    parser = argparse.ArgumentParser(prog="fedcats", description="What needs no training.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "what the models of a run say of photos, side by side"
    one = commands.add_parser("predict", help=text, description=text)
    one.add_argument("run", metavar="RUN", type=Path, help=_RUN)
    one.add_argument("photos", metavar="PHOTO", type=Path, nargs="+", help="file, folder or zip")
    one.add_argument("--clients", action="store_true", help="the clients' own models, too")
    one.add_argument("--out", metavar="FILE", type=Path, action="append", help=".csv or .json")
    text = "the runs below a folder, and what takes the room"
    one = commands.add_parser("runs", help=text, description=text)
    text = "by default outputs, multirun, and where those of flwr run are"
    one.add_argument("folder", type=Path, nargs="?", help=text)
    text = "runs side by side: settings that differ, scores with intervals"
    one = commands.add_parser("compare", help=text, description=text)
    one.add_argument("runs", metavar="RUN", type=Path, nargs="+", help=_RUN)
    text = "a model for other programs, with a card of what it is"
    one = commands.add_parser("export", help=text, description=text)
    one.add_argument("run", metavar="RUN", type=Path, help=_RUN)
    one.add_argument("--format", default="hub", choices=("hub", "torchscript", "onnx"))
    one.add_argument("--model", help="by its name in results.json; by default the first merged one")
    one.add_argument("--out", metavar="DIR", type=Path, required=True, help="an empty folder")
    text = "fedcats as a Flower app, for flwr run DIR: for who has no checkout"
    one = commands.add_parser("app", help=text, description=text)
    one.add_argument("out", metavar="DIR", type=Path, help="an empty folder")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "predict":
            _predict(chosen.run, chosen.photos, chosen.clients, chosen.out or [])
        elif chosen.command == "runs":
            usual = [Path("outputs"), Path("multirun"), runs()]
            _runs([chosen.folder] if chosen.folder else usual)
        elif chosen.command == "compare":
            _compare(chosen.runs)
        elif chosen.command == "app":
            _app(chosen.out)
        else:
            _export(chosen.run, chosen.format, chosen.model, chosen.out)
    except (UserError, RunError, OSError) as error:
        return tell(error)
    except KeyboardInterrupt:
        say("fedcats: interrupted", error=True)
        return 130
    sys.stdout.flush()
    return RunError.exit_code if output_lost() else 0


def _predict(folder: Path, photos: Sequence[Path], clients: bool, out: Sequence[Path]) -> None:
    for path in out:
        if path.suffix not in (".csv", ".json"):
            raise UserError(f"--out {path}: allowed are names that end in .csv or .json")
    results = read_results(folder)
    from fedcats.experiment.predicting import predict
    from fedcats.report import tables, view
    from fedcats.report.console import SafeConsole
    from fedcats.report.rich_table import to_rich

    answers = predict(folder, results, photos, clients=clients)
    rows = []
    for i, name in enumerate(answers.photos[:SHOWN]):
        said = (found[i] for found in answers.models.values())
        words = (f"{answers.classes[p.argmax()]} {view.percent(float(p.max()))}" for p in said)
        rows.append((name, *words))
    titles = (view.title(results, name) for name in answers.models)
    every = tuple(range(len(answers.models) + 1))
    table = tables.Table("Predictions", ("photo", *titles), rows, text=every)
    console = SafeConsole()
    console.print(to_rich(table, console.width))
    if more := len(answers.photos) - len(rows):
        say(f"and {more:,} more")
    for file, why in answers.unusable:
        say(f"fedcats: {file}: cannot be used: {why}", error=True)
    for path in out:
        answers.write(path)
        say(path)


def _runs(roots: Sequence[Path]) -> None:
    folders = [folder for root in roots for folder in run_folders(root)]
    if not folders:
        raise UserError(f"no run below {' or '.join(map(str, roots))}")
    sizes = {folder: _bytes(folder) for folder in folders}
    weights = sum(_bytes(folder / "models") for folder in folders)
    rows: list[tuple[str, ...]] = [("folder", "size", "photos", "clients", "centralized", "merged")]
    for folder in folders:
        try:
            rows.append((str(folder), _size(sizes[folder]), *_of(read_results(folder))))
        except UserError as error:
            say(f"fedcats: {error}", error=True)
    total = sum(sizes.values())
    count = f"{len(folders)} run" + "s" * (len(folders) != 1)
    say(f"{count}, {_size(total)}, of that {_size(weights)} weights in models/")
    kept = {"finished trainings": home() / "store", "decoded images": home() / "data"}
    there = ", ".join(f"{_size(_bytes(path))} {what}" for what, path in kept.items())
    say(f"beside them in {home()}: {there} (fedcats-store list, clear)")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join([name, *others]).rstrip())


def _of(results: Results) -> tuple[str, ...]:
    """Photos, clients, accuracies of a run, each as a word."""
    from fedcats.report import view

    data = results["data"]
    base, merged = view.centralized(results), view.merged(results)
    root = results["config"].get("data", {}).get("root")
    best = next(iter(merged.values()), None)
    return (
        Path(str(root)).name if root else data["source"],
        str(len(data["shards"])),
        view.percent(base["accuracy"]) if base else "-",
        view.percent(best["accuracy"]) if best else "-",
    )


def _compare(folders: Sequence[Path]) -> None:
    runs = [(folder, read_results(folder)) for folder in folders]
    from fedcats.report.console import SafeConsole
    from fedcats.report.rich_table import to_rich
    from fedcats.report.runs import beside

    out = SafeConsole()
    for number, folder in enumerate(folders, 1):
        say(f"run {number}: {folder}")
    for table in beside(runs):
        out.print()
        out.print(to_rich(table, out.width))


def _export(folder: Path, form: str, model: str | None, out: Path) -> None:
    results = read_results(folder)
    from fedcats.experiment.exporting import export

    name = export(folder, results, out, form, model)
    say(f"{name}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    say(out.resolve())


def _app(out: Path) -> None:
    from fedcats.federated.app import write_app

    write_app(out)
    say(out.resolve())


def _bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
