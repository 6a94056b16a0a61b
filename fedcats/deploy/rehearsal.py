"""A whole federation on the loopback of one machine, run by the very scripts that sites get."""

import contextlib
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from fedcats import environment
from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.config.schema import Config
from fedcats.deploy import guard
from fedcats.deploy.files import LINK, write_federation
from fedcats.errors import RunError
from fedcats.experiment.inputs import deal_out, decoded, make_source
from fedcats.experiment.run import run
from fedcats.federated import superlink
from fedcats.home import home, runs
from fedcats.report import Progress

_START_SECONDS = 90.0
_STOP_SECONDS = 5.0


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Loopback:
    """A whole federation on this machine; leaving the context stops all of it.

    So does the end of this process, even by SIGKILL (see `fedcats.deploy.guard`).

    Parameters
    ----------
    folder
        Where the federation's files are written; must not exist.
    photos
        For each site, the folder with its photos.
    server_home
        ``FEDCATS_HOME`` of the server's part. Each site has one of its own.
    mark
        What its processes have in their environment; by default one of its own.

    Attributes
    ----------
    processes
        By name: ``gate``, ``superlink``, ``superexec``, ``node-0`` ..
    port, inner
        Where the gate and the SuperLink listen.
    """

    def __init__(
        self, folder: Path, photos: Sequence[Path], server_home: Path, mark: str | None = None
    ) -> None:
        self.folder = folder
        self.port, self.inner = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._photos = list(photos)
        self._server_home = server_home
        self._mark = mark or secrets.token_hex(16)
        self._guard: subprocess.Popen[bytes] | None = None
        self.environment = {"FLWR_HOME": str(folder / "control")}

    def __enter__(self) -> "Loopback":
        write_federation(
            self.folder,
            len(self._photos),
            f"127.0.0.1:{self.port}",
            listen="127.0.0.1",
            inner=self.inner,
        )
        self._guard = guard.watch(self._mark)
        try:
            for name in ("gate", "superlink", "superexec"):
                self.start(name)
            self.wait_for("gate", "superlink")
            self.script("control/register.sh")
            for number in range(len(self._photos)):
                self.start(f"node-{number}")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, **environment: str) -> None:
        """Start (or start again) one of the programs; its output goes to ``NAME.log``."""
        if name.startswith("node-"):
            number = int(name.removeprefix("node-"))
            command = [str(self.folder / name / "supernode.sh"), str(self._photos[number])]
            environment.setdefault("SUPERNODE_PORT", str(free_port()))
            environment["FEDCATS_HOME"] = str(self.folder / name / "home")
        else:
            command = [str(self.folder / "server" / f"{name}.sh")]
            environment["FEDCATS_HOME"] = str(self._server_home)
        self.processes[name] = self.launch(name, command, environment)

    def launch(
        self, log: str, command: list[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command that belongs to the federation: it ends with it at the latest."""
        with (self.folder / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                command,
                env=self.environment_of(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def script(self, name: str) -> None:
        """Run one of the scripts to its end."""
        done = subprocess.run(
            [str(self.folder / name)],
            env=self.environment_of({}),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr + done.stdout).strip().splitlines() or ["nothing"]
            raise RunError(f"{name} failed: {said[-1]}")

    def log(self, name: str) -> str:
        """What the program has written so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def submit(self, overrides: Sequence[str]) -> str:
        """Submit a run to this federation; its id."""
        return superlink.submit(LINK, overrides, environment=self.environment)

    def follow(
        self, run_id: str, on_line: Callable[[str], None] = lambda _: None
    ) -> superlink.Outcome:
        """Wait for the end of a run."""
        return superlink.follow(run_id, LINK, on_line, self.environment)

    def kill(self, name: str) -> None:
        """SIGKILL, as when a machine loses its power: the program and all that it started."""
        process = self.processes.pop(name)
        victims = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()

    def stop(self) -> None:
        """End everything that this federation started, wherever it went."""
        # SuperNodes first: they say goodbye to the SuperLink.
        for name in sorted(self.processes, key=lambda name: not name.startswith("node-")):
            self.processes[name].terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()
            process.wait()
        self.processes.clear()
        if self._guard is not None:
            self._guard.communicate()  # closes its standard input, so it kills what is left

    def members(self) -> list[psutil.Process]:
        """All living processes of this federation: they have its mark in their environment."""
        return guard.members(self._mark)

    def environment_of(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What its programs are started with."""
        scripts = str(Path(sys.executable).parent)
        return {
            **os.environ,
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
            "PYTHONPATH": environment.import_path(),
            "PYTHONSAFEPATH": "1",
            guard.MARK: self._mark,
            **(more or {}),
        }

    def wait_for(self, *names: str) -> None:
        """Until the SuperLink answers through the gate."""
        context = ssl.create_default_context(cafile=str(self.folder / "server/ca.crt"))
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with (
                contextlib.suppress(OSError),  # an answer of the gate's own too
                urllib.request.urlopen(
                    f"https://127.0.0.1:{self.port}/health", context=context, timeout=2.0
                ),
            ):
                return
            for name in names:
                if self.processes[name].poll() is not None or time.monotonic() > deadline:
                    said = self.log(name).strip().splitlines() or ["nothing"]
                    raise RunError(f"the {name} did not start: {said[-1]}")
            time.sleep(0.2)


def write_photos(config: Config, folder: Path) -> tuple[list[Path], Path]:
    """Put each shard of the configuration's partition into a folder, and the test photos.

    Files are numbered, so that a site sees its photos in the order of the shard.

    Returns
    -------
    (folders of the sites, folder of the server)
    """
    progress = Progress()
    source = make_source(config, progress)
    dataset = decoded(config, source, progress)
    parts = {
        f"site-{number}": ("train", dataset.train.subset(indices))
        for number, indices in enumerate(deal_out(config, dataset))
    }
    parts["server"] = ("test", dataset.test)
    for name, (part, images) in parts.items():
        for number, (file, label) in enumerate(zip(images.files, images.labels, strict=True)):
            path = (
                folder / name / part / dataset.classes[label] / f"{number:06d}{Path(file).suffix}"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read(file))
    *sites, server = (folder / name for name in parts)
    return sites, server


def rehearse(
    overrides: Sequence[str],
    say: Callable[[str], None] = environment.say,
    on_line: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Deploy on the loopback, run there, simulate the same experiment, compare byte for byte.

    Parameters
    ----------
    overrides
        As after ``fedcats``; the partition says how many sites there are.
    say, on_line
        Receive the steps, and the lines of the run's log.

    Returns
    -------
    dict
        ``models`` (names of the files that are the same), ``simulation`` and ``federation`` (run
        folders).

    Raises
    ------
    RunError
        When the run fails, or a merged model differs.
    """
    raw = compose_config([*overrides, "mode=federated", "save_models=all"])
    config = load(raw)
    if config.strategy.secure:  # the server of the sites has the merged model only
        raw = compose_config([*overrides, "mode=federated", "save_models=merged"])
    mark = secrets.token_hex(16)
    with guard.passing_folder(mark) as place:
        sites, server = write_photos(config, place / "photos")
        say(f"federation of {len(sites)} SuperNodes on the loopback: gate, TLS, keys, isolation")
        with Loopback(place / "federation", sites, home(), mark) as federation:
            run_id = federation.submit(at_sites(overrides, server))
            say(f"run {run_id}")
            outcome = federation.follow(run_id, on_line)
        if outcome.status != "completed" or outcome.folder is None:
            raise RunError(f"the run on the federation {outcome.status}: {outcome.details}")
    simulation = runs() / f"simulation-{secrets.token_hex(4)}"
    say(f"simulation of {len(sites)} clients: {simulation}")
    run(raw, simulation)
    same = compare_models(simulation, outcome.folder)
    return {"models": same, "simulation": str(simulation), "federation": str(outcome.folder)}


def at_sites(overrides: Sequence[str], server: Path) -> list[str]:
    """The overrides for a real federation: without partition, with the server's test photos."""
    elsewhere = {"partition", "data", "mode", "save_models", "runner"}
    kept = []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        stays = key in ("runner.threads", "runner.device")  # the same bytes need the same threads
        if stays or key.partition(".")[0].partition("@")[0] not in elsewhere:
            kept.append(override)
    return [*kept, "mode=federated", "save_models=all", "data=folder", f"data.root={server}"]


def compare_models(one: Path, other: Path) -> list[str]:
    """Names of the weight files of two runs; RunError when they are not the same bytes."""
    names = sorted(path.name for path in (one / "models").iterdir())
    if not names or names != sorted(path.name for path in (other / "models").iterdir()):
        raise RunError(f"{one} and {other} hold other models")
    for name in names:
        if (one / "models" / name).read_bytes() != (other / "models" / name).read_bytes():
            raise RunError(f"{name} differs between {one} and {other}")
    return names
