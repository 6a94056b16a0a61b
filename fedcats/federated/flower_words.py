"""Words of Flower and Ray that are read or matched here; `test_flower_contract` looks for each."""

import re

from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from google.protobuf.message import DecodeError

RESTARTING = "The actor is restarting"
"""Ray, of an actor that another client has died in."""

CLIENT_PROCESS = "ray::ClientAppActor.run"
"""Title of an actor's process while it is at work."""

SIMULATION = "flwr-simulation"
"""The command with which a SuperLink simulates a run."""

LOCAL_SUPERLINK = "local-superlink"
"""The folder of the SuperLink that ``flwr run`` itself starts, in its command line."""

OWN_LINES = re.compile(r"\x1b\[|Successfully installed |$")
"""How the log lines of Flower and Ray begin: they are coloured."""

FINISHED = "finished"
"""The first part of the status of a run that has ended."""

MALFORMED = (
    UnexpectedObjectContentError,
    DecodeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)
"""What Flower raises while it puts a reply together from what a site has sent."""

_ACTOR_DIED = "<class 'ray.exceptions.Actor"
_RAISED = "occurred. Message: "  # before what a ClientApp has raised, after Ray's traceback
_NO_SUPERLINK = re.compile(r"SuperLink connection .* not found in the Flower configuration.*", re.S)


def reason(text: str) -> str:
    """The client's own words in one line, out of Flower's ``<class '..'>:<'..'>``."""
    kind, _, said = text.partition(":<'")
    if kind.startswith(_ACTOR_DIED):  # a page that does not know it either
        return "its process ended: killed, out of memory, or hanging for strategy.timeout"
    said = (said or text).removesuffix("'>").rpartition(_RAISED)[2]
    return " ".join(said.split()) or text


def no_superlink(text: str) -> str | None:
    """What ``flwr`` says when the configuration names no such SuperLink, if it says so."""
    found = _NO_SUPERLINK.search(text)
    return found and found[0]
