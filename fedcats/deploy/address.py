"""``host:port`` as it may stand in a start script, a certificate and nginx's configuration."""

import ipaddress
import re
from dataclasses import dataclass

from fedcats.errors import UserError

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)({_LABEL}\.)*(?![0-9]+\Z){_LABEL}")


@dataclass(frozen=True)
class Address:
    """Where a SuperLink is reached; ``str`` gives ``host:port``.

    Attributes
    ----------
    host
        A name, or an IP address (version 6 without brackets).
    port
        1 .. 65535
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """From ``host:port``, ``1.2.3.4:port`` or ``[1::2]:port``; UserError for anything else."""
        host, _, port = text.rpartition(":")
        if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise _wrong(text)
        if host.startswith("[") and host.endswith("]"):
            return cls(_ip(host[1:-1], text, 6), int(port))
        if not _HOST.fullmatch(host):
            host = _ip(host, text, 4)
        return cls(host, int(port))


def bracketed(host: str) -> str:
    """As it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def listening(text: str) -> str:
    """An IP address of this machine to listen on; UserError for anything else."""
    try:
        return _ip(text, text)
    except UserError:
        raise UserError(f"--listen {text!a}: must be an IP address, 0.0.0.0 for all") from None


def _ip(text: str, whole: str, version: int | None = None) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _wrong(whole) from None
    if getattr(address, "scope_id", None) or version not in (None, address.version):
        raise _wrong(whole)
    return str(address)


def _wrong(text: str) -> UserError:
    return UserError(
        f"--address {text!a}: must be host:port with a port of 1 .. 65535, for example "
        "fl.example.org:8443, 192.0.2.1:8443 or [2001:db8::1]:8443"
    )
