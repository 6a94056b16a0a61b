"""Runs under ``flwr run``: submit one, follow it, and learn how it ended.

Flower's own command line is the interface: it exits with 0 however a run ends, so what a run came
to is read from ``flwr list``.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcats.core.errors import RunError, UserError

RUN_FOLDER = "fedcats: run folder: "
"""What the ServerApp prints before the folder of a run."""

_FIRST_CONTACT = 60.0
_GIVE_UP = 300.0  # seconds without a SuperLink


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    status
        ``completed``, ``failed`` or ``stopped``.
    details
        What Flower says about it.
    folder
        Where the results are on the machine of the ServerApp, as far as it said so.
    """

    run_id: str
    status: str
    details: str
    folder: Path | None


def app_folder() -> Path:
    """The checkout, of which ``flwr run`` makes a bundle."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        raise UserError(
            "flwr run: needs a checkout of fedcats (pip install --editable), because flwr run "
            "bundles the project's folder"
        )
    return root


def submit(
    link: str,
    overrides: Sequence[str],
    *,
    home: Path | None = None,
    supernodes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Submit a run; its id.

    Parameters
    ----------
    link
        Name of the SuperLink in Flower's ``config.toml``.
    overrides
        As after ``fedcats`` on the command line.
    home
        ``FEDCATS_HOME`` of the run; by default that of the SuperLink.
    supernodes
        How many to simulate; None where they are real.
    environment
        Beside or instead of this process's own, e.g. ``FLWR_HOME``.
    """
    settings = {"overrides": shlex.join(overrides), "home": "" if home is None else str(home)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.toml"
        # A JSON string is a TOML string too.
        file.write_text("".join(f"{key} = {json.dumps(text)}\n" for key, text in settings.items()))
        command = ["run", str(app_folder()), link, "--format", "json", "--run-config", str(file)]
        if supernodes is not None:
            resources = f"num-supernodes={supernodes} client-resources-num-cpus=1"
            command += ["--federation-config", resources]
        answer = _flwr(command, environment)
    return str(answer["run-id"])


def follow(
    run_id: str,
    link: str,
    on_line: Callable[[str], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Wait for the end of a run; each line of its log goes to ``on_line`` once."""
    folder: Path | None = None
    seen = 0
    lost: float | None = None
    while True:
        log = subprocess.Popen(
            [*_command(), "log", run_id, link, "--stream"],
            env=_environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert log.stdout is not None
        try:
            for number, line in enumerate(log.stdout):
                if number < seen:
                    continue  # a new stream begins at the first line again
                seen = number + 1
                _, found, where = line.rstrip("\n").partition(RUN_FOLDER)
                if found:
                    folder = Path(where)
                on_line(line.rstrip("\n"))
        finally:
            log.kill()
            log.wait()
        try:
            run = _flwr(["list", link, "--run-id", run_id, "--format", "json"], environment)
            status, _, sub_status = str(run["runs"][0]["status"]).partition(":")
            if status == "finished":
                details = str(run["runs"][0].get("status-details", ""))
                return Outcome(run_id, sub_status, details, folder)
            lost = None
        except RunError:
            lost = time.monotonic() if lost is None else lost
            if time.monotonic() - lost > _GIVE_UP:
                raise
        time.sleep(2.0)


def _command() -> list[str]:
    """``flwr`` of this very environment."""
    return [sys.executable, "-m", "flwr.cli.app"]


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)  # flwr starts flower-superlink from PATH
    return {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        **(more or {}),
    }


def _flwr(arguments: list[str], environment: Mapping[str, str] | None) -> dict[str, Any]:
    """Run one command of flwr; the JSON object that it prints."""
    done = subprocess.run(
        [*_command(), *arguments],
        env=_environment(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except ValueError:
        answer = {}
    if done.returncode or not answer.get("success"):
        text = str(answer.get("error-message") or done.stderr.strip() or done.stdout.strip())
        raise RunError(f"flwr {arguments[0]}: {' '.join(text.split()) or 'no answer'}")
    return answer
