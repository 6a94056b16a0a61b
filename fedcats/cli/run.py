"""The command ``fedcats``: what needs no Hydra is told apart here, so that it starts at once."""

import sys

from fedcats.environment import say, settle

AFTER = ("predict", "runs", "compare", "export", "app")
"""Commands that need no Hydra, see `fedcats.cli.after`; all else is a run to be made."""


def main() -> None:
    """Entry point of the console script."""
    settle()
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first == "--version":
        from importlib.metadata import version

        from fedcats import __version__

        others = (f"{name} {version(name)}" for name in ("flwr", "torch", "hydra-core"))
        say(f"fedcats {__version__} ({', '.join(others)})")
    elif first in AFTER:
        from fedcats.cli import after

        sys.exit(after.main(sys.argv[1:]))
    else:
        from fedcats.cli import job

        job.main()


if __name__ == "__main__":
    main()
