"""Parts and classes under the names that people give them, and what is neither."""

import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from fedcats.data import folder_source
from fedcats.data.sources import part_source
from fedcats.errors import UserError


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path, "JPEG")


def tree(root, *folders, number=2):
    """Photos in each folder."""
    seed = 0
    for folder in folders:
        for n in range(number):
            photo(root / folder / f"{n}.jpg", seed)
            seed += 1
    return root


def parts(*names, classes=("cats", "dogs")):
    return [f"{name}/{kind}" for name in names for kind in classes]


def counts(source):
    return [len(source.train), len(source.test)]


def zipped(root):
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "TEST"),
        ("training", "testing"),
        ("Training Set", "Test Set"),
        ("training_set/training_set", "test_set/test_set"),
        ("trainset", "testset"),
        ("train_images", "test_images"),
        ("train-data", "val-data"),
        ("train", "valid"),
        ("train", "Validation"),
        ("train", "dev"),
        ("train", "evaluation"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("dataset/train", "dataset/test"),
        ("a/b/TrainingSet", "a/b/TestSet"),
    ],
)
def test_usual_names_of_the_parts(tmp_path, train, test, packed):
    root = tree(tmp_path / "d", *parts(train), *parts(test))
    source = folder_source(zipped(root) if packed else root, 0.25, 0)
    assert source.classes == ("cats", "dogs")
    assert {item.path.removeprefix(train).count("/") for item in source.train} == {2}
    assert all(item.path.startswith(test) for item in source.test)
    assert counts(source) == [4, 4]
    assert ("tested on the images in" in source.note) == ("test" not in test.lower())


def test_a_validation_part_is_left_out_and_that_is_said(tmp_path):
    root = tree(tmp_path, *parts("train", "val", "test"))
    source = folder_source(root, 0.25, 0)
    assert counts(source) == [4, 4]
    assert source.note == "the 4 images in val are not used"


def test_an_unlabelled_test_part_beside_a_validation_part(tmp_path):
    source = folder_source(tree(tmp_path, *parts("train", "val"), "test"), 0.25, 0)
    assert {item.path.split("/")[0] for item in source.test} == {"val"}
    assert source.note == ("tested on the images in val, as there are no classes in a test part")


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["train", "car", "bus"], ("bus", "car", "train")),
        (["test", "control"], ("control", "test")),
        (["valid", "invalid"], ("invalid", "valid")),
        (["freight_train/2019", "freight_train/2020", "bus/1", "bus/2"], ("bus", "freight_train")),
        (["valid/a", "valid/b", "other/c"], ("other", "valid")),
        (["outputs", "shards", "figures"], ("figures", "outputs", "shards")),
        (parts("train", "test", classes=("train", "car", "bus")), ("bus", "car", "train")),
        (["cat/indoor", "cat/outdoor", "dog/indoor", "dog/outdoor"], ("cat", "dog")),
        (["training/cats", "training/dogs"], ("cats", "dogs")),
    ],
)
def test_classes_that_are_called_like_something_else(tmp_path, folders, classes):
    assert folder_source(tree(tmp_path, *folders), 0.25, 0).classes == classes


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test"], "train, test look like parts of a data set, not like classes"),
        (["Training", "Validation"], "Training, Validation look like parts"),
        (["seg_train", "seg_test"], "seg_train, seg_test look like parts"),
        (["train", "test", "car"], "train, test look like parts"),
        ([*parts("train", "training", "test")], "several folders look like the train part: train,"),
        (
            [*parts("train", "val", "dev")],
            "several folders look like the test part: dev, val; keep",
        ),
        ([*parts("train"), "car", "bus"], "classes in train but not in test"),
        (
            [*parts("training_set"), "more"],
            "training_set looks like a part .* but there is no test",
        ),
        ([*parts("test_set"), "more"], "test_set looks like a part .* no train part, and more bes"),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            "each class is divided by itself, such as cat/test",
        ),
        ([*parts("Train"), "Test/cats"], "'dogs' is in Train but not in Test"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(tmp_path, folders, message):
    with pytest.raises(UserError, match=message) as error:
        folder_source(tree(tmp_path, *folders), 0.25, 0)
    assert "\n" not in str(error.value)


def test_flat_parts_with_the_class_in_the_name(tmp_path):
    for part, number in (("Train", 3), ("Test", 2)):
        for kind in ("cat", "dog"):
            for n in range(number):
                photo(tmp_path / part / f"{kind}.{n}.jpg", n)
    source = folder_source(tmp_path, 0.25, 0)
    assert counts(source) == [6, 4]
    shutil.rmtree(tmp_path / "Test")
    assert counts(folder_source(tmp_path, 0.3, 0)) == [4, 2]


def test_a_sites_part_under_another_name(tmp_path):
    tree(tmp_path, *parts("Training", "test"))
    source = part_source(tmp_path, "train", ("cats", "dogs"))
    assert {item.path.split("/")[0] for item in source.train} == {"Training"}


# --- what is no data ------------------------------------------------------------------------------

SYSTEM = (
    *("@eaDir", "lost+found", "System Volume Information", "$RECYCLE.BIN", ".Trash-1000"),
    *("#recycle", "__MACOSX", ".ipynb_checkpoints", ".thumbnails", "#snapshot", "RECYCLER"),
)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("top", ["", "cat/", "train/", "train/cat/"])
@pytest.mark.parametrize("name", SYSTEM)
def test_system_folders_are_no_data(tmp_path, name, top, packed):
    folders = (
        ["cat", "dog"] if top in ("", "cat/") else parts("train", "test", classes=("cat", "dog"))
    )
    root = tree(tmp_path / "d", *folders)
    before = folder_source(root, 0.25, 0)
    tree(root, f"{top}{name}/sub", f"{top}{name}")
    photo(root / top / "._0.jpg")
    (root / top / "Thumbs.db").write_bytes(b"\xd0\xcf")
    (root / top / "desktop.ini").write_text("[.ShellClassInfo]")
    after = folder_source(zipped(root) if packed else root, 0.25, 0)
    assert (after.classes, after.train, after.test) == (before.classes, before.train, before.test)
    assert (after.rejected, after.ignored) == ((), ())


def test_system_folders_that_may_not_be_read(tmp_path, monkeypatch):
    tree(tmp_path, "cat", "dog", "lost+found", "cat/System Volume Information")
    listed = os.scandir

    def scandir(path):
        if "lost+found" in str(path) or "System" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in scandir(path)])
    assert folder_source(tmp_path, 0.25, 0).classes == ("cat", "dog")


def write(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def wrote(folder):
    """What a run leaves in its folder."""
    write(folder / ".hydra/config.yaml")
    for name in ("shards.csv", "results.json", "report.html", "predictions/fedavg.csv"):
        write(folder / name)
    write(folder / "models/fedavg.safetensors")
    photo(folder / "figures/loss.png")
    write(folder / "figures/loss.svg", b"<svg/>")


def sheets(folder):
    for name in ("shard-0.png", "shard-11.png", "who-has-what.png"):
        photo(folder / name)
    write(folder / "who-has-what.svg", b"<svg/>")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["outputs/2026-11-26/10-00-00", "out", "multirun/x/0", "", "cat"])
@pytest.mark.parametrize("writes", [wrote, sheets])
def test_what_fedcats_wrote_is_no_data(tmp_path, writes, place, packed):
    root = tree(tmp_path / "d", "cat", "dog")
    before = folder_source(root, 0.25, 0)
    writes(root / place)
    after = folder_source(zipped(root) if packed else root, 0.25, 0)
    assert (after.classes, after.train, after.test) == (before.classes, before.train, before.test)


def test_photos_beside_what_fedcats_wrote_stay(tmp_path):
    root = tree(tmp_path, "outputs", "shards", "outputs/figures")
    wrote(root / "outputs")
    sheets(root / "shards")
    photo(root / "shards/shard-x.png")
    source = folder_source(root, 0.25, 0)
    assert source.classes == ("outputs", "shards")
    paths = {item.path for item in (*source.train, *source.test)}
    assert paths == {
        *(
            f"{folder}/{n}.jpg"
            for folder in ("outputs", "outputs/figures", "shards")
            for n in (0, 1)
        ),
        "shards/shard-x.png",
    }


def test_fedcats_home_inside_the_data(tmp_path, monkeypatch):
    root = tree(tmp_path, "cat", "dog")
    write(root / "cache/home/store/lock")
    photo(root / "cache/home/downloads/oxford-iiit-pet/images/a.jpg")
    monkeypatch.setenv("FEDCATS_HOME", str(root / "cache/home"))
    assert folder_source(root, 0.25, 0).classes == ("cat", "dog")


def test_an_empty_class_folder_is_still_an_error(tmp_path):
    root = tree(tmp_path, "cat", "dog")
    (root / "emu").mkdir()
    wrote(root)
    with pytest.raises(UserError, match="the class folder emu has no images"):
        folder_source(root, 0.25, 0)


# --- names ----------------------------------------------------------------------------------------


def test_an_archive_with_names_that_are_no_utf_8(tmp_path):
    root = tree(tmp_path / "d", "cat", "dog")
    path = zipped(root)
    content = path.read_bytes().replace(b"cat/0.jpg", b"cat/\x84.jpg")  # cp437, as Windows had it
    path.write_bytes(content)
    assert "cat/ä.jpg" in {item.path for item in folder_source(path, 0.01, 0).train}
    broken = bytearray(content)
    at = broken.rindex(b"PK\x01\x02", 0, broken.rindex(b"cat/\x84.jpg"))
    broken[at + 9] |= 0x08  # says that the name is UTF-8
    path.write_bytes(broken)
    with pytest.raises(UserError, match=r"the archive cannot be read: .*utf-8"):
        folder_source(path, 0.25, 0)


@pytest.mark.parametrize("layout", [parts("train", "test", classes=("x", "y")), ["x", "y"]])
def test_class_names_are_text_of_one_line(tmp_path, layout):
    root = tree(tmp_path, *layout)
    names = {"x": os.fsdecode(b"k\xe4tzchen"), "y": "two\nlines \x1b[31m"}
    for folder in layout:
        (root / folder).rename((root / folder).with_name(names[folder[-1]]))
    classes = ("k\\udce4tzchen", "two\\nlines \\x1b[31m")
    source = folder_source(root, 0.25, 0)
    assert source.classes == classes
    assert source.image(source.train[0]).size == (7, 9)
    part = part_source(root, "train", classes[::-1])
    assert {item.label for item in part.train} == {0, 1}
