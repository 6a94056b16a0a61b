"""Who has which image."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcats.data import PARTITIONS, hold_out, paper_partition
from fedcats.errors import UserError

LABELS = np.array([0] * 25 + [1] * 31)


def make_partition(name, labels, num_shards, seed, **parameters):
    return PARTITIONS[name](num_shards=num_shards, **parameters)(labels, seed)


def disjoint(shards):
    together = np.concatenate(shards)
    return len(np.unique(together)) == len(together)


def test_paper_shards_hold_exactly_per_class_of_each():
    shards = paper_partition(LABELS, num_shards=4, per_class=6, seed=0)
    assert [np.bincount(LABELS[shard]).tolist() for shard in shards] == [[6, 6]] * 4
    assert disjoint(shards)
    assert all(shard.dtype == np.int64 for shard in shards)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 2**40)
)
def test_equal_deals_out_everything_as_evenly_as_can_be(counts, num_shards, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    if num_shards > min(counts):
        with pytest.raises(UserError, match=f"at most {min(counts)} shards"):
            paper_partition(labels, num_shards, None, seed)
        return
    shards = paper_partition(labels, num_shards, None, seed)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    table = np.array([np.bincount(labels[shard], minlength=len(counts)) for shard in shards])
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 1
    if all(count == counts[0] and count % num_shards == 0 for count in counts):
        fixed = paper_partition(labels, num_shards, counts[0] // num_shards, seed)
        assert all(map(np.array_equal, shards, fixed))


@pytest.mark.parametrize(("seed", "digest"), [(0, "32926c32"), (1, "b717b8d5"), (2, "d19a148c")])
def test_equal_shards_of_earlier_versions_stay_where_counts_divide(seed, digest):
    """Recorded at commit 2a542a2, which left the rest out: what users have stored is found."""
    labels = np.tile([0, 1, 1, 0, 2, 2], 8)  # 16 of each
    shards = [shard.tolist() for shard in paper_partition(labels, 4, None, seed)]
    assert hashlib.sha256(json.dumps(shards).encode()).hexdigest().startswith(digest)


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
        (0, 1, r"partition.num_shards=0: allowed is a number from 1"),
        (2, 0, r"partition.per_class=0: allowed is null or a number from 1"),
    ],
)  # fmt: skip
def test_paper_says_what_would_fit(num_shards, per_class, message):
    with pytest.raises(UserError, match=message):
        make_partition("paper", LABELS, num_shards, seed=0, per_class=per_class)


def test_what_fits_really_fits():
    assert len(paper_partition(LABELS, 4, 6, seed=0)) == 4
    assert len(paper_partition(LABELS, 5, 5, seed=0)) == 5
    assert len(paper_partition(LABELS, 3, 8, seed=0)) == 3


@given(n=st.integers(1, 200), num_shards=st.integers(1, 40), seed=st.integers(0, 2**40))
def test_iid_deals_out_everything_evenly(n, num_shards, seed):
    labels = np.zeros(n, dtype=np.int64)
    if num_shards > n:
        with pytest.raises(UserError, match=f"only {n} training images, at most {n} shards"):
            make_partition("iid", labels, num_shards, seed)
        return
    shards = make_partition("iid", labels, num_shards, seed)
    sizes = [len(shard) for shard in shards]
    assert len(sizes) == num_shards
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(shards).tolist()) == list(range(n))


def test_iid_is_shuffled():
    shards = make_partition("iid", np.repeat([0, 1], 500), 2, seed=0)
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


# --- shards that are not equal --------------------------------------------------------------------

UNEVEN = {
    "dirichlet": {"alpha": 0.5, "min_size": 1},
    "pathological": {"classes_per_shard": 1, "min_size": 1},
    "shard": {"pieces_per_shard": 2, "min_size": 1},
    "linear": {"min_size": 1},
    "square": {"min_size": 1},
    "exponential": {"min_size": 1},
}
HALVES = np.repeat([0, 1], 50)  # sorted, as the files of a folder are


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_shards_are_disjoint_and_follow_from_the_seed(name):
    shards = make_partition(name, HALVES, 4, 3, **UNEVEN[name])
    assert len(shards) == 4
    assert disjoint(shards)
    assert all(shard.dtype == np.int64 and len(shard) >= 1 for shard in shards)
    left_out = 4 if name == "shard" else 0  # 100 images in 8 pieces of 12
    assert sum(len(shard) for shard in shards) == 100 - left_out
    np.random.seed(0)
    again = make_partition(name, HALVES, 4, 3, **UNEVEN[name])
    other = make_partition(name, HALVES, 4, 4, **UNEVEN[name])
    assert [shard.tolist() for shard in shards] == [shard.tolist() for shard in again]
    assert [shard.tolist() for shard in shards] != [shard.tolist() for shard in other]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("linear", [10, 20, 30, 40]),
        ("square", [3, 13, 30, 54]),  # 100 * (1, 4, 9, 16) / 30, rounded down; the rest to the last
        ("exponential", [3, 8, 23, 66]),  # 100 * exp(1 .. 4) / 84.79
    ],
)
def test_quantity_skew_by_hand(name, sizes):
    shards = make_partition(name, HALVES, 4, 0, min_size=1)
    assert sorted(len(shard) for shard in shards) == sizes
    largest = HALVES[max(shards, key=len)].mean()
    assert 0.25 < largest < 0.75  # sorted labels would give 1.0
    of_seeds = [make_partition(name, HALVES, 4, seed, min_size=1) for seed in range(8)]
    assert len({int(np.argmax([*map(len, one)])) for one in of_seeds}) > 1  # not always the last


def test_pathological_shards_have_so_many_classes():
    labels = np.repeat([0, 1, 2, 3], 20)
    shards = make_partition("pathological", labels, 8, 0, classes_per_shard=2, min_size=1)
    assert [len(np.unique(labels[shard])) for shard in shards] == [2] * 8
    shards = make_partition("pathological", HALVES, 4, 0, classes_per_shard=1, min_size=1)
    assert [np.unique(HALVES[shard]).tolist() for shard in shards] == [[0], [1], [0], [1]]
    assert [len(shard) for shard in shards] == [25] * 4


def test_shards_of_sorted_pieces():
    shards = make_partition("shard", HALVES, 5, 0, pieces_per_shard=2, min_size=1)
    assert [len(shard) for shard in shards] == [20] * 5
    per_class = [np.bincount(HALVES[shard], minlength=2).tolist() for shard in shards]
    assert all(counts in ([20, 0], [10, 10], [0, 20]) for counts in per_class)


def test_dirichlet_goes_from_unlike_to_alike():
    def spread(alpha):
        shards = make_partition("dirichlet", HALVES, 4, 0, alpha=alpha, min_size=1)
        return np.std([HALVES[shard].mean() for shard in shards])

    assert spread(0.2) > 0.2
    assert spread(1000.0) < 0.05


@pytest.mark.parametrize(
    ("name", "num_shards", "params", "message"),
    [
        ("dirichlet", 4, {"alpha": 0.01, "min_size": 20}, r"fewer than partition.min_size=20; "
         r"raise partition.alpha, or lower partition.num_shards or partition.min_size"),
        ("dirichlet", 4, {"alpha": 0.0, "min_size": 1}, r"partition.alpha=0.0: allowed is a"),
        ("dirichlet", 4, {"alpha": float("nan"), "min_size": 1}, r"partition.alpha=nan: allowed"),
        ("pathological", 4, {"classes_per_shard": 3, "min_size": 1}, r"classes_per_shard=3: must "
         r"be from 1 to 2, the number of classes"),
        ("pathological", 4, {"classes_per_shard": 1, "min_size": 26}, r"at most 3 shards of"),
        ("shard", 4, {"pieces_per_shard": 0, "min_size": 1}, r"pieces_per_shard=0: allowed is a n"),
        ("shard", 4, {"pieces_per_shard": 26, "min_size": 1}, r"would need 104 pieces, but there "
         r"are only 100 training images"),
        ("exponential", 9, {"min_size": 1}, r"partition=exponential: 100 training images are "
         r"too few for 9 such shards, some would be empty; lower partition.num_shards"),
        ("exponential", 5, {"min_size": 2}, r"shard 0 would have 1 of 100 training images, fewer "
         r"than partition.min_size=2; lower partition.num_shards or partition.min_size"),
        ("linear", 101, {"min_size": 1}, r"num_shards=101: there are only 100 training images, at "
         r"most 100 shards of partition.min_size=1 would fit"),
        ("square", 4, {"min_size": 0}, r"partition.min_size=0: allowed is a number from 1"),
        ("linear", 0, {"min_size": 1}, r"partition.num_shards=0: allowed is a number from 1"),
    ],
)  # fmt: skip
def test_uneven_shards_that_cannot_be(name, num_shards, params, message):
    with pytest.raises(UserError, match=message) as error:
        make_partition(name, HALVES, num_shards, 0, **params)
    assert "\n" not in str(error.value)


@given(
    name=st.sampled_from([*UNEVEN, "iid"]),
    counts=st.lists(st.integers(0, 30), min_size=2, max_size=4),
    num_shards=st.integers(1, 12),
    min_size=st.integers(1, 4),
    seed=st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=60)
def test_any_uneven_partition_is_right_or_refused(name, counts, num_shards, min_size, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    params = {} if name == "iid" else UNEVEN[name] | {"min_size": min_size}
    try:
        shards = make_partition(name, labels, num_shards, seed, **params)
    except UserError:
        return
    assert len(shards) == num_shards
    assert disjoint(shards)
    assert all(len(shard) >= params.get("min_size", 1) for shard in shards)


def test_hold_out_is_stratified():
    shards = paper_partition(LABELS, num_shards=2, per_class=10, seed=0)
    training, held_out = hold_out(LABELS, shards, 0.2, seed=0)
    assert [np.bincount(LABELS[part]).tolist() for part in training] == [[8, 8]] * 2
    assert [np.bincount(LABELS[part]).tolist() for part in held_out] == [[2, 2]] * 2
    for shard, train, held in zip(shards, training, held_out, strict=True):
        assert sorted([*train, *held]) == shard.tolist()


def test_hold_out_of_one_image_and_of_one_class():
    shards = [np.array([3]), np.array([0, 1, 2, 4]), np.array([26, 5])]
    training, held_out = hold_out(LABELS, shards, 0.5, seed=0)
    assert [len(part) for part in training] == [1, 2, 2]
    assert [len(part) for part in held_out] == [0, 2, 0]
    nothing = hold_out(LABELS, shards, 0.0, seed=0)
    assert [len(part) for part in nothing[1]] == [0, 0, 0]
    with pytest.raises(UserError, match=r"partition.hold_out=1: must be from 0 to below 1"):
        hold_out(LABELS, shards, 1, seed=0)
