"""What fedcats takes from inside of Flower and Ray: an upgrade that changes any of it fails here.

Without this test a renamed method or another wording would switch a part of fedcats off silently:
`fedcats.federated.flower_patches` replaces methods by their names, others read messages.
"""

import contextlib
import importlib
import inspect
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from conftest import wait_until

from fedcats.federated import flower_words, own_ray

_VCE = "flwr.server.superlink.fleet.vce.backend.raybackend"
_STATE = "flwr.server.superlink.linkstate.in_memory_linkstate"

# By module and name, the parameters.
CALLED = {
    (_VCE, "RayBackend.__init__"): "self, backend_config",
    (_VCE, "RayBackend.init_ray"): "self, backend_config",
    (_VCE, "RayBackend.build"): "self, app_fn",
    (_VCE, "RayBackend.terminate"): "self",
    (_STATE, "InMemoryLinkState.store_message_ins"): "self, message",
    (_STATE, "InMemoryLinkState.get_message_ins"): "self, node_id, limit, run_id",
    ("flwr.supercore.control", "ControlHttpClient.__init__"): (
        "self, base_url, interceptors, verify, timeout, retry_invoker"
    ),
    ("flwr.app", "Array.inflate"): "object_content, children",
    ("flwr.serverapp", "Grid.push_messages"): "self, messages",
    ("flwr.serverapp", "Grid.pull_messages"): "self, message_ids",
    ("flwr.serverapp", "Grid.send_and_receive"): "self, messages, timeout",
    ("flwr.serverapp.strategy", "Strategy.start"): (
        "self, grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, "
        "evaluate_fn"
    ),
    ("flwr.serverapp.strategy", "Strategy.configure_train"): (
        "self, server_round, arrays, config, grid"
    ),
    ("flwr.serverapp.strategy", "Strategy.aggregate_train"): "self, server_round, replies",
}

# By module, pieces of its source: attributes and words that are read.
READ = {
    _VCE: [
        'self.init_args_key = "init_args"',
        'self.client_resources_key = "client_resources"',
        "self.pool: BasicActorPool | None",
        "actor_type=ClientAppActor",
    ],
    _STATE: ["self.lock", "self.message_ins_store"],
    "flwr.simulation.ray_transport.ray_actor": [
        "self.pool: list[VirtualClientEngineActor] = []",
        "self._future_to_actor[future] = actor",
        "class ClientAppActor(VirtualClientEngineActor):\n",
        "def run(",
    ],
    "flwr.supercore.task_identity": ["def task_id(cls", "def run_id(cls", "def node_id(cls"],
    "flwr.clientapp.client_app": [flower_words._RAISED],
    "flwr.supercore.protobuf.client": [
        "verify: ssl.SSLContext | str | bool = not insecure",
        "            verify=verify,\n",
    ],
    "flwr.cli.utils": ["ControlHttpClient.from_server_address("],
    "flwr.cli.install": ["Successfully installed "],
    "flwr.cli.local_superlink": [f'"{flower_words.LOCAL_SUPERLINK}"'],
    "flwr.cli.flower_config": ["SuperLink connection '", "' not found in the", "configuration"],
    "flwr.cli.ls": ['"run-id"', '"status"', '"status-details"'],
    "flwr.common.constant": [f'FINISHED = "{flower_words.FINISHED}"'],
    "flwr.superlink.grid.http_grid": ["inflate_object_from_contents(msg_id, all_object_contents)"],
    "flwr.app.message.array": [
        'array_metadata["arraychunk_ids"]',
        "get_object_body(object_content",
    ],
    "flwr.supercore.inflatable.inflatable_object": [
        "def get_object_children_ids_from_object_content(object_content",
        "class UnexpectedObjectContentError(Exc",
    ],
    "ray._private.services": ["if not ray_constants.ENABLE_RAY_CLUSTER:\n", "get_localhost_ip()"],
    "ray._private.ray_constants": ["\nENABLE_RAY_CLUSTER = "],
    "ray._private.authentication_test_utils": [
        "AuthenticationTokenLoader.instance().reset_cache()",
        'Config.initialize("")',
    ],
    "ray._private.node": ['f"session_{date_str}_{os.getpid()}"', "ray.util.get_node_ip_address()"],
    "flwr.cli.constant": ["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT"],
}


@pytest.mark.parametrize(("where", "parameters"), CALLED.items(), ids=lambda one: str(one))
def test_flower_is_called_as_it_wants_to_be(where: tuple[str, str], parameters: str) -> None:
    found = importlib.import_module(where[0])
    for name in where[1].split("."):
        found = getattr(found, name)
    assert ", ".join(inspect.signature(found).parameters) == parameters  # type: ignore[arg-type]


@pytest.mark.parametrize("module", READ)
def test_flower_says_what_is_read(module: str) -> None:
    source = inspect.getsource(importlib.import_module(module))
    assert [piece for piece in READ[module] if piece not in source] == []


def test_flower_looks_up_the_backend_that_is_replaced_when_it_needs_it() -> None:
    """Not when it is imported, which may be earlier."""
    api = importlib.import_module("flwr.server.superlink.fleet.vce.vce_api")
    assert not hasattr(api, "RayBackend")
    assert "        from .backend.raybackend import RayBackend" in inspect.getsource(api)


def test_the_commands_that_are_started_exist() -> None:
    scripts = {script.name for script in entry_points(group="console_scripts")}
    wanted = {"flwr", flower_words.SIMULATION, "flower-superlink", "flower-supernode"}
    assert wanted <= scripts
    assert isinstance(importlib.import_module("flwr.cli.app"), ModuleType)
    assert (Path(sys.executable).parent / "flower-superlink").is_file()


@pytest.mark.ray
def test_a_ray_actor_can_be_made_to_restart() -> None:
    """And says so, and is called as it is looked for, in a Ray as runs start it."""
    import ray

    class ClientAppActor:
        def run(self) -> str:
            return str(psutil.Process().cmdline()[0])

        def die(self) -> None:
            os._exit(1)

    size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    # "local": else it would join a cluster that runs here, such as that of another test.
    own_ray.start({"address": "local", "log_to_driver": False, **size})
    try:
        actor: Any = ray.remote(max_restarts=-1)(ClientAppActor)  # type: ignore[call-overload]
        actor = actor.remote()
        # Ray names the process a moment after its first call has begun.
        wait_until(lambda: ray.get(actor.run.remote()) == flower_words.CLIENT_PROCESS)
        said = []
        for method in ("die", "run"):
            try:
                ray.get(getattr(actor, method).remote())
            except Exception as error:
                said.append(f"{type(error)}:<'{error}'>")
        assert flower_words.reason(said[0]).startswith("its process ended")
        assert all(flower_words.RESTARTING in one for one in said[1:])
        wait_until(lambda: answers(actor))
    finally:
        ray.shutdown()
        own_ray.remove_files()


def answers(actor: Any) -> bool:
    import ray

    with contextlib.suppress(ray.exceptions.RayActorError):
        return bool(ray.get(actor.run.remote()))
    return False
