"""The package as it is built: from the checkout and from its own source archive, used outside."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import TINY, TINY_DRAWINGS, check_results

ROOT = Path(__file__).parent.parent


def build(kind: str, root: Path, out: Path) -> Path:
    code = f"import hatchling.build as b; print(b.build_{kind}({str(out)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return out / done.stdout.split()[-1]


@pytest.mark.slow
def test_the_wheel_works_outside_a_checkout(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path)) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    wheel = build("wheel", source, tmp_path)
    names = {*zipfile.ZipFile(wheel).namelist()}
    (tmp_path / "direct").mkdir()
    assert names == {*zipfile.ZipFile(build("wheel", ROOT, tmp_path / "direct")).namelist()}
    conf = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"fedcats/{name}" for name in conf} <= names
    assert not any(name.startswith(("tests", "docs", "notebooks")) for name in names)
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    where = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "empty").mkdir()

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", *command], cwd=tmp_path / "empty", env=where,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path / "site") in run("-c", "import fedcats; print(fedcats.__file__)")
    settings = ["train.epochs=1", "runner=local", "mode=federated"]
    out = run("-m", "fedcats.cli", *TINY, *TINY_DRAWINGS, *settings)
    folder = Path(out.splitlines()[-1])
    assert folder.is_relative_to(tmp_path / "empty")
    check_results(folder)
    assert "fedcats 0.1.0" in (folder / "report.html").read_text()
    assert "1 run, " in run("-m", "fedcats.cli", "runs")
    assert run("-m", "fedcats.cli", "app", "app").strip() == str(tmp_path / "empty/app")
    assert bundle(tmp_path / "empty/app", tmp_path / "site") == bundle(ROOT, ROOT)


def test_what_the_dockerfile_copies_is_enough_to_set_up(tmp_path: Path) -> None:
    """As far as that goes without Docker: its steps were done by hand in an empty folder."""
    text = (ROOT / "Dockerfile").read_text()
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    assert {*copied} == kept
    for name in copied:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    built = {*zipfile.ZipFile(build("wheel", tmp_path, tmp_path / "dist")).namelist()}
    assert {"fedcats/cli/run.py", "fedcats/conf/config.yaml"} <= built
    make = ["make", "--dry-run", "setup"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--require-hashes --requirement requirements.lock" in done.stdout
    assert "://" not in text


def bundle(app: Path, where: Path) -> dict[str, str]:
    """What ``flwr run`` would send, each file by its hash."""
    code = (
        "import sys, zipfile, io, json, hashlib, pathlib\n"
        "from flwr.cli import build, config_utils\n"
        "app = pathlib.Path(sys.argv[1]); config_utils.load_and_validate(app / 'pyproject.toml')\n"
        "made = zipfile.ZipFile(io.BytesIO(build.build_fab_from_disk(app)))\n"
        "of = {n: hashlib.sha256(made.read(n)).hexdigest() for n in made.namelist()}\n"
        "print(json.dumps(of))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(app)], env={**os.environ, "PYTHONPATH": str(where)},
        cwd=app, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found
