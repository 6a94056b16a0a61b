"""Runs under ``flwr run``: submit one, follow it, and learn how it ended.

Flower's own command line is the interface: it exits with 0 however a run ends, so what a run came
to is read from ``flwr list``.
"""

import contextlib
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedcats.config import paths
from fedcats.config.load import load
from fedcats.environment import say
from fedcats.errors import RunError, UserError
from fedcats.federated.app import write_app
from fedcats.federated.flower_words import FINISHED, OWN_LINES, no_superlink
from fedcats.federated.quiet import default_workers
from fedcats.home import home
from fedcats.models.names import WEIGHTS
from fedcats.results import Results

RUN_FOLDER = "fedcats: run folder: "
"""What the ServerApp prints before the folder of a run."""

_ERROR = re.compile(r"fedcats: error (\d): (.*)")
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
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
    error
        The exit code and the line with which fedcats itself ended the run.
    """

    run_id: str
    status: str
    details: str
    folder: Path | None
    error: tuple[int, str] | None = None


def run_on_superlink(raw: DictConfig, overrides: Sequence[str], folder: Path) -> Results:
    """Submit an experiment (``runner=flwr``), follow it, and take its results.

    Parameters
    ----------
    raw
        The composed configuration.
    overrides
        From which the ServerApp composes it again.
    folder
        Where the results go; the machine of the SuperLink must see it too.

    Returns
    -------
    dict
        What ``results.json`` holds.

    Raises
    ------
    UserError, RunError
        With the run's own line when it failed. When this is interrupted, so is the run.
    """
    from fedcats.report import print_summary

    config = load(raw)
    link, workers = config.runner.superlink, config.runner.workers or default_workers()
    if config.mode in ("compare", "explain"):
        workers = max(1, workers - 1)  # the baseline keeps one core busy
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    results = folder / "results.json"
    results.unlink(missing_ok=True)  # of an earlier run
    ticket = folder / f".run-{secrets.token_hex(8)}"
    ticket.touch()
    running = False

    def show(line: str) -> None:
        nonlocal running
        if line.startswith("fedcats: "):
            running = line.startswith(RUN_FOLDER)  # after an error there are only tracebacks
        elif config.verbose or (running and not OWN_LINES.match(line)):
            say(_COLOURS.sub("", line), error=True)

    try:
        run_id = submit(
            link,
            [*overrides, *_absolute_paths(raw)],
            home=home(),
            ticket=ticket,
            supernodes=getattr(config.partition, "num_shards", None),
            workers=workers,
        )
        say(f"run {run_id} on runner.superlink={link}", error=True)
        try:
            outcome = follow(run_id, link, show)
        except KeyboardInterrupt:
            with contextlib.suppress(RunError):
                _flwr(["stop", run_id, link, "--format", "json"], None)
            raise
    finally:
        ticket.unlink()
    if outcome.error:
        code, text = outcome.error
        raise (UserError if code == UserError.exit_code else RunError)(text)
    if outcome.status != "completed" or not results.is_file():
        raise RunError(f"run {run_id} {outcome.status}: {outcome.details or 'without results'}")
    taken: Results = json.loads(results.read_text(encoding="utf-8"))
    print_summary(taken, folder)
    return taken


def _absolute_paths(raw: DictConfig) -> list[str]:
    """Overrides that replace relative paths: the SuperLink was started elsewhere."""
    config = load(raw)
    found = {}
    data = config.data.settings
    if root := data.get("root"):
        found["data.root"] = root
    if (repo := data.get("repo")) and Path(repo).exists():
        found["data.repo"] = repo
    if config.model.weights not in WEIGHTS:
        found["model.weights"] = config.model.weights
    absolute = {key: paths.literal(str(Path(path).absolute())) for key, path in found.items()}
    return [f"{key}={paths.quote(path)}" for key, path in absolute.items()]


def submit(
    link: str,
    overrides: Sequence[str],
    *,
    home: Path | None = None,
    ticket: Path | None = None,
    supernodes: int | None = None,
    workers: int | None = None,
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
    ticket
        A file in the folder for the results; by default that is one of `fedcats.home.runs`.
    supernodes
        How many to simulate; where they are real, Flower does not look at it.
    workers
        How many of them train at once; by default one for each core.
    environment
        Beside or instead of this process's own, e.g. ``FLWR_HOME``.
    """
    settings = {
        "overrides": shlex.join(overrides),
        "home": str(home or ""),
        "ticket": str(ticket or ""),
        "modules": "" if re.search("[\udc80-\udcff]", str(Path.cwd())) else str(Path.cwd()),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.toml"
        # A JSON string is a TOML string too, but for its surrogates.
        lines = [f"{k} = {json.dumps(text, ensure_ascii=False)}\n" for k, text in settings.items()]
        try:
            file.write_text("".join(lines), encoding="utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                f"runner=flwr: {settings['overrides']}: Flower takes UTF-8 only"
            ) from error
        write_app(app := Path(folder) / "app")
        command = [
            "run",
            str(app),
            link,
            "--format",
            "json",
            "--run-config",
            str(file),
        ]
        if supernodes is not None:
            resources = f"num-supernodes={supernodes} client-resources-num-cpus=1"
            if workers is not None:
                resources += f" init-args-num-cpus={workers}"
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
    error: tuple[int, str] | None = None
    seen = 0
    lost: float | None = None
    while True:
        log = subprocess.Popen(
            [*_command(), "log", run_id, link, "--stream"],
            env=_environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
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
                if found_error := _ERROR.match(line):
                    error = int(found_error[1]), found_error[2]
                on_line(line.rstrip("\n"))
        finally:
            log.kill()
            log.wait()
        try:
            run = _flwr(["list", link, "--run-id", run_id, "--format", "json"], environment)
            status, _, sub_status = str(run["runs"][0]["status"]).partition(":")
            if status == FINISHED:
                details = str(run["runs"][0].get("status-details", ""))
                return Outcome(run_id, sub_status, details, folder, error)
            lost = None
        except RunError:
            lost = time.monotonic() if lost is None else lost
            if time.monotonic() - lost > _GIVE_UP:
                raise
        time.sleep(2.0)


def _command() -> list[str]:
    """``flwr`` of this very environment, by path: fedcats itself need not be importable."""
    return [sys.executable, str(Path(__file__).with_name("flwr_cli.py"))]


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)  # flwr starts flower-superlink from PATH
    return {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PYTHONSAFEPATH": "1",  # of the SuperLink too: nothing of the working folder is imported
        "PYTHONUTF8": "1",
        **(more or {}),
    }


def _flwr(arguments: list[str], environment: Mapping[str, str] | None) -> dict[str, Any]:
    """Run one command of flwr; the JSON object that it prints."""
    done = subprocess.run(
        [*_command(), *arguments],
        env=_environment(environment),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    start = done.stdout.find("{")
    try:
        answer: dict[str, Any] = json.loads(done.stdout[start:]) if start >= 0 else {}
    except ValueError:
        answer = {}
    if done.returncode or not answer.get("success"):
        text = str(answer.get("error-message") or done.stderr.strip() or done.stdout.strip())
        if unknown := no_superlink(text):
            raise UserError(f"runner.superlink: {unknown}")
        raise RunError(f"flwr {arguments[0]}: {' '.join(text.split()) or 'no answer'}")
    return answer
