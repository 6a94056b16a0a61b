"""The clients in this process, one after another."""

from collections.abc import Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedcats.federated.client_app import app as client_app
from fedcats.federated.flower_patches import name_message, speak_as_server
from fedcats.federated.quiet import quiet
from fedcats.federated.simulation import Main


def run_local(main: Main, num_clients: int, *, verbose: bool = False) -> None:
    """Run in this process, one client after another."""
    with quiet(verbose):
        main(LocalGrid(client_app, num_clients))


class LocalGrid(Grid):
    """A grid that calls the ClientApp itself, when the reply is asked for."""

    def __init__(self, app: ClientApp, num_nodes: int) -> None:
        speak_as_server()
        self._app = app
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config={},
            )
            for node in range(1, num_nodes + 1)
        }
        self._waiting: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        """1 .. num_nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages; nothing runs yet."""
        ids = []
        for message in messages:
            ids.append(name_message(message))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the ClientApp for these messages."""
        return [self._call(self._waiting.pop(i)) for i in message_ids if i in self._waiting]

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
    ) -> Iterable[Message]:
        """Push and pull."""
        return self.pull_messages(self.push_messages(messages))

    def _call(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # as Flower does: an error reply, not an exception
            return Message(Error(code=0, reason=str(error)), reply_to=message)

    def set_run(self, run: Any) -> None:
        """Not needed here."""

    @property
    def run(self) -> Any:
        """Not needed here."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not needed here: deprecated in Flower."""
        raise NotImplementedError
