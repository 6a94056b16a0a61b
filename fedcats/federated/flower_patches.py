"""Flower's simulation where its own handling falls short: Ray's actors, messages to them."""

import functools
import json
import os
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

from flwr.app import Array, Message
from flwr.clientapp import ClientApp

from fedcats.federated import own_ray

_END_SECONDS = 10.0
_HEADER = 4096  # bytes that NumPy may put before an array's own

_allowed = [0]  # bytes of an array
_backends: list[Any] = []  # those that run: one, or none


def kill_busy_actors() -> None:
    """Kill the actors at work, for good: their clients' replies are errors."""
    for backend in list(_backends):
        backend.kill_busy()


@functools.cache
def use_own_parts() -> None:
    """From here on a simulation of this process uses the parts below.

    Flower has no option for parts of one's own, and the process of ``flwr run``'s simulation
    takes none of the options that Ray has for actors.
    """
    import ray
    from flwr.server.superlink.fleet.vce.backend import raybackend
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState as State

    # Ten times a second Flower looks at every message for every node, which keeps the server from
    # all else once there are hundreds of nodes. Here only for a node for which there is a message.
    waiting: Counter[int] = Counter()
    store_message, get_messages = State.store_message_ins, State.get_message_ins

    def store_message_ins(self: State, message: Message) -> str | None:
        with self.lock:
            waiting[message.metadata.dst_node_id] += 1
            return store_message(self, message)

    def get_message_ins(
        self: State, node_id: int, limit: int | None, *, run_id: int | None = None
    ) -> list[Message]:
        if not waiting[node_id]:
            return []
        with self.lock:
            found = get_messages(self, node_id, limit, run_id=run_id)
            waiting[node_id] -= len(found)
            return found

    State.store_message_ins = store_message_ins  # type: ignore[method-assign]
    State.get_message_ins = get_message_ins  # type: ignore[method-assign]

    class Backend(raybackend.RayBackend):
        def __init__(self, backend_config: dict[str, Any]) -> None:
            # A dead actor must come back: Flower's pool goes on giving clients to it.
            backend_config["client_resources"].update(max_restarts=-1)
            super().__init__(backend_config)

        def init_ray(self, backend_config: dict[str, Any]) -> None:
            # Without an address Ray would join any cluster that was started on this machine.
            arguments = {"address": "local", **backend_config[self.init_args_key]}
            if arguments["address"] == "local":
                # By the environment: given to Ray, as Flower does, every worker starts twice.
                os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
                own_ray.start(arguments)
            super().init_ray(backend_config)

        def build(self, app_fn: Callable[[], ClientApp]) -> None:
            super().build(app_fn)
            self._lock = threading.Lock()
            _backends.append(self)
            for actor in self._actors():  # import while the server prepares the first messages
                actor.__ray_call__.remote(_import_client)

        def kill_busy(self) -> None:
            with self._lock:
                if self in _backends:  # else Ray has ended, and would start again
                    for actor in self._actors(busy=True):
                        ray.kill(actor)

        def terminate(self) -> None:
            # A thread of Flower's that still waits for an actor when Ray ends, which is so after
            # a second interrupt, would wait for ever, and this process with it.
            begun = time.monotonic()
            while self._actors(busy=True) and time.monotonic() - begun < _END_SECONDS:
                self.kill_busy()
                time.sleep(0.1)
            if self in _backends:
                with self._lock:
                    _backends.remove(self)
            super().terminate()
            own_ray.remove_files()

        def _actors(self, *, busy: bool = False) -> list[Any]:
            if self.pool is None:
                return []
            return list(self.pool._future_to_actor.values() if busy else self.pool.pool)

    raybackend.RayBackend = Backend  # type: ignore[misc]


def allow_arrays(size: int) -> None:
    """Refuse received arrays of more than ``size`` bytes before they are put together.

    Flower's are made of chunks, of which one may be named any number of times: a kilobyte of names
    and one chunk are terabytes. Where this was never called, arrays are as long as they like.
    """
    _bound_arrays()
    _allowed[0] = size + _HEADER if size else 0


@functools.cache
def _bound_arrays() -> None:
    from flwr.supercore.inflatable import inflatable_object as inflatable

    inflate = Array.inflate

    def bounded(
        cls: type[Array], object_content: bytes, children: dict[str, Any] | None = None
    ) -> Array:
        names = inflatable.get_object_children_ids_from_object_content(object_content)
        said = json.loads(inflatable.get_object_body(object_content, cls))
        chunks = [(children or {})[names[i]] for i in said["arraychunk_ids"]]
        if sum(len(chunk.data) for chunk in chunks) > _allowed[0]:
            raise ValueError(f"an array is longer than the {_allowed[0]} bytes that are allowed")
        return inflate(object_content, children)

    Array.inflate = classmethod(bounded)  # type: ignore[assignment,method-assign]


def speak_as_server() -> None:
    """Messages made in this process are the server's: Flower's want to know whose they are."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID


def name_message(message: Message) -> str:
    """Give a message an id, as a SuperLink would; that id."""
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    return message.metadata.message_id


def _import_client(actor: object) -> None:
    """Runs in an actor."""
    import fedcats.federated.client_app  # noqa: F401
