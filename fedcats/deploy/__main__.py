"""``python -m fedcats.deploy``: prepare a federation, renew it, or rehearse one on this machine."""

import argparse
import shlex
import sys
from pathlib import Path

from fedcats.environment import say, settle, tell
from fedcats.errors import RunError, UserError

_PREPARED = """\
{folder} is ready for {nodes} sites:
  ca/        lock it away, with copies of server/ and control/ for renewals: who has ca.key can
             pretend to be your server
  server/    to the server, which needs nginx: ./gate.sh, ./superlink.sh and ./superexec.sh
  node-K/    to site K, by a safe way: ./supernode.sh /folder/with/photos
  control/   to whoever submits runs, and so runs code on the server and all sites:
             ./register.sh once, then
             ./flwr.sh run CHECKOUT --stream -c 'overrides="data=folder data.root=/test/photos"'
Each server/ and node-K/ has a unit.sh that prints a hardened systemd unit.
Open port {port} of the server to the sites and the control machine, and no other port."""
_ENDS = """\
The certificates of server and control machine end on {day}; before that:
python -m fedcats.deploy renew {folder}"""
_RENEWED = """\
New are {files}.
Bring them to where the others are, and start gate.sh and superlink.sh again; the old control.key
opens nothing from then on. Sites keep their keys{ca}."""


def main() -> int:
    """Parse, do, report; exit code 2 for a user's mistake, 1 for a failure."""
    settle()
    parser = argparse.ArgumentParser(prog="python -m fedcats.deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write certificates, keys and start scripts")
    prepare.add_argument("folder", type=Path, help="a new folder")
    prepare.add_argument("--nodes", type=int, required=True, help="number of sites")
    prepare.add_argument("--address", required=True, help="host:port of the server")
    prepare.add_argument("--listen", help="the IP address on which it listens (all)")
    renew = commands.add_parser("renew", help="new certificates; sites need not register again")
    renew.add_argument("folder", type=Path, help="what prepare has written, with ca/")
    for command in (prepare, renew):
        command.add_argument("--days", type=int, default=365, help="validity of certificates (365)")
    rehearse = commands.add_parser(
        "rehearse", help="a federation on the loopback, compared with the simulation"
    )
    rehearse.add_argument("overrides", nargs="*", help="as after fedcats: partition.num_shards=3")
    arguments = parser.parse_args()
    try:
        if arguments.command == "prepare":
            _prepare(arguments)
        elif arguments.command == "renew":
            _renew(arguments)
        else:
            _rehearse(arguments)
    except (UserError, RunError, OSError) as error:
        return tell(error, "fedcats.deploy")
    return 0


def _prepare(arguments: argparse.Namespace) -> None:
    from fedcats.deploy.files import write_federation

    folder, nodes, address = arguments.folder.absolute(), arguments.nodes, arguments.address
    day = write_federation(folder, nodes, address, listen=arguments.listen, days=arguments.days)
    _say(_PREPARED.format(folder=folder, nodes=nodes, port=address.rpartition(":")[2]))
    _say(_ENDS.format(day=day, folder=shlex.quote(str(folder))))


def _renew(arguments: argparse.Namespace) -> None:
    from fedcats.deploy.files import renew

    folder = arguments.folder.absolute()
    day, new = renew(folder, arguments.days)
    ca = "; their old ca.crt is good until it ends" if "ca/ca.crt" in new else ""
    _say(_RENEWED.format(files=", ".join(new), ca=ca))
    _say(_ENDS.format(day=day, folder=shlex.quote(str(folder))))


def _rehearse(arguments: argparse.Namespace) -> None:
    from fedcats.deploy.rehearsal import rehearse

    result = rehearse(arguments.overrides, on_line=lambda line: say(f"  {line}"))
    say(f"simulation: {result['simulation']}")
    say(f"federation: {result['federation']}")
    say(f"the same bytes: {', '.join(result['models'])}")


def _say(text: str) -> None:
    for line in text.splitlines():
        say(line)


if __name__ == "__main__":
    sys.exit(main())
