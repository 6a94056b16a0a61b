"""The command ``fedcats-store``: what is kept for later runs, whether it is whole, emptying it.

What needs PyTorch is imported when the arguments are parsed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedcats.environment import output_lost, say, settle, tell
from fedcats.errors import RunError
from fedcats.home import home

if TYPE_CHECKING:
    from fedcats.data.upkeep import Decoded
    from fedcats.storage import Listing, Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0, or 1 when ``verify`` found damaged entries or the store cannot be used."""
    parser = argparse.ArgumentParser(
        prog="fedcats-store",
        description="Finished trainings and decoded images under FEDCATS_HOME, which runs find "
        "again.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="one line an entry, the one used longest ago first")
    commands.add_parser("verify", help="check trainings and images; drop the damaged ones")
    clear = commands.add_parser("clear", help="drop all but what a running run needs")
    clear.add_argument("--images", action="store_true", help="only the decoded images")
    settle()
    chosen = parser.parse_args(arguments)
    from fedcats.storage import Store

    try:
        store, images = Store(home() / "store"), home() / "data"
        if chosen.command == "clear":
            code = _clear(store, images, only_images=chosen.images)
        else:
            code = {"list": _list, "verify": _verify}[chosen.command](store, images)
    except (RunError, OSError) as error:
        return tell(error, "fedcats-store")
    sys.stdout.flush()
    return 1 if output_lost() else code


def _list(store: Store, images: Path) -> int:
    from fedcats.data import upkeep

    entries, decoded = store.entries(), upkeep.decoded(images)
    for entry in entries:
        say(_line(entry))
    for one in decoded:
        say(_image_line(one))
    say(f"{_total(entries)} in {store.root}")
    say(f"{_total_images(decoded)} in {images}")
    return 0


def _verify(store: Store, images: Path) -> int:
    from fedcats.data import upkeep

    states: Counter[str] = Counter()
    for entry, state in store.verify():
        states[state] += 1
        if state == "damaged":
            say(f"damaged or another's copy, dropped: {_line(entry)}")
            store.remove(entry.key, entry.inode)
        elif state == "unreadable":
            say(f"cannot be read now, kept: {_line(entry)}")
    if states["unbound"]:
        say(
            f"{states['unbound']} whole, of a version that did not write the key into an entry: "
            "compared with what they are needed for, and rewritten, when a run needs them"
        )
    say(f"{states.total()} entries read, {states['damaged']} damaged, in {store.root}")
    found = upkeep.decoded(images)
    for one in found:
        if one.what == upkeep.UNREADABLE:
            say(f"kept: {_image_line(one)}")
    decoded = [one for one in found if one.what != upkeep.UNREADABLE]
    unusable = [one for one in decoded if not _is_whole(one)]
    for one in unusable:
        fate = "dropped" if upkeep.drop(one.path) else "kept, since it is in use or not yours"
        say(f"of no use, {fate}: {_image_line(one)}")
    say(f"{_total_images(decoded)} read, {len(unusable)} of no use, in {images}")
    return 1 if states["damaged"] or states["unreadable"] or unusable else 0


def _is_whole(one: Decoded) -> bool:
    from fedcats.data import DamagedData, open_dataset

    try:
        open_dataset(one.path).verify()
    except DamagedData as error:
        say(error)
        return False
    return True


def _clear(store: Store, images: Path, *, only_images: bool) -> int:
    from fedcats.data import upkeep

    if not only_images:
        before = store.entries()
        store.evict(limit=0)
        kept = store.entries()
        gone = {entry.key for entry in before} - {entry.key for entry in kept}
        total = _total([entry for entry in before if entry.key in gone])
        say(f"{total} dropped from {store.root}")
        if kept:
            say(f"{_total(kept)} kept for running runs, or not yours to remove")
    upkeep.remove_leftovers(images)
    say(f"{_total_images(upkeep.drop_unused(images))} dropped from {images}")
    if left := upkeep.decoded(images):
        say(f"{_total_images(left)} kept for running runs, or not yours to remove")
    return 0


def _line(entry: Listing) -> str:
    what = entry.meta.get("task", "")
    epochs = f"{len(entry.meta['epochs'])} epochs" if "epochs" in entry.meta else ""
    model = entry.meta.get("model", "")
    kind = entry.meta.get("kind", "damaged")
    return (
        f"{_start(entry.size, entry.used)}  {kind:11} {what:20} {model:12} {epochs:10} {entry.key}"
    )


def _image_line(one: Decoded) -> str:
    what = one.what if len(one.what) <= 33 else f"{one.what[:32]}…"
    number = f"{one.images:,}"
    return f"{_start(one.size, one.used)}  {'images':11} {what:33} {number:10} {one.path.name}"


def _start(size: int, used: float) -> str:
    return f"{size / 1e6:9.1f} MB  {time.strftime('%Y-%m-%d %H:%M', time.localtime(used))}"


def _total(entries: Sequence[Listing]) -> str:
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun}, {sum(entry.size for entry in entries) / 1e9:.2f} GB"


def _total_images(decoded: Sequence[Decoded]) -> str:
    noun = "data set" if len(decoded) == 1 else "data sets"
    return f"{len(decoded)} decoded {noun}, {sum(one.size for one in decoded) / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.exit(main())
