"""``python -m fedcats.deploy``: prepare a federation, or rehearse one on this machine."""

import argparse
import sys
from pathlib import Path

from fedcats.environment import say, settle, tell
from fedcats.errors import RunError, UserError

_PREPARED = """\
{folder} is ready for {nodes} sites:
  ca/        lock it away: who has ca.key can pretend to be your server
  server/    to the machine of the SuperLink: ./superlink.sh and ./superexec.sh
  node-K/    to site K, by a safe way: ./supernode.sh /folder/with/photos
  control/   to whoever submits runs: ./register.sh once, then
             FLWR_HOME=.../control flwr run CHECKOUT --stream \\
               -c 'overrides="data=folder data.root=/test/photos"'
Whoever reaches port {port} of the SuperLink can submit runs and register keys: admit the sites
and the control machine only (firewall, VPN or proxy)."""


def main() -> int:
    """Parse, do, report; exit code 2 for a user's mistake, 1 for a failure."""
    settle()
    parser = argparse.ArgumentParser(prog="python -m fedcats.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write certificates, keys and start scripts")
    prepare.add_argument("folder", type=Path, help="a new folder")
    prepare.add_argument("--nodes", type=int, required=True, help="number of sites")
    prepare.add_argument("--address", required=True, help="host:port of the SuperLink")
    prepare.add_argument("--listen", default="0.0.0.0", help="where it listens (0.0.0.0)")
    prepare.add_argument("--days", type=int, default=365, help="validity of certificates (365)")
    rehearse = commands.add_parser(
        "rehearse", help="a federation on the loopback, compared with the simulation"
    )
    rehearse.add_argument("overrides", nargs="*", help="as after fedcats: partition.num_shards=3")
    arguments = parser.parse_args()
    try:
        if arguments.command == "prepare":
            from fedcats.deploy.files import write_federation

            folder: Path = arguments.folder.absolute()
            write_federation(
                folder,
                arguments.nodes,
                arguments.address,
                listen=arguments.listen,
                days=arguments.days,
            )
            port = arguments.address.rpartition(":")[2]
            text = _PREPARED.format(folder=folder, nodes=arguments.nodes, port=port)
            for line in text.splitlines():
                say(line)
        else:
            from fedcats.deploy.rehearsal import rehearse as rehearse_now

            result = rehearse_now(arguments.overrides, on_line=lambda line: say(f"  {line}"))
            say(f"simulation: {result['simulation']}")
            say(f"federation: {result['federation']}")
            say(f"the same bytes: {', '.join(result['models'])}")
    except (UserError, RunError, OSError) as error:
        return tell(error, "fedcats.deploy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
