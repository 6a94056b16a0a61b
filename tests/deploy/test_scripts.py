"""The scripts as a site gets them, with any path; what `prepare` refuses; how a rehearsal ends."""

import datetime
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import wait_until
from cryptography import x509
from flwr.common.config import parse_config_args
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcats.deploy import certificates, guard
from fedcats.deploy.address import Address
from fedcats.deploy.files import renew, write_federation
from fedcats.errors import UserError

PREPARE = [sys.executable, "-m", "fedcats.deploy", "prepare"]
ECHO = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('it\'s a "place"') / "federation"
    write_federation(folder, 1, "fl.example.org:8443")
    return folder


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which Flower's programs, and nginx, say what they are given."""
    place = tmp_path_factory.mktemp("programs")
    for name in ("flower-supernode", "flower-superlink", "flower-superexec", "nginx"):
        (place / name).write_text(ECHO)
        (place / name).chmod(0o755)
    return {"PATH": f"{place}:/usr/bin:/bin"}


def run(
    environment: dict[str, str], *command: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


names = st.text(
    st.characters(exclude_characters="/\x7f", exclude_categories=["Cs"], min_codepoint=32),
    min_size=1,
    max_size=40,
) | st.sampled_from(["$(touch hit)", "`touch hit`", "a'b", 'a"b', "a\\b", "-n", "a b ", "%s", "é"])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=names.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200))
def test_any_folder_of_photos_reaches_flower_as_it_is(
    prepared: Path, programs: dict[str, str], tmp_path: Path, name: str
) -> None:
    photos = tmp_path / name
    photos.mkdir(exist_ok=True)
    for given_as in (photos, name):  # absolute, and relative to where the script is called
        done = run(programs, prepared / "node-0/supernode.sh", f"./{name}" if given_as == name
                   else given_as, cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        arguments = json.loads(done.stdout)
        config = parse_config_args([arguments[arguments.index("--node-config") + 1]])
        assert Path(str(config.pop("data-path"))).samefile(photos)
        assert config == {"partition-id": 0, "num-partitions": 1}
    assert not (tmp_path / "hit").exists()
    assert not (prepared / "node-0/hit").exists()


@pytest.mark.parametrize(
    ("photos", "message"),
    [([], "give the folder"), (["nowhere"], "nowhere")]
    + [([f"two{one}"], "control character") for one in "\n\t\x1f\x7f"],
)
def test_a_folder_that_cannot_be_used_is_said(
    prepared: Path, programs: dict[str, str], tmp_path: Path, photos: list[str], message: str
) -> None:
    for one in ("", *"\n\t\x1f\x7f"):
        (tmp_path / f"two{one}").mkdir()
    done = run(programs, prepared / "node-0/supernode.sh", *photos, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout == ""


# --- what is refused -------------------------------------------------------------------------


WRONG_ADDRESSES = [
    *("", "host", ":1", "host:", "host:0", "host:65536", "host:99999", "host:-1", "host:+1"),
    *("host:x", "host:1 ", "host:１", "$(id):1", "`id`:1", "a;b:1", "a b:1", "a\nb:1", "a'b:1"),
    *('a"b:1', "a:1:1", "::1:1", "[::1]", "[::1:1", "[1.2.3.4]:1", "[fe80::1%eth0]:1", "1.2.3:1"),
    *("256.1.1.1:1", "-a:1", "a..b:1", "a.:1", "münchen.example:1", "x" * 64 + ":1"),
    ".".join(["x" * 60] * 5) + ":1",
]


@pytest.mark.parametrize("address", WRONG_ADDRESSES)
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match="must be host:port"):
        write_federation(tmp_path / "new", 1, address)
    assert not (tmp_path / "new").exists()


@given(st.text(max_size=30) | st.from_regex(r"[\S ]{1,20}:[0-9]{1,6}", fullmatch=True))
def test_what_is_taken_as_an_address_means_nothing_to_a_shell(text: str) -> None:
    try:
        address = Address.parse(text)
    except UserError:
        return
    assert set(str(address)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:[]"
    )
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("address", "listen", "san"),
    [
        ("fl.example.org:65535", "0.0.0.0", "fl.example.org"),
        ("Site_1:1", "0.0.0.0", "Site_1"),
        ("192.0.2.1:443", "0.0.0.0", "192.0.2.1"),
        ("[2001:DB8::1]:8443", "[::]", "2001:db8::1"),
    ],
)
def test_an_address_stands_in_the_certificate_and_the_configuration(
    tmp_path: Path, address: str, listen: str, san: str
) -> None:
    write_federation(tmp_path / "new", 1, address)
    certificate = x509.load_pem_x509_certificate((tmp_path / "new/server/server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san in [str(name.value) for name in names]
    port = address.rpartition(":")[2]
    assert f"listen {listen}:{port} ssl;" in (tmp_path / "new/server/gate.conf").read_text()
    assert address.lower() in (tmp_path / "new/node-0/supernode.sh").read_text().lower()


@pytest.mark.parametrize(
    "options",
    [["--days", "0"], ["--days", "-1"], ["--days", "3651"], ["--days", "9" * 30], ["--days", "x"],
     ["--nodes", "0"], ["--nodes", "-3"], ["--nodes", "1001"], ["--nodes", "1.5"],
     ["--listen", "$(id)"], ["--listen", "localhost"], ["--listen", ""], ["--listen", "1.2.3.4;"],
     ["--address", "host:0"]],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_option_is_one_line_and_nothing_is_written(
    tmp_path: Path, options: list[str]
) -> None:
    given_options = {"--nodes": "1", "--address": "host:1"} | {options[0]: options[1]}
    command = [*PREPARE, "new", *(f"{k}={v}" for k, v in given_options.items())]
    done = run({**os.environ}, *command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert options[0] in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- the end of certificates -----------------------------------------------------------------


@pytest.mark.parametrize(("days", "warned"), [(29, True), (32, False)])
@pytest.mark.parametrize("script", ["gate", "superlink", "superexec"])
def test_a_script_warns_before_the_certificates_end(
    tmp_path: Path, programs: dict[str, str], days: int, warned: bool, script: str
) -> None:
    folder = tmp_path / "new"
    day = write_federation(folder, 1, "host:1", days=days)
    said = run(programs, folder / "server" / f"{script}.sh").stderr
    assert (f"warning: the certificates that fedcats.deploy made for this folder end on {day}"
            in said) is warned  # fmt: skip
    assert "end on" not in run(programs, folder / "node-0/supernode.sh", tmp_path).stderr


def test_the_authority_is_renewed_in_time_with_its_key(
    tmp_path: Path, programs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(certificates.LONGEST - 20)
    with monkeypatch.context() as then:
        then.setattr(certificates, "now", lambda: past)
        write_federation(folder, 2, "host:1", days=3)
    assert "end on" in run(programs, folder / "node-0/supernode.sh", tmp_path).stderr
    old = x509.load_pem_x509_certificate((folder / "node-0/ca.crt").read_bytes())
    keys = {path: path.read_bytes() for path in folder.rglob("*.key")}
    _, new = renew(folder, 100)
    assert {"node-0/ca.crt", "node-1/ca.crt", "control/ca.crt", "ca/ca.crt"} <= set(new)
    assert "end on" not in run(programs, folder / "node-0/supernode.sh", tmp_path).stderr
    server = x509.load_pem_x509_certificate((folder / "server/server.crt").read_bytes())
    for ca in (old, x509.load_pem_x509_certificate((folder / "ca/ca.crt").read_bytes())):
        server.verify_directly_issued_by(ca)  # a site that has the old one only goes on
    changed = {path.name for path, content in keys.items() if path.read_bytes() != content}
    assert changed == {"control.key"}
    for path in folder.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "file", ["ca/ca.key", "ca/ca.crt", "server/server.crt", "server/server.key"]
)
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nx", "another's"])
def test_what_cannot_be_renewed_stays_as_it_is(
    prepared: Path, tmp_path: Path, file: str, content: bytes | str | None
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    if content is None:
        (folder / file).unlink()
    elif isinstance(content, bytes):
        (folder / file).write_bytes(content)
    else:  # a file of this federation, but for something else
        shutil.copy(folder / "control/config.toml", folder / file)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=file):
        renew(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["ca", "server", "control", "."])
def test_a_folder_of_which_a_part_is_elsewhere_is_not_renewed(
    prepared: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    (folder / place).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="renew needs it as prepare has written it"):
        renew(folder)


def test_prepare_and_renew_say_what_they_did(tmp_path: Path) -> None:
    command = [*PREPARE, "a b", "--nodes=1", "--address=host:1", "--days=20"]
    done = run({**os.environ}, *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    renewal = f"python -m fedcats.deploy renew '{tmp_path / 'a b'}'"
    assert renewal in done.stdout
    again = run({**os.environ}, *PREPARE[:-1], "renew", "a b", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "server/server.crt" in again.stdout
    assert run({**os.environ}, *command, cwd=tmp_path).returncode == 2  # it is there already


# --- the units -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["supernode", "gate", "superlink", "superexec"])
def test_a_unit_of_systemd_is_hardened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "new"
    write_federation(folder, 1, "host:443")
    (tmp_path / "photos").mkdir()
    place = folder / ("node-0" if name == "supernode" else "server")
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "FEDCATS_USER": "daemon"}
    arguments = [tmp_path / "photos"] if name == "supernode" else []
    done = run(environment, place / "unit.sh", name, *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in ("User=daemon", "NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=tmpfs",
                 f"BindPaths={place}"):  # fmt: skip
        assert line in lines
    capability = "CAP_NET_BIND_SERVICE" if name == "gate" else ""
    assert f"CapabilityBoundingSet={capability}" in lines
    read_only = next(line for line in lines if line.startswith("BindReadOnlyPaths="))
    assert (str(tmp_path / "photos") in read_only) is (name == "supernode")
    if verify := shutil.which("systemd-analyze"):
        unit = tmp_path / f"fedcats-{name}.service"
        unit.write_text(done.stdout)
        checked = run({**os.environ}, verify, "verify", unit)
        assert str(unit) not in checked.stderr


def test_no_unit_for_a_path_that_means_something_to_systemd(tmp_path: Path) -> None:
    write_federation(tmp_path / "new", 1, "host:1")
    (tmp_path / "100% mine").mkdir()
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = run(environment, tmp_path / "new/node-0/unit.sh", "supernode", tmp_path / "100% mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert "100% mine" in done.stderr


# --- what a rehearsal leaves -----------------------------------------------------------------

_REHEARSAL = """
import signal, sys, time
from fedcats.deploy import guard
for number in (signal.SIGHUP, signal.SIGQUIT):  # which nohup and shells may have switched off
    signal.signal(number, signal.SIG_DFL)
with guard.passing_folder("test") as folder:
    (folder / "photos").mkdir()
    (folder / "photos/cat.jpg").write_text("a cat")
    print(folder, flush=True)
    time.sleep(1000)
"""


def start_rehearsal(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """One that has just its folder, below that place."""
    rehearsal = subprocess.Popen(
        [sys.executable, "-c", _REHEARSAL],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert rehearsal.stdout is not None
    return rehearsal, Path(rehearsal.stdout.readline().strip())


@pytest.mark.flower
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_rehearsal_that_is_ended_leaves_no_photos_and_no_keys(
    tmp_path: Path, number: int
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    overrides = ["partition.num_shards=2", "runner=local", "data.train_per_class=40"]
    command = [sys.executable, "-m", "fedcats.deploy", "rehearse", *overrides]
    rehearsal = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_until(lambda: list(tmp_path.glob("fedcats-rehearsal-*/federation/node-1/node.key")))
        assert list(tmp_path.glob("fedcats-rehearsal-*/photos/site-*/train/*/*"))
        wait_until(lambda: any("nginx" in one.name() for one in guard.members("", str(tmp_path))))
    finally:
        os.killpg(rehearsal.pid, number)  # as a terminal does
    assert rehearsal.wait() != 0
    wait_until(lambda: not list(tmp_path.glob("fedcats-rehearsal-*")))
    assert guard.members("", str(tmp_path)) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_no_signal_keeps_its_folder(tmp_path: Path, number: int) -> None:
    rehearsal, folder = start_rehearsal(tmp_path)
    os.killpg(rehearsal.pid, number)
    assert rehearsal.wait() != 0
    wait_until(lambda: not folder.exists())


def test_what_a_killed_guard_left_goes_with_the_next_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    started, folders = zip(*(start_rehearsal(tmp_path) for _ in range(2)), strict=True)
    for process in [*psutil.Process(started[0].pid).children(), psutil.Process(started[0].pid)]:
        process.kill()
    started[0].wait()
    long_ago = time.time() - 3600
    for folder in folders:
        os.utime(folder, (long_ago, long_ago))
    assert folders[0].exists()
    with guard.passing_folder("other") as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folders[1], folder])  # one is still in use
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    started[1].kill()
    started[1].wait()
    wait_until(lambda: list(tmp_path.iterdir()) == [])
