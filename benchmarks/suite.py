"""All benchmarks: fedcats beside three ways to do the same, and the floor of the hardware.

    python benchmarks/suite.py ROOT [--only ROW ...] [--repeat 3] [--epochs 1] [--pfl PYTHON]

ROOT has train/<class>/*.jpg and test/<class>/*.jpg, with the paper's counts. Every entry is a whole
command, start-up included: wall time, and the memory of all its processes (proportional set size)
at its peak. In a round of a row its columns run one after the other; a ratio is taken within a
round, and the table shows medians. Columns: the naive script, a stock Flower app, and pfl
(apple/pfl-research), all in ``benchmarks/rivals``; ``make bench`` sets up pfl's environment. "No
Flower" is fedcats' own work in a plain pool of processes: what is above it is Flower's and Ray's.

The floor is what the operations of the row's training and testing take at the measured rate of a
matrix product, and its linear weights at the measured read rate (see step.py), on all cores.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from step import keep, machine, rates

HERE = Path(__file__).parent
LOOK = 5.0  # seconds between two looks at the memory, each of which stops the processes a little
COLUMNS = ("fedcats", "naive", "stock Flower", "pfl", "no Flower")


@dataclass(frozen=True)
class Measured:
    """A command: seconds of wall time, and GB of memory at the peak; why there are none."""

    seconds: float = 0.0
    memory: float = 0.0
    failed: str = ""


@dataclass
class Row:
    """One line of the table.

    Attributes
    ----------
    commands
        By column.
    before
        Runs before each command, unmeasured.
    steps, forwards
        What the floor counts: training steps at batch 4, photos tested.
    until
        Measure the time until this is true of the folder, then stop the command.
    """

    name: str
    commands: dict[str, list[str]]
    before: dict[str, list[str]] = field(default_factory=dict)
    steps: int = 0
    forwards: int = 0
    until: Callable[[Path], bool] | None = None


def rows(root: Path, epochs: int, per_class: int, test: int, pfl: str | None) -> list[Row]:
    """The table's lines; the paper has 10 ``epochs``, 99 ``per_class`` in a shard, 506 to test."""
    python, shards = sys.executable, 10
    steps = -(-2 * per_class // 4) * epochs  # of one client
    photos = [str(root)]

    def fedcats(*overrides: str, clients: int = shards, tested: int = 1) -> list[str]:
        train = clients * per_class
        counts = f"{{train: [{train}, {train}], test: [{tested}, {tested}]}}"
        return [
            *(python, "-m", "fedcats.cli", "data=folder", f"data.root={root}"),
            *(f"data.counts={counts}", "model.weights=none", "save_models=none"),
            *("partition=paper", f"partition.num_shards={clients}", f"train.epochs={epochs}"),
            *(
                f"partition.per_class={per_class}",
                "reference=[full]",
                "hydra.run.dir=run",
                *overrides,
            ),
        ]

    def rival(name: str, *options: str, by: str = python) -> list[str]:
        return [by, str(HERE / "rivals" / f"{name}.py"), *photos, *options]

    def others(*options: str) -> dict[str, list[str]]:
        found = {"stock Flower": rival("stock_flower", *options)}
        if pfl:
            found["pfl"] = rival("pfl_research", *options, by=pfl)
        return found

    def sized(clients: int) -> list[str]:
        return [f"--clients={clients}", f"--epochs={epochs}", f"--per-class={per_class}"]

    whole = [*sized(shards), "--baseline", f"--test={test}"]
    federated = ["mode=federated", "strategy=polyak"]
    # One model alone: as the rivals do it. Where several are trained, fedcats gives each a core.
    every_core = f"runner.threads={len(os.sched_getaffinity(0))}"
    decode = [python, "-m", "fedcats.cli.data", "prepare", "data=folder", f"data.root={root}"]
    trained = fedcats("strategy=polyak", "train.epochs=1")
    short = (
        *("strategy=polyak", "partition.num_shards=2", "partition.per_class=2"),
        "data.counts={train: [4, 4], test: [1, 1]}",
    )
    found = [
        Row(
            "one client",
            {
                "fedcats": fedcats(*federated, "runner=local", every_core, clients=1),
                "naive": rival("naive", *sized(1)),
                **others(*sized(1)),
            },
            steps=steps,
        ),
        Row(
            "ten shards and merge",
            {
                "fedcats": fedcats(*federated),
                "naive": rival("naive", *sized(shards)),
                **others(*sized(shards)),
            },
            steps=shards * steps,
        ),
        Row(
            "centralized",
            {
                "fedcats": fedcats("mode=centralized", every_core),
                "naive": rival("naive", "--clients=0", "--baseline", f"--epochs={epochs}",
                               f"--per-class={shards * per_class}"),
            },
            steps=shards * steps,
        ),
        Row(
            "the whole experiment",
            {
                "fedcats": fedcats("strategy=polyak", tested=test),
                "naive": rival("naive", *whole),
            },
            steps=2 * shards * steps,
            forwards=2 * test * (shards + 2),
        ),
        Row(
            "9 merges, tested",
            {
                "fedcats": fedcats(
                    "mode=merge", "merge.rules=[polyak]", "merge.orders=[partition]",
                    "train.epochs=1", tested=test,
                ),
                "naive": rival("naive", "--clients=10", "--untrained", "--merges=9",
                               f"--test={test}"),
            },
            before={"fedcats": trained},
            forwards=2 * test * (9 + shards + 1),
        ),
        Row(
            "data, nothing cached",
            {"fedcats": decode, "naive": rival("naive", "--decode")},
        ),
        Row(
            "data, cached",
            {"fedcats": decode, "naive": rival("naive", "--decode")},
            before={"fedcats": decode},
        ),
        Row("fedcats --help", {"fedcats": [python, "-m", "fedcats.cli", "--help"]}),
        *(
            Row(
                f"to the end of the first epoch, 1 or 2 steps, mode={mode}",
                {"fedcats": fedcats(f"mode={mode}", *short, "train.epochs=99")},
                before={"fedcats": fedcats(f"mode={mode}", *short, "train.epochs=1")},
                until=first_epoch,
            )
            for mode in ("compare", "federated")
        ),
        Row(
            "1,000 clients, head only",
            {
                "fedcats": [
                    *(python, "-m", "fedcats.cli", "mode=federated", "data=folder"),
                    *(f"data.root={root}", "partition=iid", "partition.num_shards=1000"),
                    *("model.trainable=head", "rounds=3", "strategy=polyak", "train.epochs=2"),
                    *("save_models=none", "hydra.run.dir=run"),
                ]
            },
            before={"fedcats": decode},
        ),
    ]  # fmt: skip
    for clients in (10, 40, 100):
        options = [f"--clients={clients}", "--untrained"]
        commands = {
            "fedcats": [python, str(HERE / "transport.py"), f"--clients={clients}"],
            "no Flower": [python, str(HERE / "transport.py"), f"--clients={clients}", "--pool"],
            **others(*options),
        }
        found.append(Row(f"transport, {clients} clients", commands))
    return found


def first_epoch(folder: Path) -> bool:
    """Whether a client has finished an epoch."""
    events = folder / "run" / "progress.jsonl"
    return events.is_file() and re.search(r'"epoch": [1-9]', events.read_text()) is not None


def measure(command: list[str], folder: Path, until: Callable[[Path], bool] | None) -> Measured:
    """Run a command in ``folder``, which is fedcats' home too."""
    environment = {**os.environ, "FEDCATS_HOME": str(folder / "home")}
    log = (folder / "log").open("w+")
    os.sync()  # what the command before this one wrote is not this one's time
    begun = time.perf_counter()
    process = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    peak, failed, limit = 0, "", 0.85 * psutil.virtual_memory().total
    pause, looked = 0.01 if until else 0.05, 0.0
    while process.poll() is None and not (until and until(folder)):
        time.sleep(pause)
        if until or time.perf_counter() - looked < LOOK:  # a short time would be disturbed
            continue
        looked = time.perf_counter()
        used = memory(process)
        peak = max(peak, used)
        if used > limit:
            failed = f"more than {limit / 1e9:.0f} GB"
            break
    seconds = time.perf_counter() - begun
    for child in [*children(process), process]:
        try:
            child.kill()
        except psutil.Error:
            continue
    code = process.wait()
    if code and not until and not failed:
        log.seek(0)
        failed = f"exit {code}: {(log.read().strip().splitlines() or [''])[-1][:80]}"
    return Measured(seconds, peak / 1e9, failed)


def children(process: psutil.Process) -> list[psutil.Process]:
    """All below a process."""
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return found


def memory(process: psutil.Process) -> int:
    """Bytes of a process and all below it; what several share counts once."""
    total = 0
    for one in [process, *children(process)]:
        try:
            text = Path(f"/proc/{one.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * int(re.search(r"^Pss: +(\d+)", text, re.M)[1])  # type: ignore[index]
    return total


def measure_row(row: Row, repeat: int, say: Callable[[str], None]) -> dict[str, list[Measured]]:
    """Every column in each round, in an empty folder each."""
    found: dict[str, list[Measured]] = {name: [] for name in row.commands}
    for _ in range(repeat):
        for name, command in row.commands.items():
            if found[name] and found[name][-1].failed:
                continue
            folder = Path(tempfile.mkdtemp(prefix="fedcats-bench-"))
            try:
                if name in row.before:
                    measure(row.before[name], folder, None)
                one = measure(command, folder, row.until)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            found[name].append(one)
            say(f"{row.name}: {name} {one.seconds:.1f} s, {one.memory:.1f} GB {one.failed}")
    return found


def floor(row: Row, rate: dict[str, float]) -> float:
    """Seconds below which the row cannot be done, on all cores."""
    seconds = row.steps * rate["step"] + row.forwards * rate["forward"]
    return seconds / len(os.sched_getaffinity(0))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of training; the paper has 10")
    parser.add_argument("--per-class", type=int, default=99, help="photos in a shard")
    parser.add_argument("--test", type=int, default=506, help="photos of each class to test")
    parser.add_argument("--pfl", help="a Python with pfl[pytorch]")
    parser.add_argument("--json", type=Path, default=HERE / "results" / "suite.json")
    given = parser.parse_args()
    say = Console(stderr=True).print
    pfl = given.pfl and str(Path(given.pfl).absolute())
    result = keep(given.json, {})
    for row in rows(given.root.absolute(), given.epochs, given.per_class, given.test, pfl):
        if not any(part in row.name for part in given.only):
            continue
        rate = rates() if row.steps or row.forwards else None
        measured = measure_row(row, given.repeat, say)
        name = row.name
        if row.steps:
            name += f", {row.steps:,} steps"
        if row.forwards:
            name += f", {2 * given.test:,} photos tested"
        entry: dict[str, Any] = {"rounds": given.repeat, **compared(measured)}
        if rate:
            entry["floor"] = {"seconds": floor(row, rate), **rate}
        result = keep(given.json, {name: entry})
    table = Table(title=machine())
    columns = ("rounds", "fedcats s", "GB", *(f"{c} ×" for c in COLUMNS[1:]), "fedcats/floor")
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    for name, entry in result.items():
        table.add_row(*cells(name, entry))
    Console(width=140).print(table)


def compared(measured: dict[str, list[Measured]]) -> dict[str, dict[str, object]]:
    """Medians of each column, and of its ratios to fedcats within a round."""
    found: dict[str, dict[str, object]] = {}
    ours = measured["fedcats"]
    for name, runs in measured.items():
        found[name] = {
            "seconds": median(one.seconds for one in runs),
            "GB": max(one.memory for one in runs),
        }
        if runs[-1].failed:
            found[name]["failed"] = runs[-1].failed
        elif not ours[-1].failed:
            pairs = zip(runs, ours, strict=True)
            found[name]["ratio"] = median(other.seconds / own.seconds for other, own in pairs)
    return found


def cells(name: str, entry: dict[str, Any]) -> list[str]:
    """The table's line of a row in the JSON file."""
    own, least = entry["fedcats"], entry.get("floor", {}).get("seconds")

    def ratio(column: str) -> str:
        other = entry.get(column, {})
        return f"{other['ratio']:.2f}" if "ratio" in other else other.get("failed", "–")

    return [
        name,
        str(entry["rounds"]),
        own.get("failed") or f"{own['seconds']:.1f}",
        f"{own['GB']:.1f}" if own["GB"] else "–",  # not looked at
        *(ratio(column) for column in COLUMNS[1:]),
        f"{own['seconds'] / least:.2f}" if least else "–",
    ]


if __name__ == "__main__":
    main()
