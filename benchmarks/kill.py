"""Kill whole experiments at random moments, resume them, and compare every byte.

``python benchmarks/kill.py [--runs 20] [OVERRIDE ...]``: one undisturbed run, then RUNS times a
run whose process gets SIGKILL at a random moment (every fourth: while an entry is being written)
and is then given again; each with an empty store. Exits with 1 unless all final models are the
same bytes and no process is left behind.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = [
    "model.name=squeezenet1_1",
    "model.weights=none",
    "partition.num_shards=3",
    "data.train_per_class=30",
    "data.test_per_class=6",
    "train.epochs=4",
    "store.checkpoint_seconds=0",
]


def main() -> int:
    """Entry point; 0 when all runs ended with the same bytes."""
    parser = argparse.ArgumentParser(description="Kill and resume experiments")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="fedcats-kill-") as temporary:
        root = Path(temporary)
        started = time.monotonic()
        expected = finish(root / "undisturbed", given.overrides)
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.1f} s, {len(expected)} models", flush=True)
        good = 0
        for number in range(1, given.runs + 1):
            home = root / str(number)
            moment = draw.uniform(0.1, 0.95) * seconds
            process = start(home, given.overrides)
            time.sleep(moment)
            if number % 4 == 0:
                wait_for_writing(home / "home" / "store")
            process.send_signal(signal.SIGKILL)  # the driver alone: the rest must follow it
            process.wait()
            entries = list((home / "home" / "store").glob("*.safetensors"))
            unfinished = list((home / "home" / "store").glob(".*.tmp"))
            same = finish(home, given.overrides) == expected
            left = left_behind(home)
            good += same and not left
            print(
                f"{number:2}: killed after {moment:5.1f} s with {len(entries)} entries kept, "
                f"{len(unfinished)} half written; resumed: "
                f"{'the same bytes' if same else 'OTHER BYTES'}, processes left: {left}",
                flush=True,
            )
            shutil.rmtree(home)
    print(f"{good} of {given.runs}")
    return 0 if good == given.runs else 1


def wait_for_writing(store: Path) -> None:
    """Wait until an entry is being written, ten seconds at most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not any(store.glob(".*.tmp")):
        time.sleep(0.0005)


def start(home: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
    """A run with everything it keeps under ``home``."""
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "fedcats.cli", *TINY, *overrides]
    return subprocess.Popen(
        [*command, f"hydra.run.dir={home / 'run'}"],
        env={**os.environ, "FEDCATS_HOME": str(home / "home"), "FEDCATS_KILL": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=(home / "stderr").open("ab"),
    )


def finish(home: Path, overrides: list[str]) -> dict[str, bytes]:
    """Run to the end; the bytes of all models."""
    if start(home, overrides).wait():
        raise SystemExit((home / "stderr").read_text())
    return {path.name: path.read_bytes() for path in (home / "run" / "models").iterdir()}


def left_behind(home: Path) -> list[bytes]:
    """Processes of this home's runs that are still there after 90 seconds.

    Ray's own agents need a minute to notice that the rest is gone.
    """
    mark = f"FEDCATS_KILL={home}".encode()
    for _ in range(180):
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(
                        (path.parent / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                    )
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.5)
    return found


if __name__ == "__main__":
    sys.exit(main())
