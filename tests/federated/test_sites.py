"""Sites without a network: their folders, their answers, and what the server makes of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fedcats.config.compose import compose_config
from fedcats.data.sources import part_source
from fedcats.errors import UserError
from fedcats.experiment.server_app import configuration
from fedcats.federated import sites, superlink
from fedcats.federated.client_app import app
from fedcats.federated.local import LocalGrid
from fedcats.federated.received import Reply
from fedcats.federated.wire import OnTheWire
from fedcats.storage import Store
from fedcats.training.update import read

CLASSES = ("ant", "bee", "cow")


def site_context(**config: object) -> Context:
    return Context(1, 1, config, RecordDict(), {})  # type: ignore[arg-type]


class Sites(LocalGrid):
    """Sites with these node configurations, in this process."""

    def __init__(self, *configs: dict[str, object]) -> None:
        super().__init__(app, len(configs))
        for node, config in enumerate(configs, 1):
            self._contexts[node].node_config = config  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "SITES_TIMEOUT", 0.0)


def site(photos: Path, number: int, total: int = 2) -> dict[str, object]:
    return {"partition-id": number, "num-partitions": total, "data-path": str(photos)}


def test_sites_are_found_whatever_their_nodes_are_called(photos: Path) -> None:
    found = sites.find_sites(Sites(site(photos, 1), site(photos / "train", 0)), CLASSES, 1000)
    assert [(s.client, s.node) for s in found] == [(0, 2), (1, 1)]
    assert found[0].per_class == {"ant": 9, "bee": 9, "cow": 9}


def test_a_site_says_counts_and_nothing_else(photos: Path) -> None:
    config = {"config": ConfigRecord({"classes": json.dumps(CLASSES)})}
    reply = sites.answer(RecordDict(config), site_context(**site(photos, 0)))
    assert list(reply) == ["info"]
    assert dict(reply["info"]) == {
        "partition-id": 0,
        "num-partitions": 2,
        "per-class": '{"ant": 9, "bee": 9, "cow": 9}',
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition-id": 0}, "two SuperNodes have partition-id=0"),
        ({"partition-id": 2}, r"its partition-id is 2: allowed is 0 \.\. 1"),
        ({"num-partitions": 3}, "disagree on num-partitions"),
        ({"data-path": "/nowhere/photos"}, "site 1: data-path.*does not exist"),
        ({"data-path": "photos"}, "site 1: data-path=photos is relative"),
    ],
)
def test_a_wrong_site_is_named(photos: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sites.find_sites(Sites(site(photos, 0), site(photos, 1) | change), CLASSES, 1000)


def test_a_missing_site_is_named(photos: Path) -> None:
    with pytest.raises(UserError, match=r"1 of num-partitions=2 .*missing.*partition-id=1"):
        sites.find_sites(Sites(site(photos, 0)), CLASSES, 1000)


class Lost(Sites):
    """Its last site is lost before its answer, ``times`` times; the SuperLink answers for it."""

    times = 1

    def _call(self, message: Message) -> Message:
        if message.metadata.dst_node_id == len(self._contexts) and self.times:
            self.times -= 1
            reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
            return reply
        return super()._call(message)


def test_a_site_lost_before_its_answer_is_a_missing_one(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [site(photos, 0), site(photos, 1)]
    with pytest.raises(UserError, match=r"1 of num-partitions=2 .*missing.*partition-id=1"):
        sites.find_sites(Lost(*both), CLASSES, 1000)
    monkeypatch.setattr(sites, "SITES_TIMEOUT", 60.0)
    monkeypatch.setattr(sites, "POLL_SECONDS", 0.0)
    assert [s.client for s in sites.find_sites(Lost(*both), CLASSES, 1000)] == [
        0,
        1,
    ]  # it comes back


def test_a_site_without_a_folder_gets_the_option_to_use(photos: Path) -> None:
    nothing = {"partition-id": 0, "num-partitions": 1}
    with pytest.raises(UserError, match="no data-path: start it with --node-config"):
        sites.find_sites(Sites(nothing), CLASSES, 1000)


def test_no_sites_at_all() -> None:
    empty: Grid = SimpleNamespace(get_node_ids=lambda: [])  # type: ignore[assignment]
    with pytest.raises(UserError, match="no SuperNode is connected"):
        sites.find_sites(empty, CLASSES, 1000)


def test_a_site_may_lack_a_class_but_has_no_other(photos: Path) -> None:
    source = part_source(photos, "train", ("ant", "bee", "cow", "dog"))
    assert sorted({item.label for item in source.train}) == [0, 1, 2]
    assert source.test == ()
    with pytest.raises(UserError, match="class 'cow' is not one of the federation's"):
        part_source(photos, "train", ("ant", "bee"))


def test_labels_are_the_federations_not_the_folders(photos: Path) -> None:
    source = part_source(photos, "test", ("cow", "bee", "ant"))
    assert {item.path.split("/")[1]: item.label for item in source.test} == {
        "cow": 0,
        "bee": 1,
        "ant": 2,
    }


def test_an_update_is_kept_under_a_key_of_the_servers_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    wire = OnTheWire(store, [1], CLASSES, {}, 1, 60.0)
    tensors = {"w": torch.tensor([1.0, -0.0]), "n": torch.tensor(7)}
    said = Reply("../../else", 3, (), False, 0, False)
    key = wire.unpack(RecordDict({"arrays": ArrayRecord(tensors)}), said, "mine", tensors)
    assert len(key) == 64
    kept = read(store, key)
    assert kept is not None
    assert kept.examples == 3
    assert torch.equal(kept.tensors["w"].view(torch.int32), tensors["w"].view(torch.int32))
    assert kept.tensors["n"].dtype == torch.int64


# --- the configuration under Flower ----------------------------------------------------------


def test_in_a_real_federation_there_is_no_partition() -> None:
    raw = configuration({"overrides": "seed=3", "home": ""}, simulated=False)
    assert (raw.seed, raw.mode, raw.partition.name) == (3, "federated", "sites")
    for override in ("partition=iid", "partition.num_shards=3"):
        with pytest.raises(UserError, match=f"{override}: does not apply to a real federation"):
            configuration({"overrides": override, "home": ""}, simulated=False)
    with pytest.raises(UserError, match="mode=centralized: not possible"):
        configuration({"overrides": "mode=centralized", "home": ""}, simulated=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"overrides": "data=folder data.root=photos"},
            "data.root=photos: a relative path.*=/path",
        ),
        ({"overrides": "model.weights=w.safetensors"}, "model.weights=w.safetensors: a relative"),
        ({"overrides": "model.weights=w.ckpt"}, "model.weights=w.ckpt: a relative"),
        ({"overrides": "", "home": "cache"}, "home=cache: a relative path"),
        ({"overrides": "strategy.bta=1"}, "strategy.bta"),
    ],
)
def test_mistakes_under_flwr_run_are_one_line(settings: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configuration({"home": "", **settings}, simulated=True)


def test_every_relative_path_is_made_absolute_for_the_superlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "epoch 3.ckpt").touch()
    raw = compose_config(["data=folder", "data.root=photos", "model.weights='epoch 3.ckpt'"])
    assert superlink._absolute_paths(raw) == [
        f"data.root='{tmp_path}/photos'",
        f"model.weights='{tmp_path}/epoch 3.ckpt'",
    ]
    assert superlink._absolute_paths(compose_config([])) == []
