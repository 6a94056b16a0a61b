"""Folders of photos: layouts, order, splits and what is refused."""

import os

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from fedcats.data import BadImage, folder_source
from fedcats.errors import UserError


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path, "PNG")


def photos(root, *paths):
    for seed, path in enumerate(paths):
        photo(root / path, seed)


def split_folder(root, per_class=2, classes=("cat", "dog")):
    photos(
        root,
        *(
            f"{split}/{name}/{name}.{number}.jpg"
            for split in ("train", "test")
            for name in classes
            for number in range(per_class)
        ),
    )


def test_given_split_in_the_order_of_image_folder(tmp_path):
    names = ["b.jpg", "a.JPG", "B.png", "sub/z.jpg", "a2/y.jpeg", "10.jpg", "9.jpg"]
    for split in ("train", "test"):
        photos(tmp_path, *(f"{split}/{kind}/{name}" for kind in ("dog", "Cat") for name in names))
    source = folder_source(tmp_path, 0.25, 0)
    for split, items in (("train", source.train), ("test", source.test)):
        expected = ImageFolder(tmp_path / split)
        assert list(source.classes) == expected.classes == ["Cat", "dog"]
        assert [(str(tmp_path / item.path), item.label) for item in items] == expected.samples
    assert source.name == "folder"


def test_reads_bytes_and_images(tmp_path):
    split_folder(tmp_path)
    source = folder_source(tmp_path, 0.25, 0)
    item = source.train[0]
    assert item.path == "train/cat/cat.0.jpg"
    assert source.read(item.path) == (tmp_path / item.path).read_bytes()
    assert source.image(item).size == (7, 9)
    assert source.image(item).mode == "RGB"


def test_a_file_that_went_away_is_a_bad_image(tmp_path):
    split_folder(tmp_path)
    source = folder_source(tmp_path, 0.25, 0)
    (tmp_path / "train/cat/cat.0.jpg").unlink()
    with pytest.raises(BadImage, match="cannot be read: No such file"):
        source.read("train/cat/cat.0.jpg")


def test_seeded_split_is_stratified(tmp_path):
    photos(tmp_path, *(f"cat/{n}.jpg" for n in range(8)), *(f"dog/{n}.jpg" for n in range(12)))
    source = folder_source(tmp_path, 0.25, 3)
    assert [sum(item.label == label for item in source.test) for label in (0, 1)] == [2, 3]
    assert [sum(item.label == label for item in source.train) for label in (0, 1)] == [6, 9]
    paths = {item.path for item in source.train} | {item.path for item in source.test}
    assert len(paths) == 20
    assert folder_source(tmp_path, 0.25, 3).test == source.test
    assert folder_source(tmp_path, 0.25, 4).test != source.test


def test_split_leaves_one_on_each_side(tmp_path):
    photos(tmp_path, *(f"{kind}/{n}.jpg" for kind in "abc" for n in range(2)))
    for fraction in (0.01, 0.99):
        source = folder_source(tmp_path, fraction, 0)
        assert [item.label for item in source.train] == [0, 1, 2]
        assert [item.label for item in source.test] == [0, 1, 2]


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2, float("nan")])
def test_split_fraction_is_checked(tmp_path, fraction):
    photos(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
    with pytest.raises(UserError, match=r"data.test_fraction=.*: must be above 0 and below 1"):
        folder_source(tmp_path, fraction, 0)


def empty_class(root):
    split_folder(root)
    (root / "train" / "emu").mkdir()
    photo(root / "test/emu/1.jpg")


def no_test_class(root):
    split_folder(root)
    photo(root / "train/emu/1.jpg")


def only_in_test(root):
    split_folder(root)
    photo(root / "test/emu/1.jpg")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda root: root.rmdir(), r"data.root=.*: does not exist"),
        (lambda root: None, r"no class folders in .*; allowed are train/<class> and test/<class>"),
        (lambda root: photos(root, "1.jpg", "2.jpg"), r"no class folders in"),
        (lambda root: photos(root, "a/1.jpg", "a/2.jpg"), r"only one class folder, 'a'"),
        (lambda root: split_folder(root, classes=("a",)), r"folder, 'a', in .*train"),
        (lambda root: photos(root, "train/a/1.jpg", "train/b/1.jpg"), r"but not in test; allowed"),
        (lambda root: photos(root, "test/a/1.jpg", "test/b/1.jpg"), r"but not in train; allowed"),
        (lambda root: photos(root, "a/1.jpg", "b/1.jpg", "b/2.jpg"), r"class 'a' has one image"),
        (empty_class, r"the class folder train/emu has no images"),
        (no_test_class, r"class 'emu' is in train but not in test"),
        (only_in_test, r"class 'emu' is in test but not in train; train has cat, dog"),
    ],
)  # fmt: skip
def test_layouts_that_are_refused(tmp_path, build, message):
    build(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        folder_source(tmp_path, 0.25, 0)
    assert "\n" not in str(error.value)


def test_a_file_is_not_a_folder(tmp_path):
    photo(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="is neither a folder nor a zip archive"):
        folder_source(tmp_path / "a.jpg", 0.25, 0)


def test_what_is_no_image_by_name_is_looked_at(tmp_path):
    split_folder(tmp_path)
    photos(tmp_path, "train/cat/no_ending", "train/cat/photo.jpg.backup")
    (tmp_path / "train/cat/notes.txt").write_text("cats")
    (tmp_path / "train/cat/Thumbs.db").write_bytes(b"\xd0\xcf")
    (tmp_path / "train/cat/.DS_Store").write_bytes(b"Bud1")
    source = folder_source(tmp_path, 0.25, 0)
    cats = [item.path for item in source.train if item.label == 0]
    assert cats == [
        "train/cat/cat.0.jpg",
        "train/cat/cat.1.jpg",
        "train/cat/no_ending",
        "train/cat/photo.jpg.backup",
    ]
    assert source.ignored == ("train/cat/notes.txt",)
    assert source.rejected == ()


def test_links_and_pipes(tmp_path):
    root = tmp_path / "root"
    split_folder(root)
    photo(tmp_path / "outside.jpg")
    cats = root / "train/cat"
    (cats / "away.jpg").symlink_to(tmp_path / "outside.jpg")
    (cats / "up.jpg").symlink_to("../../../outside.jpg")
    (cats / "inside.jpg").symlink_to("../dog/dog.0.jpg")
    (cats / "nowhere.jpg").symlink_to("missing.jpg")
    (cats / "loop.jpg").symlink_to("loop.jpg")
    (cats / "round").symlink_to(root / "train")
    (cats / "elsewhere").symlink_to(tmp_path)
    os.mkfifo(cats / "pipe.jpg")
    source = folder_source(root, 0.25, 0)
    assert dict(source.rejected) == {
        "train/cat/away.jpg": "link that leaves the folder",
        "train/cat/up.jpg": "link that leaves the folder",
        "train/cat/elsewhere": "link that leaves the folder",
        "train/cat/nowhere.jpg": "link to something that is no file",
        "train/cat/loop.jpg": "link to something that is no file",
        "train/cat/round": "link to something that is no file",
        "train/cat/pipe.jpg": "not a regular file",
    }
    assert "train/cat/inside.jpg" in {item.path for item in source.train}


@pytest.mark.parametrize("inside", ["train", "train/emu"])
def test_class_folders_that_lead_away_are_refused(tmp_path, inside):
    split_folder(tmp_path / "real", classes=("cat", "dog", "emu"))
    root = tmp_path / "root"
    split_folder(root)
    photo(root / "test/emu/1.jpg")
    if inside == "train":
        (root / "train").rename(root / "old")
    (root / inside).symlink_to(tmp_path / "real" / inside)
    with pytest.raises(UserError, match=f"the folder {inside} is a link that leaves it"):
        folder_source(root, 0.25, 0)


def test_a_linked_root_is_fine(tmp_path):
    split_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(folder_source(tmp_path / "link", 0.25, 0).train) == 4
