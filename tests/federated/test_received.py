"""Replies of a hostile site, thrown at the code that reads them: each is that site's failure."""

import json
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import plain_tasks, what_a_client_says
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedcats.errors import UserError
from fedcats.federated import sites
from fedcats.federated.flower_patches import allow_arrays
from fedcats.federated.in_order import InOrderGrid
from fedcats.federated.local import LocalGrid
from fedcats.federated.received import printable
from fedcats.federated.strategy import MergeStrategy
from fedcats.federated.wire import OnTheWire
from fedcats.merging.plan import Plan
from fedcats.merging.rules import FedAvg, Median, Polyak
from fedcats.storage import Store
from fedcats.tensors import State

SIZES = [5, 6, 7]
HOSTILE = 1
START: State = {"w": torch.zeros(4, 3), "n": torch.tensor(0), "none": torch.zeros(0, 2)}
Mutation = Callable[[RecordDict], None]


def honest(client: int) -> RecordDict:
    tensors = {
        "w": torch.full((4, 3), 1.0 + client),
        "n": torch.tensor(client),
        "none": START["none"],
    }
    info = ConfigRecord(what_a_client_says("of its own", SIZES[client]))
    return RecordDict({"arrays": ArrayRecord(tensors), "info": info})


class OneHostile(LocalGrid):
    """Three sites, of which one changes its reply, or the bytes of it that travel."""

    def __init__(self, change: Mutation, garble: Callable[[bytes], bytes] | None = None) -> None:
        app = ClientApp()
        self.garble = garble

        @app.train()
        def train(message: Message, context: Context) -> Message:
            client = context.node_id - 1
            content = honest(client)
            if client == HOSTILE:
                change(content)
            return Message(content, reply_to=message)

        super().__init__(app, len(SIZES))
        allow_arrays(max(value.nbytes for value in START.values()))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message in super().pull_messages(message_ids):
            contents = {i: one.deflate() for i, one in get_all_nested_objects(message).items()}
            if self.garble and message.metadata.src_node_id == HOSTILE + 1:
                contents = {name: self.garble(content) for name, content in contents.items()}
            yield inflate_object_from_contents(message.object_id, contents)  # type: ignore[misc]


def merge(folder: Path, grid: LocalGrid) -> MergeStrategy:
    strategy = MergeStrategy(
        {"polyak": Polyak(0.5), "fedavg": FedAvg(), "median": Median()},
        Plan(range(3), 1.0, 0, "survivors", 1),
        plain_tasks,
        SIZES,
        store := Store(folder / "store"),
        OnTheWire(store, [1, 2, 3], ("a", "b"), START, 10**9, 60.0),
    )
    in_order: Any = InOrderGrid(grid, 0.001)
    strategy.start(in_order, ArrayRecord(START), num_rounds=1, timeout=None)  # type: ignore[arg-type]
    return strategy


def check(strategy: MergeStrategy) -> None:
    """The hostile site is left out and named, or what it sent could be used."""
    for merged in strategy.merged.values():
        assert all(bool(value.isfinite().all()) for value in merged.state.values())
    if not strategy.failures:
        assert strategy.merged["fedavg"].clients == [0, 1, 2]
        return
    assert list(strategy.failures) == [HOSTILE]
    why = strategy.failures[HOSTILE]
    assert why.isprintable()
    assert 0 < len(why) < 510
    assert strategy.merged["fedavg"].clients == [0, 2]
    assert strategy.merged["fedavg"].state["w"][0, 0] == pytest.approx((1 * 5 + 3 * 7) / 12)
    json.dumps(strategy.failures, allow_nan=False)


# --- what it says -------------------------------------------------------------------------------

plain = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, -5, 2**62, True, False]),
    st.floats(),
    st.text(),
    st.binary(),
    st.just("x" * 10**6),
    st.lists(st.integers(-9, 9), max_size=3),
)
as_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
numbers = st.one_of(as_json, st.sampled_from([0, -5, 2**62, float("nan"), float("inf"), True, "1"]))
epochs = st.one_of(
    st.text().map(lambda text: text),
    as_json.map(json.dumps),
    st.sampled_from(["[" * 10**5, '{"a":' * 10**5, "9" * 10**5, "[" + "9" * 10**4 + "]"]),
    st.fixed_dictionaries(dict.fromkeys(("loss", "examples", "steps", "seconds"), numbers)).map(
        lambda one: json.dumps([one])
    ),
)
NAMES = ["key", "examples", "epochs", "reused", "resumed", "damaged", "new\x1b[2J"]


@st.composite
def other_info(draw: st.DrawFn) -> Mutation:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    values = {n: draw(epochs if n == "epochs" else plain) for n in names}
    gone = draw(st.lists(st.sampled_from(NAMES[:-1]), max_size=1))

    def change(content: RecordDict) -> None:
        content["info"] = ConfigRecord({**content["info"], **values})  # type: ignore[dict-item]
        for name in gone:
            del content["info"][name]

    return change


def npy(value: np.ndarray) -> bytes:
    stream = BytesIO()
    np.lib.format.write_array(stream, value, allow_pickle=True)
    return stream.getvalue()


def lying(shape: tuple[int, ...], descr: str = "<f4", data: bytes = b"\0" * 48) -> bytes:
    """Data under a header that says something else."""
    stream = BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


arrays = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda tail: b"\x93NUMPY\x01\x00" + tail),
    st.binary(max_size=60).map(lambda tail: lying((4, 3), data=tail)),
    st.tuples(st.sampled_from([0, 1, 3, 4, 10**6, 2**40, -4]), st.sampled_from([1, 3, 2**20])).map(
        lying
    ),
    st.sampled_from(["<f8", ">f4", "|O", "<i8", "|V4", "<U1", "|b1", "<c8"]).map(
        lambda descr: lying((4, 3), descr)
    ),
    st.sampled_from(
        [
            npy(np.array([[{}]], dtype=object)),
            npy(np.full((4, 3), np.nan, np.float32)),
            npy(np.full((4, 3), 3e38, np.float32)),
            npy(np.asfortranarray(np.ones((4, 3), np.float32))),
            b"PK\x03\x04" + b"\0" * 99,
            b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
            b"\x93NUMPY\x03\x00\x10\x00\x00\x00{'descr': '<f4'}",
        ]
    ),
)
stypes = st.sampled_from(["numpy.ndarray", "numpy.ndarray", "pickle", "", "\x1b[2J"])
shapes = st.sampled_from([(4, 3), (), (10**12,), (-1,)])


@st.composite
def other_arrays(draw: st.DrawFn) -> Mutation:
    name = draw(st.sampled_from(["w", "n", "none", "other", "x" * 10**6]))
    array = Array("float32", draw(shapes), draw(stypes), draw(arrays))
    gone = draw(st.lists(st.sampled_from(["w", "n"]), max_size=1))

    def change(content: RecordDict) -> None:
        content["arrays"][name] = array  # type: ignore[index]
        for one in gone:
            content["arrays"].pop(one, None)  # type: ignore[union-attr]

    return change


record = st.sampled_from(
    [ArrayRecord(), ConfigRecord(), MetricRecord({"examples": 5}), ConfigRecord({"examples": 5})]
)


@st.composite
def other_records(draw: st.DrawFn) -> Mutation:
    name = draw(st.sampled_from(["arrays", "info"]))
    instead = draw(st.none() | record)

    def change(content: RecordDict) -> None:
        del content[name]
        if instead is not None:
            content[name] = instead

    return change


SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def four_terabytes(content: RecordDict) -> None:
    content["arrays"]["w"] = Array("float32", (10**12,), "numpy.ndarray", lying((10**12,)))


@pytest.mark.slow
@SETTINGS
@given(change=other_info() | other_arrays() | other_records())
@example(change=four_terabytes)
@example(change=lambda content: content.clear())
def test_whatever_a_site_sends_the_others_are_merged(tmp_path: Path, change: Mutation) -> None:
    check(merge(tmp_path, OneHostile(change)))


@st.composite
def garbling(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    where, what = draw(st.integers(0, 400)), draw(st.binary(min_size=1, max_size=4))
    cut = draw(st.booleans())
    return lambda content: (
        content[: where % len(content)]
        + what
        + (b"" if cut else content[where % len(content) + len(what) :])
    )


@pytest.mark.slow
@SETTINGS
@given(garble=garbling())
def test_bytes_that_are_no_reply_are_the_sites_failure(
    tmp_path: Path, garble: Callable[[bytes], bytes]
) -> None:
    check(merge(tmp_path, OneHostile(lambda _: None, garble)))


def test_a_chunk_that_is_named_a_thousand_times_takes_no_memory(tmp_path: Path) -> None:
    names = b'"arraychunk_ids": [0]'
    strategy = merge(
        tmp_path,
        OneHostile(
            lambda _: None, lambda content: content.replace(names, names[:-1] + b", 0" * 999 + b"]")
        ),
    )
    assert strategy.failures == {
        HOSTILE: "its reply cannot be read: ValueError('an array is longer than the 4144 bytes "
        "that are allowed')"
    }


def test_an_honest_reply_is_merged(tmp_path: Path) -> None:
    strategy = merge(tmp_path, OneHostile(lambda _: None))
    assert strategy.failures == {}
    assert strategy.merged["fedavg"].clients == [0, 1, 2]


def test_what_others_say_is_printed_in_one_short_line() -> None:
    assert printable("a\nb\x1b[31m\tc\u202e") == "a b [31m c"
    assert len(printable("x" * 10**7)) < 510


# --- registrations ------------------------------------------------------------------------------


class Registering(LocalGrid):
    """One site, which answers ``info``."""

    def __init__(self, info: RecordDict) -> None:
        app = ClientApp()

        @app.query()
        def query(message: Message, context: Context) -> Message:
            return Message(info, reply_to=message)

        super().__init__(app, 1)


GOOD = {"partition-id": 0, "num-partitions": 1, "per-class": '{"cat": 3, "dog": 4}'}
counts = st.one_of(
    st.text(),
    as_json.map(json.dumps),
    st.fixed_dictionaries({"cat": numbers, "dog": numbers}).map(json.dumps),
)


@SETTINGS
@given(
    values=st.fixed_dictionaries(
        {}, optional={"partition-id": plain, "num-partitions": plain, "per-class": counts}
    ),
    gone=st.lists(st.sampled_from(list(GOOD)), max_size=1),
    error=st.none() | plain,
)
@example(values={"num-partitions": 2**62}, gone=[], error=None)
@example(values={"per-class": '{"cat": NaN, "dog": 1}'}, gone=[], error=None)
@example(values={"per-class": '{"cat": 0, "dog": 0}'}, gone=[], error=None)
@example(values={"per-class": '{"cat": 600, "dog": 600}'}, gone=[], error=None)
@example(values={"per-class": '{"cat": 4611686018427387904, "dog": 1}'}, gone=[], error=None)
def test_a_registration_is_taken_or_refused_in_one_line(
    values: dict[str, Any], gone: list[str], error: Any
) -> None:
    info = {**GOOD, **values, **({} if error is None else {"error": error})}
    for name in gone:
        del info[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites, "SITES_TIMEOUT", 0.0)
        try:
            (site,) = sites.find_sites(
                Registering(RecordDict({"info": ConfigRecord(info)})), ("cat", "dog"), 1000
            )
        except UserError as refused:
            assert str(refused).isprintable()
            assert len(str(refused)) < 700
        else:
            assert site.client == 0
            assert all(type(count) is int for count in site.per_class.values())
            assert 1 <= sum(site.per_class.values()) <= 1000
