"""What a federation needs on disk: one folder to keep, one for the server, one for each site."""

import datetime
import ipaddress
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedcats.errors import UserError

LINK = "federation"
"""Name of the SuperLink in ``control/config.toml``."""

_HEADER = """\
#!/bin/sh
# {what}
set -eu
cd "$(dirname "$0")"
umask 077
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_HOME="$PWD/flower" FEDCATS_HOME="${{FEDCATS_HOME:-$PWD/home}}"
"""

_SUPERLINK = (
    _HEADER
    + """\
exec flower-superlink --host "{listen}" --port {port} \\
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
    --enable-supernode-auth --superexec-auth-secret-file superexec.secret \\
    --isolation process --database superlink.db --disable-runtime-dependency-installation
"""
)

_SUPEREXEC = (
    _HEADER
    + """\
exec flower-superexec --root-certificates ca.crt --runtime-api-address "{address}" \\
    --superexec-auth-secret-file superexec.secret
"""
)

_SUPERNODE = (
    _HEADER
    + """\
photos="${{1:?give the folder with the photos of this site: ./supernode.sh /photos}}"
exec flower-supernode --root-certificates ca.crt --superlink "{address}" \\
    --auth-supernode-private-key node.key --host 127.0.0.1 --port "${{SUPERNODE_PORT:-9094}}" \\
    --node-config "partition-id={number} num-partitions={nodes} data-path='$photos'"
"""
)

_CONFIG = """\
[superlink]
default = "{link}"

[superlink.{link}]
address = "{address}"
root-certificates = {certificate}
"""

_REGISTER = """\
#!/bin/sh
# Admits the sites' keys. Once, from where the SuperLink can be reached.
set -eu
cd "$(dirname "$0")"
export FLWR_HOME="$PWD" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
for key in node-*.pub; do flwr supernode register "$key" {link}; done
"""


def write_federation(
    folder: Path, nodes: int, address: str, *, listen: str = "0.0.0.0", days: int = 365
) -> None:
    """Write all files of a federation.

    Parameters
    ----------
    folder
        Must not exist. Holds afterwards ``ca`` (to lock away), ``server`` (for the machine of the
        SuperLink), ``node-0`` .. (one for each site) and ``control`` (for whoever submits runs).
    nodes
        Number of sites.
    address
        ``host:port`` under which the sites reach the SuperLink; the certificate is made for it.
    listen
        Where the SuperLink listens.
    days
        How long the certificates are valid.

    Raises
    ------
    UserError
        When the folder exists or the address is not ``host:port``.

    Notes
    -----
    Folders and secrets are private to the user (0700, 0600).
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address {address}: must be host:port, for example fl.example.org:8443")
    if nodes < 1:
        raise UserError(f"--nodes {nodes}: must be at least 1")
    if folder.exists():
        raise UserError(f"{folder}: is there already; give the name of a new folder")
    places = ["ca", "server", "control", *(f"node-{number}" for number in range(nodes))]
    for place in ("", *places):
        (folder / place).mkdir(parents=True, mode=0o700)

    ca_key, ca = _authority(days)
    server_key, server = _server_certificate(host, ca_key, ca, days)
    _write(folder / "ca/ca.key", _private(ca_key))
    for place in places:
        _write(folder / place / "ca.crt", _pem(ca), 0o644)
    _write(folder / "server/server.key", _private(server_key))
    _write(folder / "server/server.crt", _pem(server), 0o644)
    _write(folder / "server/superexec.secret", secrets.token_hex(32).encode())
    text = {"listen": listen, "port": port, "address": address, "nodes": nodes, "link": LINK}
    what = "The SuperLink: sites and the control API connect to it."
    _script(folder / "server/superlink.sh", _SUPERLINK.format(what=what, **text))
    what = "The SuperExec: starts the server's part of each run, beside the SuperLink."
    _script(folder / "server/superexec.sh", _SUPEREXEC.format(what=what, **text))
    for number in range(nodes):
        key = ec.generate_private_key(ec.SECP384R1())
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        node = folder / f"node-{number}"
        _write(node / "node.key", _private(key, serialization.PrivateFormat.OpenSSH))
        _write(node / "node.pub", public + b"\n", 0o644)
        _write(folder / f"control/node-{number}.pub", public + b"\n", 0o644)
        what = f"The SuperNode of site {number}; its argument is the folder with its photos."
        _script(node / "supernode.sh", _SUPERNODE.format(what=what, number=number, **text))
    certificate = json.dumps(str((folder / "control/ca.crt").absolute()))
    config = _CONFIG.format(certificate=certificate, **text)
    _write(folder / "control/config.toml", config.encode())
    _script(folder / "control/register.sh", _REGISTER.format(**text))


def _authority(days: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedcats federation")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return key, builder.sign(key, hashes.SHA256())


def _server_certificate(
    host: str, ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, days: int
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedcats superlink")])
    names = _names([host, "localhost", "127.0.0.1"])  # the SuperExec may use the loopback
    builder = (
        _builder(name, ca.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    )
    return key, builder.sign(ca_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host.strip("[]"))))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _script(path: Path, text: str) -> None:
    _write(path, text.encode(), 0o700)


def _write(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Never readable by others, not even for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
