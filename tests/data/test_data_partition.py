"""Who has which image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcats.core.data import iid_partition, make_partition, paper_partition
from fedcats.core.errors import UserError

LABELS = np.array([0] * 25 + [1] * 31)


def disjoint(shards):
    together = np.concatenate(shards)
    return len(np.unique(together)) == len(together)


def test_paper_shards_hold_exactly_per_class_of_each():
    shards = paper_partition(LABELS, num_shards=4, per_class=6, seed=0)
    assert [np.bincount(LABELS[shard]).tolist() for shard in shards] == [[6, 6]] * 4
    assert disjoint(shards)
    assert all(shard.dtype == np.int64 for shard in shards)


def test_paper_takes_as_many_as_fit():
    shards = paper_partition(LABELS, num_shards=4, per_class=None, seed=0)
    assert [np.bincount(LABELS[shard]).tolist() for shard in shards] == [[6, 6]] * 4  # 25 // 4


def test_paper_with_several_classes():
    labels = np.repeat([0, 1, 2], [10, 7, 9])
    shards = paper_partition(labels, num_shards=3, per_class=2, seed=1)
    assert [np.bincount(labels[shard]).tolist() for shard in shards] == [[2, 2, 2]] * 3


def test_paper_sizes_of_the_paper():
    labels = np.array([0] * 999 + [1] * 1004)
    shards = paper_partition(labels, num_shards=10, per_class=99, seed=0)
    assert [len(shard) for shard in shards] == [198] * 10


@pytest.mark.parametrize(
    ("num_shards", "per_class", "message"),
    [
        (5, 6, r"smallest class has 25 training images: partition.num_shards=4 or "
         r"partition.per_class=5 would fit"),
        (3, 26, r"25 training images: partition.per_class=8 would fit"),
        (26, 5, r"25 training images: partition.num_shards=5 would fit"),
        (30, 30, r"not even one image of each class per shard; at most 25 shards would fit"),
        (26, None, r"num_shards=26: the smallest class has only 25 .* at most 25 shards"),
        (0, 1, r"partition.num_shards=0: must be at least 1"),
        (2, 0, r"partition.per_class=0: must be at least 1"),
    ],
)  # fmt: skip
def test_paper_says_what_would_fit(num_shards, per_class, message):
    with pytest.raises(UserError, match=message):
        paper_partition(LABELS, num_shards, per_class, seed=0)


def test_what_fits_really_fits():
    assert len(paper_partition(LABELS, 4, 6, seed=0)) == 4
    assert len(paper_partition(LABELS, 5, 5, seed=0)) == 5
    assert len(paper_partition(LABELS, 3, 8, seed=0)) == 3


@given(n=st.integers(1, 200), num_shards=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_iid_deals_out_everything_evenly(n, num_shards, seed):
    labels = np.zeros(n, dtype=np.int64)
    if num_shards > n:
        with pytest.raises(UserError, match=f"only {n} training images, at most {n} shards"):
            iid_partition(labels, num_shards, seed)
        return
    shards = iid_partition(labels, num_shards, seed)
    sizes = [len(shard) for shard in shards]
    assert len(sizes) == num_shards
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(shards).tolist()) == list(range(n))


def test_iid_is_shuffled():
    shards = iid_partition(np.repeat([0, 1], 500), 2, seed=0)
    share = LABELS_OF_HALVES[shards[0]].mean()
    assert 0.4 < share < 0.6


LABELS_OF_HALVES = np.repeat([0, 1], 500)


@pytest.mark.parametrize(("name", "params"), [("paper", {"per_class": 5}), ("iid", {})])
def test_same_seed_same_shards(name, params):
    first = make_partition(name, LABELS, 4, 3, **params)
    np.random.seed(0)
    again = make_partition(name, LABELS.tolist(), 4, 3, **params)
    other = make_partition(name, LABELS, 4, 4, **params)
    assert [shard.tolist() for shard in first] == [shard.tolist() for shard in again]
    assert [shard.tolist() for shard in first] != [shard.tolist() for shard in other]


def test_unknown_name():
    with pytest.raises(UserError, match=r"partition.name=nope: must be one of paper, iid"):
        make_partition("nope", LABELS, 2, 0)
