"""Sites: the SuperNodes of a real federation, each with photos of its own on its own disk.

The server learns from them who they are and how many photos of each class they have, nothing
else. A site is a SuperNode that was started with, for example,
``--node-config "partition-id=0 num-partitions=2 data-path='/photos'"``.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedcats.data import Dataset, prepare
from fedcats.data.sources import part_source
from fedcats.environment import say
from fedcats.errors import UserError
from fedcats.federated.flower_patches import allow_arrays
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.received import between, get, printable, read_counts, record
from fedcats.home import home

SITES_TIMEOUT = 20.0  # seconds until all sites must be there
ANSWER_TIMEOUT = 600.0  # seconds for all of them to read and decode their photos
POLL_SECONDS = 1.0
_MOST_SITES = 10**5
NODE_CONFIG = "--node-config \"partition-id=0 num-partitions=N data-path='/photos'\""


@dataclass(frozen=True)
class Site:
    """What the server knows of a site: its node, its number, how many photos of each class."""

    node: int
    client: int
    per_class: dict[str, int]


def site_number(context: Context) -> int:
    """The number of this site, from what its operator says.

    Raises
    ------
    UserError
        When the node's configuration lacks a key.
    """
    for key in ("partition-id", "num-partitions", "data-path"):
        if key not in context.node_config:
            raise UserError(f"a SuperNode has no {key}: start it with {NODE_CONFIG}")
    return int(cast(int, context.node_config["partition-id"]))


def site_photos(context: Context, classes: tuple[str, ...]) -> Dataset:
    """The photos in the folder that the operator named, decoded into the site's own cache."""
    number = site_number(context)
    path = Path(str(context.node_config["data-path"])).expanduser()
    if not path.is_absolute():
        raise UserError(f"site {number}: data-path={path} is relative: give an absolute path")
    try:
        return prepare(part_source(path, "train", classes), home() / "data", say=say)
    except UserError as error:
        # A folder's name is the operator's business; what is wrong with it, the server may know.
        text = (
            str(error).replace(f"data.root={path}", "data-path").replace("data.root", "data-path")
        )
        raise UserError(f"site {number}: {text}") from error


def answer(content: RecordDict, context: Context) -> RecordDict:
    """The site's answer to `find_sites`: counts, or in one line why it cannot take part."""
    classes = tuple(json.loads(str(cast(ConfigRecord, content["config"])["classes"])))
    info: dict[str, str | int] = {}
    try:
        info["partition-id"] = site_number(context)
        info["num-partitions"] = int(cast(int, context.node_config["num-partitions"]))
        labels = site_photos(context, classes).train.labels.tolist()
        counts = {name: labels.count(label) for label, name in enumerate(classes)}
        info["per-class"] = json.dumps(counts)
    except UserError as error:
        info["error"] = str(error)
    return RecordDict({"info": ConfigRecord(info)})  # type: ignore[arg-type]


def find_sites(grid: Grid, classes: tuple[str, ...], max_examples: int) -> list[Site]:
    """Ask all SuperNodes who they are, until every one of ``num-partitions`` has answered.

    Parameters
    ----------
    classes
        Names of the classes by label, from the server's test photos.
    max_examples
        A site that says it has more photos is refused.

    Returns
    -------
    list of Site
        By number.

    Raises
    ------
    UserError
        When a site is missing, there twice, or cannot take part.
    """
    allow_arrays(0)  # there is none in a registration
    deadline = time.monotonic() + SITES_TIMEOUT
    sites: dict[int, Site] = {}
    answered: set[int] = set()
    total: int | None = None
    while total is None or len(sites) < total:
        new = sorted(set(grid.get_node_ids()) - answered)
        for node, reply in zip(new, _ask(grid, new, classes), strict=True):
            if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                continue  # lost before its answer, so not connected; it may come back
            answered.add(node)
            site, claimed = _site(node, reply, classes, max_examples)
            if site.client in sites:
                raise UserError(
                    f"two SuperNodes have partition-id={site.client}: each needs its own"
                )
            if total not in (None, claimed):
                raise UserError(f"SuperNodes disagree on num-partitions: {total} and {claimed}")
            total = claimed
            sites[site.client] = site
        if total is not None and len(sites) == total:
            break
        if time.monotonic() > deadline:
            if total is None:
                raise UserError(f"no SuperNode is connected: start them with {NODE_CONFIG}")
            missing = printable(", ".join(str(i) for i in range(total) if i not in sites))
            raise UserError(
                f"{len(sites)} of num-partitions={total} SuperNodes are connected; missing are "
                f"those with partition-id={missing}"
            )
        time.sleep(POLL_SECONDS)
    return [sites[number] for number in sorted(sites)]


def _ask(grid: Grid, nodes: Iterable[int], classes: tuple[str, ...]) -> Iterable[Message]:
    content = RecordDict({"config": ConfigRecord({"classes": json.dumps(classes)})})
    messages = [Message(content, dst_node_id=n, message_type=MessageType.QUERY) for n in nodes]
    return InOrderGrid(grid, POLL_SECONDS).send_and_receive(messages, timeout=ANSWER_TIMEOUT)


def _site(node: int, reply: Message, classes: tuple[str, ...], most: int) -> tuple[Site, int]:
    if reply.has_error():
        why = reply.error.reason or f"error {reply.error.code}"
        raise UserError(f"SuperNode {node} cannot answer: {printable(why)}")
    try:
        info = record(reply.content, "info", ConfigRecord)
        if "error" in info:
            raise UserError(printable(get(info, "error", str)))
        total = between(get(info, "num-partitions", int), 1, _MOST_SITES, "num-partitions")
        number = between(get(info, "partition-id", int), 0, total - 1, "partition-id")
        return Site(node, number, read_counts(get(info, "per-class", str), classes, most)), total
    except ValueError as error:
        raise UserError(f"SuperNode {node} cannot take part: {printable(str(error))}") from error
