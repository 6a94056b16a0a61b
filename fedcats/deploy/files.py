"""What a federation needs on disk: one folder to keep, one for the server, one for each site."""

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jinja2
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedcats.deploy import certificates
from fedcats.deploy.address import Address, bracketed, listening
from fedcats.errors import UserError, first_line

LINK = "federation"
"""Name of the SuperLink in ``control/config.toml``."""

T = TypeVar("T")
_INNER = (9091, 9092)  # the SuperLink's port on the loopback; the second if the first is the gate's
_MOST_NODES = 1000
_SERVER = ("gate", "superlink", "superexec")
_templates = jinja2.Environment(
    loader=jinja2.PackageLoader("fedcats.deploy"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=jinja2.StrictUndefined,
)


def write_federation(
    folder: Path,
    nodes: int,
    address: str,
    *,
    listen: str | None = None,
    days: int = 365,
    inner: int | None = None,
) -> str:
    """Write all files of a federation.

    Parameters
    ----------
    folder
        Must not exist. Holds afterwards ``ca`` (to lock away), ``server`` (for the machine of the
        SuperLink), ``node-0`` .. (one for each site) and ``control`` (for whoever submits runs).
    nodes
        Number of sites.
    address
        ``host:port`` under which the sites reach the gate; the certificate is made for it.
    listen
        The IP address on which the gate listens; by default on all.
    days
        How long the certificates of server and control machine are valid.
    inner
        The port of the loopback on which the SuperLink listens.

    Returns
    -------
    str
        The last day of those certificates.

    Raises
    ------
    UserError
        When the folder exists, or for a number or an address that is not allowed.

    Notes
    -----
    Folders and secrets are private to the user (0700, 0600).
    """
    place = Address.parse(address)
    if listen is None:
        listen = "::" if ":" in place.host else "0.0.0.0"
    listen = listening(listen)
    _check_range("--nodes", nodes, _MOST_NODES)
    _check_range("--days", days, certificates.LONGEST)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: is there already; give the name of a new folder")
    text = {
        "address": str(place),
        "listen": bracketed(listen),
        "port": place.port,
        "inner": inner or _INNER[place.port == _INNER[0]],
        "nodes": nodes,
        "link": LINK,
        "photos": False,
    }
    folder.mkdir(parents=True, mode=0o700)
    try:
        for name in ("ca", "server", "control", *(f"node-{n}" for n in range(nodes))):
            (folder / name).mkdir(mode=0o700)
        _write_server(folder / "server", text)
        for number in range(nodes):
            _write_node(folder, number, text)
        _write_control(folder / "control", text)
        ca_key = certificates.new_key()
        _write(folder / "ca/ca.key", certificates.private(ca_key))
        _write(folder / "server/server.key", certificates.private(certificates.new_key()))
        _write_authority(folder, ca_key)
        return _certify(folder, [place.host], days)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # half a federation is none
        raise


def renew(folder: Path, days: int = 365) -> tuple[str, list[str]]:
    """Make new certificates for the server and the control machine; the sites keep their keys.

    The server's key stays; the control machine gets a new one, and the old one is of no use when
    the gate has the new certificate. The authority's certificate is made anew, with the same key,
    when it would end first: the sites' old one is good until it ends.

    Parameters
    ----------
    folder
        As `write_federation` has made it, with ``ca``, ``server`` and ``control``.
    days
        How long they are valid.

    Returns
    -------
    (their last day, files that are new: relative to the folder)

    Raises
    ------
    UserError
        When one of the folder's files is missing or cannot be read.
    """
    _check_range("--days", days, certificates.LONGEST)
    for place in ("ca", "server", "control"):
        if not (folder / place).is_dir():
            raise UserError(f"{folder / place}: missing; renew needs it as prepare has written it")
    hosts = _read(folder / "server/server.crt", certificates.hosts)
    ca_key = _key(folder / "ca/ca.key")
    left = _certificate(folder / "ca/ca.crt").not_valid_after_utc - certificates.now()
    _key(folder / "server/server.key")  # before anything is written
    new = ["server/server.crt", "server/control.crt", "server/ends"]
    new += ["control/control.crt", "control/control.key", "control/ends"]
    if left.days < days:
        new += [f"{place}/ca.crt" for place in _write_authority(folder, ca_key)]
    return _certify(folder, hosts, days), new


def _certify(folder: Path, hosts: list[str], days: int) -> str:
    """New certificates for the server and the control machine, a new key for the latter."""
    ca_key, ca = _key(folder / "ca/ca.key"), _certificate(folder / "ca/ca.crt")
    key, control_key = _key(folder / "server/server.key"), certificates.new_key()
    hosts = [*hosts, "localhost", "127.0.0.1"]  # by these the gate reaches the SuperLink
    server = certificates.server(key, hosts, ca_key, ca, days)
    control = certificates.control(control_key, days)
    _write(folder / "server/server.crt", certificates.pem(server), 0o644)
    for place in ("server", "control"):
        _write(folder / place / "control.crt", certificates.pem(control), 0o644)
        _write_end(folder / place, server)
    _write(folder / "control/control.key", certificates.private(control_key))
    return f"{server.not_valid_after_utc:%Y-%m-%d}"


def _write_authority(folder: Path, ca_key: certificates.Key) -> list[str]:
    """Give everybody the certificate to trust; the names of their folders."""
    ca = certificates.authority(ca_key)
    places = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for place in places:
        _write(folder / place / "ca.crt", certificates.pem(ca), 0o644)
        if place.startswith("node-"):
            _write_end(folder / place, ca)
    return places


def _write_end(folder: Path, certificate: x509.Certificate) -> None:
    """For the scripts, which have no program that reads certificates."""
    end = certificate.not_valid_after_utc
    _write(folder / "ends", f"{end.timestamp():.0f} {end:%Y-%m-%d}\n".encode(), 0o644)


def _write_server(folder: Path, text: dict[str, object]) -> None:
    _write(folder / "superexec.secret", secrets.token_hex(32).encode())
    _write(folder / "gate.conf", _fill("gate.conf", **text))
    _script(folder, "gate", what="The gate: sites and the control machine come in here.", **text)
    _script(folder, "superlink", what="The SuperLink, on the loopback.", **text)
    what = "The SuperExec: starts the server's part of each run, beside the SuperLink."
    _script(folder, "superexec", what=what, **text)
    _script(folder, "unit", programs=", ".join(_SERVER), example="gate", **text)


def _write_node(folder: Path, number: int, text: dict[str, object]) -> None:
    key = certificates.new_key()
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    node = folder / f"node-{number}"
    _write(node / "node.key", certificates.private(key, serialization.PrivateFormat.OpenSSH))
    _write(node / "node.pub", public + b"\n", 0o644)
    _write(folder / f"control/node-{number}.pub", public + b"\n", 0o644)
    text = {**text, "number": number, "photos": True}
    what = f"The SuperNode of site {number}; its argument is the folder with its photos."
    _script(node, "supernode", what=what, **text)
    _script(node, "unit", programs="supernode", example="supernode /photos", **text)


def _write_control(folder: Path, text: dict[str, object]) -> None:
    _write(folder / "config.toml", _fill("config.toml", **text))
    _script(folder, "flwr", **text)
    _script(folder, "register", what="Admits the sites' keys: once, with the gate open.", **text)


def _check_range(option: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise UserError(f"{option} {value}: must be 1 .. {most}")


def _key(path: Path) -> certificates.Key:
    key = _read(path, lambda content: serialization.load_pem_private_key(content, None))
    if not isinstance(key, certificates.Key):
        raise UserError(f"{path}: not a key that fedcats.deploy made")
    return key


def _certificate(path: Path) -> x509.Certificate:
    return _read(path, x509.load_pem_x509_certificate)


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise UserError(f"{path}: {first_line(error)}") from None


def _fill(name: str, **text: object) -> bytes:
    return _templates.get_template(name).render(**text).encode()


def _script(folder: Path, name: str, **text: object) -> None:
    _write(folder / f"{name}.sh", _fill(f"{name}.sh", **text), 0o700)


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Never readable by others, not even for a moment, and never half written."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    new.replace(path)
