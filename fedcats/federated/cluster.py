"""A Ray cluster that runs already."""

import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedcats.ending import handle_term_again
from fedcats.errors import UserError
from fedcats.federated.quiet import quiet

_CONNECT_SECONDS = 5.0


_CHECK_SECONDS = 60.0  # until a node has started a worker


def check_cluster(address: str, paths: Sequence[Path]) -> None:
    """See that every node of a Ray cluster that can run clients sees the same files as this one.

    Such a cluster listens on all interfaces of its machines, and whoever reaches its ports can run
    programs there as its user. With ``RAY_AUTH_MODE=token`` in the environment of ``ray start`` on
    all of them, and in that of the run, it asks for the token in ``~/.ray/auth_token``.

    Parameters
    ----------
    address
        ``host:port`` of the cluster; this machine must be one of its nodes.
    paths
        Files and folders that all nodes need at the same place.

    Raises
    ------
    UserError
        When there is no such cluster, or naming a node and what it lacks.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    host, _, port = address.rpartition(":")
    where = f"runner.address={address}"
    try:  # Ray itself tries for minutes
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"{where}: no Ray cluster there ({error}); ray start --head --port={port} starts one"
        ) from error
    names = [str(path) for path in paths]
    with quiet(False):
        try:
            ray.init(
                address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
            )
            handle_term_again()
            everyone: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
            nodes = [n for n in everyone if n["Alive"] and n["Resources"].get("CPU", 0) >= 1]
            if not nodes:
                raise UserError(f"{where}: no node of this cluster has a CPU for clients")
            look = ray.remote(num_cpus=0, max_retries=0)(_lacking)
            answers = [
                look.options(
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                ).remote(names)
                for node in nodes
            ]
            for node, answer in zip(nodes, answers, strict=True):
                name = node["NodeManagerAddress"]
                if node["NodeName"] != name:
                    name = f"{node['NodeName']} ({name})"
                try:
                    lacking = ray.get(answer, timeout=_CHECK_SECONDS)
                except Exception as error:
                    last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                    raise UserError(f"{where}: node {name} cannot run fedcats: {last[0]}") from None
                if lacking:
                    raise UserError(
                        f"{where}: node {name} does not see {', '.join(lacking)}; photos, store "
                        "(FEDCATS_HOME) and run folder must be on a disk that all nodes share"
                    )
        except (RuntimeError, ConnectionError, ValueError) as error:
            raise UserError(f"{where}: cannot be used: {error}") from error
        finally:
            ray.shutdown()


def _lacking(paths: Sequence[str]) -> list[str]:
    """Runs on a node: which of the paths are not there."""
    return [path for path in paths if not Path(path).exists()]
