"""Keys and certificates of a federation: elliptic curve P-384, in PEM, keys without a password."""

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey
LONGEST = 3650
"""Days: how long the authority's certificate is valid, so none that it signs is for longer."""


def new_key() -> Key:
    """A new private key."""
    return ec.generate_private_key(ec.SECP384R1())


def authority(key: Key) -> x509.Certificate:
    """The certificate that all of a federation trust."""
    name = _name("fedcats federation")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(name, name, key, LONGEST)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def server(
    key: Key, names: Sequence[str], ca_key: Key, ca: x509.Certificate, days: int
) -> x509.Certificate:
    """The certificate of the gate and of the SuperLink behind it, under these names."""
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(_name("fedcats superlink"), ca.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_names(names)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def control(key: Key, days: int) -> x509.Certificate:
    """The certificate of the control machine.

    It signs itself, and the gate trusts this very one: a new one locks the old one out.
    """
    name = _name("fedcats control")
    return (
        _builder(name, name, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )


def hosts(content: bytes) -> list[str]:
    """The names in a server's certificate."""
    extensions = x509.load_pem_x509_certificate(content).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def pem(certificate: x509.Certificate) -> bytes:
    """As a file has it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def private(
    key: Key, form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8
) -> bytes:
    """As a file has it, without a password."""
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def now() -> datetime.datetime:
    """The time from which certificates count."""
    return datetime.datetime.now(datetime.UTC)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(**allowed: bool) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**(dict.fromkeys(every.split(), False) | allowed))


def _builder(subject: x509.Name, issuer: x509.Name, key: Key, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now() + datetime.timedelta(days=days))
    )


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names
