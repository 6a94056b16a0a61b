"""Replies in the order of the merge."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedcats.federated.flower_words import MALFORMED


class InOrderGrid:
    """A grid whose ``send_and_receive`` yields each reply as soon as its turn comes.

    Flower's own holds all replies of a round until the last has come. ``Strategy.start`` is
    content with this iterator, so at most one update is in memory beside the accumulators; a
    reply that comes early waits where it is (in a simulation it is a key, not a model).

    Parameters
    ----------
    window
        How many messages are out at a time; None: all. Flower's simulation looks at every message
        that is out once for each node, again and again: with 1,000 of both it does little else.
    give_up
        Called when a reply has not come in time.
    """

    def __init__(
        self,
        grid: Grid,
        poll_seconds: float = 0.05,
        window: int | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._grid = grid
        self._give_up = give_up
        self._poll = poll_seconds
        self._window = window

    def __getattr__(self, name: str) -> object:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages now; yield the replies in the order of the messages.

        One whose turn it is and that does not come for ``timeout`` seconds is an error reply.
        """
        # One by one: all messages of a round together would be all its models in memory.
        waiting = iter(messages)
        sent = deque(self._push(message) for message in itertools.islice(waiting, self._window))
        return self._replies(sent, waiting, timeout)

    def _push(self, message: Message) -> tuple[str, Metadata]:
        (message_id,) = self._grid.push_messages([message])
        return message_id, message.metadata

    def _replies(
        self,
        sent: deque[tuple[str, Metadata]],
        waiting: Iterator[Message],
        timeout: float | None,
    ) -> Iterator[Message]:
        while sent:
            message_id, metadata = sent.popleft()
            deadline = math.inf if timeout is None else time.monotonic() + timeout
            while (reply := self._pull(message_id, metadata)) is None:
                if time.monotonic() > deadline:
                    self._give_up()
                    reply = _failed(metadata, f"no reply for {timeout:.0f} s")
                    break
                time.sleep(self._poll)
            sent.extend(self._push(message) for message in itertools.islice(waiting, 1))
            yield reply

    def _pull(self, message_id: str, metadata: Metadata) -> Message | None:
        try:
            return next(iter(self._grid.pull_messages([message_id])), None)
        except MALFORMED as error:
            return _failed(metadata, f"its reply cannot be read: {error!r}")


def _failed(metadata: Metadata, why: str) -> Message:
    asked = Message(
        RecordDict(), dst_node_id=metadata.dst_node_id, message_type=metadata.message_type
    )
    return Message(Error(code=0, reason=why), reply_to=asked)
