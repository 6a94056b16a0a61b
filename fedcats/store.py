"""The command ``fedcats-store``: what the store holds, whether it is whole, and emptying it."""

import argparse
import sys
import time
from collections.abc import Sequence

from fedcats.core.errors import RunError
from fedcats.core.home import home
from fedcats.core.store import Listing, Store
from fedcats.environment import disk_error, fail, output_lost, settle


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 1 when ``verify`` found damaged entries."""
    parser = argparse.ArgumentParser(
        prog="fedcats-store",
        description="Finished trainings under FEDCATS_HOME, which runs find again.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="one line an entry, the one used longest ago first")
    commands.add_parser("verify", help="check every entry's checksum; drop the damaged ones")
    commands.add_parser("clear", help="drop all entries but those that a running run needs")
    settle()
    command = parser.parse_args(arguments).command
    try:
        store = Store(home() / "store")
        code = {"list": _list, "verify": _verify, "clear": _clear}[command](store)
    except OSError as error:
        fail(str(disk_error(error)), RunError.exit_code, "fedcats-store")
    sys.stdout.flush()
    return 1 if output_lost() else code


def _list(store: Store) -> int:
    entries = store.entries()
    for entry in entries:
        print(_line(entry))
    print(f"{_total(entries)} in {store.root}")
    return 0


def _verify(store: Store) -> int:
    damaged = []
    count = 0
    for entry, whole in store.verify():
        count += 1
        if not whole:
            damaged.append(entry)
            print(f"damaged, dropped: {_line(entry)}")
            store.remove(entry.key)
    print(f"{count} entries read, {len(damaged)} damaged, in {store.root}")
    return 1 if damaged else 0


def _clear(store: Store) -> int:
    before = store.entries()
    store.evict(limit=0)
    kept = store.entries()
    gone = {entry.key for entry in before} - {entry.key for entry in kept}
    print(f"{_total([entry for entry in before if entry.key in gone])} dropped from {store.root}")
    if kept:
        print(f"{_total(kept)} kept for running runs")
    return 0


def _line(entry: Listing) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    what = entry.meta.get("task", "")
    epochs = f"{len(entry.meta['epochs'])} epochs" if "epochs" in entry.meta else ""
    model = entry.meta.get("model", "")
    kind = entry.meta.get("kind", "damaged")
    return (
        f"{entry.size / 1e6:9.1f} MB  {used}  {kind:11} {what:20} {model:12} {epochs:10} "
        f"{entry.key}"
    )


def _total(entries: Sequence[Listing]) -> str:
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun}, {sum(entry.size for entry in entries) / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
