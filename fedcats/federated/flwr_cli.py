"""Flower's command line, which shows the certificate of the control machine to a federation's gate.

It has no option for that. Where ``FLWR_HOME`` holds ``control.key``, beside ``config.toml``, it
trusts ``ca.crt`` and shows ``control.crt`` of that folder; elsewhere it is ``flwr``.
"""

import os
import ssl
import sys
from pathlib import Path
from typing import Any

from flwr.cli.app import app
from flwr.supercore.control import ControlHttpClient


def show_certificate(folder: Path) -> None:
    """From here on, to each SuperLink with TLS for which no ``root-certificates`` are named."""
    context = ssl.create_default_context(cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "control.crt", folder / "control.key")
    plain = ControlHttpClient.__init__

    def __init__(self: ControlHttpClient, *arguments: Any, **options: Any) -> None:
        if options.get("verify") is True:
            options["verify"] = context
        plain(self, *arguments, **options)

    ControlHttpClient.__init__ = __init__  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    if (home := os.environ.get("FLWR_HOME")) and (Path(home) / "control.key").is_file():
        show_certificate(Path(home))
    sys.argv[0] = "flwr"
    app()
