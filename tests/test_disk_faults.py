"""Every file operation of every command fails once: one line, exit 1 or 2, and nothing lost."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from faulty import Faulty

DRAWINGS = ["data.train_per_class=4", "data.test_per_class=3"]
RUN = [
    "fedcats", *TINY, *DRAWINGS, "mode=federated", "runner=local", "train.epochs=1",
    "hydra.run.dir=out",
]  # fmt: skip
DRAWN = [*RUN, "figures=[svg]"]
SHOW = ["fedcats-data", "show", *DRAWINGS, "partition.num_shards=2", "--out=sheets"]
KINDS = ("ENOSPC", "EROFS", "EACCES", "EIO", "EDQUOT", "EMFILE", "ENAMETOOLONG", "ELOOP")


@pytest.fixture(scope="module")
def go() -> Iterator[Faulty]:
    with Faulty() as faulty:
        yield faulty


def check(found: dict[str, Any], what: object) -> None:
    """No traceback ever; a failure has a line that says why."""
    said = f"{what}: {found}"
    assert "Traceback" not in found["err"], said
    assert found["code"] in (0, 1, 2), said
    if found["code"]:
        assert re.match(r"fedcats(-data|-store)?: .", found["err"].splitlines()[-1]), said


def distinct(events: list[str]) -> dict[str, int]:
    """The position of the first operation of each kind: files of one folder and suffix are one."""
    made_up = r"[0-9a-f]{8,}|\d{3,}|[a-z0-9_]{8}(?=/|$)|(?<=/)[^/]+(?=\.\w+$)"
    plain = [re.sub(made_up, "#", event) for event in events]
    return {event: plain.index(event) for event in plain}


def variables(folder: Path, **more: str) -> dict[str, Any]:
    return {"env": {"FEDCATS_HOME": str(folder / "home"), **more}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["fedcats-data", "check", *DRAWINGS],
        SHOW,
        ["fedcats-store", "list"],
        ["fedcats-store", "verify"],
        ["fedcats-store", "clear"],
    ],
)
def test_commands_beside_a_run(go: Faulty, tmp_path: Path, command: list[str]) -> None:
    first = go(command, tmp_path, **variables(tmp_path))
    assert first["code"] == 0, first["err"]
    for number, (event, position) in enumerate(distinct(first["events"]).items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        fault = ("", KINDS[number % len(KINDS)], position)
        check(go(command, folder, fault=fault, **variables(folder)), (event, fault))
        again = go(command, folder, **variables(folder))
        assert again["code"] == 0, (event, fault, again["err"])


@pytest.mark.slow
def test_a_run(go: Faulty, tmp_path: Path) -> None:
    """Whose training is in the store: it stays there, and results.json says how far it came."""
    first = go(RUN, tmp_path, **variables(tmp_path))
    assert first["code"] == 0, first["err"]
    store = {path.name for path in (tmp_path / "home" / "store").glob("*.safetensors")}
    kinds = itertools.cycle(KINDS)
    results = tmp_path / "out" / "results.json"
    known: set[str] = set()
    for command in (RUN, DRAWN):  # drawing takes as long as all else: only what it adds fails there
        go(command, tmp_path, **variables(tmp_path))
        again = go(command, tmp_path, **variables(tmp_path))
        assert json.loads(results.read_text())["store"]["trained"] == []
        for event, position in distinct(again["events"]).items():
            if event in known:
                continue
            known.add(event)
            fault = ("", next(kinds), position)
            before = results.read_bytes() if results.exists() else b""
            found = go(command, tmp_path, fault=fault, **variables(tmp_path))
            check(found, (event, fault))
            if not found["code"]:
                assert json.loads(results.read_text())["status"] == "complete"
            elif results.exists() and results.read_bytes() != before:
                assert json.loads(results.read_text())["status"] == "without its report"
                assert "results.json is there" in found["err"], (event, found)
    assert any("figures/" in event for event in known) and len(known) >= 20
    last = go(RUN, tmp_path, **variables(tmp_path))
    assert last["code"] == 0, last["err"]
    assert json.loads(results.read_text())["store"]["trained"] == []
    assert store <= {path.name for path in (tmp_path / "home" / "store").glob("*.safetensors")}


@pytest.mark.parametrize("most", [100, 60_000, 1_000_000])
def test_a_disk_that_is_full_after_some_bytes(go: Faulty, tmp_path: Path, most: int) -> None:
    found = go(DRAWN, tmp_path, bytes=most, **variables(tmp_path))
    check(found, most)
    assert found["code"] == 1
    assert not list(tmp_path.rglob("*.tmp"))


def place(folder: Path, kind: str) -> Path:
    """A path that is no folder to write to."""
    path = folder / kind
    if kind == "file":
        path.touch()
    elif kind == "dangling":
        path.symlink_to(folder / "nowhere" / "at" / "all")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "below-file":
        (folder / "plain").touch()
        path = folder / "plain" / "x"
    return {"proc": Path("/proc/fedcats"), "null": Path("/dev/null")}.get(kind, path)


@pytest.mark.parametrize("kind", ["file", "dangling", "loop", "below-file", "proc", "null"])
@pytest.mark.parametrize("variable", ["FEDCATS_HOME", "TMPDIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"])
def test_places_that_are_no_folders(go: Faulty, tmp_path: Path, variable: str, kind: str) -> None:
    """Before anything is trained; photos are decoded where their place is a good one."""
    case = {**variables(tmp_path)["env"], variable: str(place(tmp_path, kind)), "HOME": ""}
    for command in (SHOW, ["fedcats-store", "list"]):
        found = go(command, tmp_path, env=case)
        check(found, (command[0], variable, kind))
        if variable == "FEDCATS_HOME":
            assert found["code"] == 1, found
