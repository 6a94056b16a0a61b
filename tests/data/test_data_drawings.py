"""The drawn cats and dogs."""

import numpy as np
import pytest

from fedcats.data import synthetic_source
from fedcats.errors import UserError


def test_names_labels_and_numbers():
    source = synthetic_source(3, 2, 0)
    assert source.classes == ("cat", "dog")
    assert [item.path for item in source.train][:4] == [
        "train/cat/cat.0.jpg",
        "train/cat/cat.1.jpg",
        "train/cat/cat.2.jpg",
        "train/dog/dog.0.jpg",
    ]
    assert [item.label for item in source.train] == [0, 0, 0, 1, 1, 1]
    assert [item.label for item in source.test] == [0, 0, 1, 1]
    assert "not photos" in source.note


def test_a_drawing_follows_from_seed_and_name_alone():
    few, many = synthetic_source(1, 1, 5), synthetic_source(9, 3, 5)
    assert few.read("train/dog/dog.0.jpg") == many.read("train/dog/dog.0.jpg")
    np.random.seed(0)
    assert few.read("train/dog/dog.0.jpg") == many.read("train/dog/dog.0.jpg")
    assert few.read("train/dog/dog.0.jpg") != synthetic_source(1, 1, 6).read("train/dog/dog.0.jpg")


def test_all_drawings_differ():
    source = synthetic_source(15, 15, 0)
    drawings = {source.read(item.path) for item in (*source.train, *source.test)}
    assert len(drawings) == 60


def test_a_drawing_is_a_lively_rgb_picture():
    source = synthetic_source(12, 1, 0)
    for item in source.train:
        image = source.image(item)
        assert image.mode == "RGB"
        assert image.size == (256, 256)
        assert np.asarray(image).std() > 8


@pytest.mark.parametrize(("train", "test", "key"), [(0, 5, "train"), (5, -1, "test")])
def test_numbers_are_checked(train, test, key):
    with pytest.raises(UserError, match=f"data.{key}_per_class=.*: must be at least 1"):
        synthetic_source(train, test, 0)
