"""The command ``fedcats-data``: decode a data set, check its files, look at who gets what.

What needs PyTorch is imported when the arguments are parsed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.config.paths import needed
from fedcats.config.schema import Config
from fedcats.data.catalogue import Photos
from fedcats.environment import output_lost, say, settle, tell
from fedcats.errors import RunError, UserError

if TYPE_CHECKING:
    from fedcats.data import AuditReport, Dataset

COMMANDS = {
    "prepare": "download and decode into FEDCATS_HOME, so that runs find it there",
    "check": "all that is wrong with the files; fails when data.max_bad_fraction is exceeded",
    "show": "write a contact sheet of each shard, and a figure of who has what",
}
LARGEST_SHEET = 400  # images; the first ones of a larger shard


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0, or the exit code of the error that is printed in one line."""
    settle()
    parser = argparse.ArgumentParser(
        prog="fedcats-data",
        description="Decode a data set, check its files, look at who gets what.",
        epilog="overrides: as after fedcats, e.g. data=folder data.root=DIR partition=dirichlet",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("overrides", nargs="*", help="as after fedcats")
        if name == "show":
            command.add_argument("--out", default="shards", help="folder to write to (shards)")
    chosen = parser.parse_args(arguments)
    try:
        config = load(compose_config(chosen.overrides))
        if chosen.command == "show":
            show(config, Path(needed("--out", chosen.out)))
        else:
            check(config, findings=chosen.command == "check")
    except (UserError, RunError, OSError) as error:
        return tell(error, "fedcats-data")
    except KeyboardInterrupt:
        say("fedcats-data: interrupted", error=True)
        return 130
    sys.stdout.flush()
    return RunError.exit_code if output_lost() else 0


def check(config: Config, *, findings: bool) -> Dataset:
    """Decode; print what there is, and with ``findings`` all that is wrong with it.

    Raises
    ------
    UserError
        When there are more unusable files than ``data.max_bad_fraction`` allows, after printing.
    """
    if findings and isinstance(config.data, Photos):
        for line in report(_decoded(config, strict=False).audit):
            say(line)
    dataset = _decoded(config)
    if dataset.note:
        say(f"note: {dataset.note}")
    for split in ("train", "test"):
        labels = Counter(getattr(dataset, split).labels.tolist())
        counts = (f"{labels[label]:,} {name}" for label, name in enumerate(dataset.classes))
        say(f"{split}: {', '.join(counts)}")
    say(dataset.path)
    return dataset


def report(audit: AuditReport) -> Iterator[str]:
    """Every finding in lines; the first says how many files were looked at."""
    kept = "left out of training" if audit.removed else "kept in training"
    sections = {
        "files that cannot be used, left out": map(": ".join, audit.quarantined),
        "files that do not look like images, ignored": audit.ignored,
        f"training images that are test images too, {kept}": map(" = ".join, audit.in_test_too),
        "the same image in several classes": map(" = ".join, audit.contradictions),
        "the same image several times in one part": map(" = ".join, audit.duplicates),
        "pairs that look alike (perceptual hash)": (
            f"{pair.first} ~ {pair.second}{'  (training and test)' if pair.across else ''}"
            for pair in audit.near_duplicates
        ),
    }
    yield f"files checked: {audit.checked}"
    for what, entries in sections.items():
        if lines := list(entries):
            yield f"{what}: {len(lines)}"
            yield from (f"  {line}" for line in lines)
    if more := audit.near_duplicates_found - len(audit.near_duplicates):
        yield f"  and {more} more"


def show(config: Config, out: Path) -> None:
    """Write ``shard-<client>.png`` for each client, ``who-has-what.png`` and ``.svg``."""
    from fedcats.data import contact_sheet
    from fedcats.experiment.inputs import class_counts, deal_out
    from fedcats.report import drawing, figures, view

    dataset = _decoded(config)
    shards = deal_out(config, dataset)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("shard-[0-9]*.png"):
        old.unlink()
    digits = len(str(len(shards) - 1))
    counts = []
    for client, indices in enumerate(shards):
        images = dataset.train.subset(indices)
        counts.append(class_counts(images, dataset.classes))
        by_class = images.labels.argsort(kind="stable")[:LARGEST_SHEET]
        sheet = contact_sheet(images, by_class)
        sheet.save(out / f"shard-{client:0{digits}}.png", optimize=True)
        listed = ", ".join(f"{number} {name}" for name, number in counts[-1].items())
        say(f"client {client}: {listed}")
    caption = "How many training images of each class each client has."
    draw = partial(figures.who_has_what, counts, dataset.classes, always=True)
    drawing.write(out, {"who-has-what": (caption, draw)}, view.Files(width=config.figure_width))
    say(out.resolve())


def _decoded(config: Config, *, strict: bool = True) -> Dataset:
    from fedcats.experiment.inputs import decoded, make_source
    from fedcats.report import Progress

    with Progress() as progress:
        return decoded(config, make_source(config, progress), progress, strict=strict)


if __name__ == "__main__":
    sys.exit(main())
