"""What a run shows in a terminal: progress and summary."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from made_up import PAPER, fake_run
from rich.console import Console

from fedcats.report import (
    Progress,
    Work,
    print_summary,
    verdict,
)

# --- terminal --------------------------------------------------------------------------------


def terminal(**options: Any) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, **options), stream


def test_the_summary_fits_a_plain_terminal_and_ends_with_the_folder(tmp_path: Path):
    folder = tmp_path / ("a rather long folder name " * 4)
    folder.mkdir()
    results = fake_run(folder, paper=PAPER, source="synthetic")
    console, stream = terminal(width=80)
    print_summary(results, folder, console)
    *lines, last = stream.getvalue().splitlines()
    assert last == str(folder.resolve())
    assert max(map(len, lines)) <= 80
    assert "not photos" in lines[0]
    text = " ".join(stream.getvalue().split())
    assert " ".join(verdict.answer(results)) in text
    assert "centralized 0.9644 0.9417 +2.3" in text
    assert "3 trained, 10 taken from the store" in text


def test_progress_without_a_terminal_is_a_few_lines():
    now = 0.0
    console, stream = terminal()
    tasks = {f"client {i}": Work(198, 10, "clients") for i in range(10)}
    with Progress(tasks, console, every=30, clock=lambda: now) as progress:
        for step in range(1, 101):
            now = float(step)
            for name in tasks:
                progress.update(name, step // 10, 10, 0.5 / step, "training")
        for name in tasks:
            progress.update(name, 10, 10, 0.005, "done")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 + 10 + 1  # every 30 s, each end, the total
    # all ten at once, in 100 s
    assert lines[0] == (
        "client 0: training, epoch 3 of 10, loss 0.0167  "
        "(0 of 10 done, 0:30 elapsed, about 1:10 left)"
    )
    assert lines[3].startswith("client 0: done, epoch 10 of 10, loss 0.0050  (1 of 10 done")
    assert lines[-1] == "10 of 10 done, 1:40 elapsed"


def test_no_time_left_is_shown_before_there_is_a_basis():
    now = 0.0
    console, stream = terminal()
    tasks = {"centralized": Work(2000, 10, "centralized"), "client 0": Work(200, 10, "clients")}
    with Progress(tasks, console, clock=lambda: now, every=1) as progress:
        for at, event in {
            20.0: ("images", 2000, 2000, None, "done"),
            21.0: ("centralized", 0, 10, None, "training"),
            30.0: ("client 0", 0, 10, None, "training"),
            32.0: ("client 0", 1, 10, None, "training"),
            34.0: ("client 0", 2, 10, None, "training"),
        }.items():
            now = at
            progress.update(*event)
    *before, basis, last = stream.getvalue().splitlines()
    assert not any("left" in line for line in before)
    # 2 s for 200 images: the baseline takes 200 s, of which the first epoch's 13 s are spent
    assert "1 of 3 done, 0:34 elapsed, about 3:07 left" in basis
    assert "about 3:07 left" in last


def test_a_failure_is_shown_at_once_and_many_tasks_make_no_flood():
    console, stream = terminal()
    with Progress(
        {f"client {i}": Work() for i in range(500)}, console, clock=lambda: 0.0
    ) as progress:
        for i in range(499):
            progress.update(f"client {i}", 10, 10, 0.1, "reused")
        progress.update("client 499", 3, 10, 0.1, "failed")
        progress.message("[odd] message")
    assert stream.getvalue().splitlines() == [
        "client 499: failed, epoch 3 of 10, loss 0.1000  "
        "(499 of 500 done, 499 from the store, 1 failed, 0:00 elapsed)",
        "[odd] message",
        "499 of 500 done, 499 from the store, 1 failed, 0:00 elapsed",
    ]


def test_the_live_display_shows_what_is_at_work_and_fits_the_screen():
    console, stream = terminal(force_terminal=True, width=90, height=16, color_system=None)
    with pytest.raises(KeyError), Progress(console=console) as progress:
        progress.expect({f"client {i}": Work(198, 10, "clients") for i in range(100)})
        with ThreadPoolExecutor(4) as pool:
            for i in range(90):
                pool.submit(progress.update, f"client {i}", 10, 10, 0.0123, "done")
        progress.update("client 97", 4, 10, 0.25, "training")
        progress.message("a message")
        raise KeyError
    last = stream.getvalue().split("\x1b[2K")[-1]
    shown = [line for line in last.splitlines() if "client" in line]
    assert 4 <= len(shown) <= 16 - 3
    assert any("client 97" in line and "4/10" in line and "0.2500" in line for line in shown)
    assert "90 of 100 done" in last
    assert "a message" in stream.getvalue()


def test_importing_the_report_is_cheap():
    code = "import sys, fedcats.report; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"matplotlib", "jinja2", "rich", "torch", "scipy", "sklearn"} & set(loaded)
