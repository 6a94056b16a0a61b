"""The simulation on a Ray cluster of two nodes, both on this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from fedcats.errors import UserError
from fedcats.federated import cluster as cluster_module

pytestmark = pytest.mark.ray

Go = Callable[..., tuple[dict[str, Any], Path]]
OPTIONS = ["mode=federated", "partition.num_shards=3", "store.enabled=false"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    size = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    both = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    both.add_node(**size, node_name="second")
    yield both
    both.shutdown()


def test_two_nodes_give_the_same_bytes(run: Go, cluster: Cluster) -> None:
    address = f"runner.address={cluster.address}"
    _, there = run(address, *OPTIONS, folder="there")
    _, here = run("runner=local", *OPTIONS, folder="here")
    models = sorted(path.name for path in (here / "models").iterdir())
    assert len(models) == 5
    for name in models:
        assert (there / "models" / name).read_bytes() == (here / "models" / name).read_bytes()
    assert not ray.is_initialized()  # the cluster goes on without us


def test_a_node_that_lacks_a_file_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    cluster_module.check_cluster(cluster.address, [tmp_path])
    second = next(node.node_id for node in cluster.worker_nodes)

    def lacking(paths: list[str]) -> list[str]:
        return paths[:1] if ray.get_runtime_context().get_node_id() == second else []

    monkeypatch.setattr(cluster_module, "_lacking", lacking)
    with pytest.raises(UserError, match=rf"node second \(.*\) does not see {tmp_path}/photos; "):
        cluster_module.check_cluster(cluster.address, [tmp_path / "photos", tmp_path])


def test_a_cluster_that_is_not_there_is_named_at_once() -> None:
    with pytest.raises(UserError, match=r"runner.address=127.0.0.1:1: no Ray cluster there"):
        cluster_module.check_cluster("127.0.0.1:1", [])
