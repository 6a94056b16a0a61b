"""Options of Ray's actors, in which a simulation's clients run, that Flower does not set."""

from typing import Any

RESTART = {"max_restarts": -1}
"""A dead actor must come back: Flower's pool goes on giving clients to it."""

OWN_RAY = {"address": "local"}
"""Without it, Ray would join any cluster that was started on this machine."""


def set_up_flwr_run() -> None:
    """In the process of ``flwr run``'s simulation, which has no options for these, before Ray."""
    from flwr.server.superlink.fleet.vce.backend import raybackend

    class Backend(raybackend.RayBackend):
        def __init__(self, backend_config: dict[str, Any]) -> None:
            backend_config["client_resources"].update(RESTART)
            backend_config["init_args"].update(OWN_RAY)
            super().__init__(backend_config)

    raybackend.RayBackend = Backend  # type: ignore[misc]
