"""Zip archives, hostile ones too, and the layouts of Kaggle and PetImages."""

import io
import os
import re
import stat
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from fedcats.data import files, folder_source, prepare
from fedcats.errors import UserError


def jpeg(seed):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(path, *names, extra=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, jpeg(seed))
        if extra:
            extra(archive)
    return path


def class_folders(top="", per_class=4):
    return [f"{top}{kind}/{n}.jpg" for kind in ("Cat", "Dog") for n in range(per_class)]


def test_petimages_as_microsoft_has_it(tmp_path):
    def extra(archive):
        archive.writestr("PetImages/Cat/Thumbs.db", b"\xd0\xcf")
        archive.writestr("PetImages/Cat/666.jpg", b"")
        archive.writestr("readme[1].txt", "about")
        archive.writestr("MSR-LA - 3467.docx", b"PK")

    path = zipped(
        tmp_path / "kagglecatsanddogs_5340.zip", *class_folders("PetImages/"), extra=extra
    )
    source = folder_source(path, 0.25, 0)
    assert source.classes == ("Cat", "Dog")
    assert len(source.train) == 7
    assert len(source.test) == 2
    data = prepare(source, tmp_path / "cache", size=8, max_bad_fraction=0.2)
    assert data.audit.quarantined == (("PetImages/Cat/666.jpg", "empty file"),)
    assert data.audit.ignored == ()
    assert len(data.train) + len(data.test) == 8


def test_an_archive_gives_the_same_data_as_the_folder(tmp_path):
    names = [f"{split}/{n}" for split in ("train", "test") for n in class_folders()]
    path = zipped(tmp_path / "photos.zip", *names)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "photos")
    packed = prepare(folder_source(path, 0.25, 0), tmp_path / "cache", size=8)
    unpacked = prepare(folder_source(tmp_path / "photos", 0.25, 0), tmp_path / "cache", size=8)
    assert packed.train.files == unpacked.train.files
    assert packed.train.digest == unpacked.train.digest
    assert packed.test.digest == unpacked.test.digest


@pytest.mark.parametrize("top", ["", "train/", "dogs-vs-cats/train/", "flat/"])
def test_kaggle_with_the_class_in_the_name(tmp_path, top):
    names = [f"{top}{kind}.{n}.jpg" for kind in ("cat", "dog") for n in range(8)]
    others = ["test1/1.jpg", "test1/2.jpg"] if top == "train/" else []
    source = folder_source(zipped(tmp_path / "train.zip", *names, *others), 0.25, 0)
    assert source.classes == ("cat", "dog")
    assert sorted(item.path for item in (*source.train, *source.test)) == sorted(names)
    assert all(f"{source.classes[item.label]}." in item.path for item in source.train)
    assert len(source.test) == 4
    with zipfile.ZipFile(tmp_path / "train.zip") as archive:
        archive.extractall(tmp_path / "folder")
    unpacked = folder_source(tmp_path / "folder", 0.25, 0)
    assert (unpacked.train, unpacked.test) == (source.train, source.test)


def test_kaggle_names_without_a_class_are_named(tmp_path):
    names = [f"{kind}.{n}.jpg" for kind in ("cat", "dog") for n in range(3)]
    source = folder_source(zipped(tmp_path / "train.zip", *names, "IMG_1.jpg"), 0.25, 0)
    assert source.rejected == (("IMG_1.jpg", "no class in its name, as in cat.0.jpg"),)


def test_an_archive_in_an_archive_is_pointed_at(tmp_path):
    inner = zipped(tmp_path / "train.zip", "cat.0.jpg", "dog.0.jpg").read_bytes()

    def extra(archive):
        archive.writestr("train.zip", inner)
        archive.writestr("sampleSubmission.csv", "id,label")

    outer = zipped(tmp_path / "dogs-vs-cats.zip", extra=extra)
    with pytest.raises(UserError, match=r"holds no images but train\.zip; unpack it and name that"):
        folder_source(outer, 0.25, 0)


# --- hostile archives -----------------------------------------------------------------------------


def hostile(archive):
    archive.writestr("../../escaped.jpg", jpeg(101))
    archive.writestr("Cat/../../escaped.jpg", jpeg(102))
    archive.writestr("/absolute.jpg", jpeg(103))
    archive.writestr("C:/drive.jpg", jpeg(104))
    archive.writestr("Cat/..\\..\\backslash.jpg", jpeg(105))
    link = zipfile.ZipInfo("Cat/link.jpg")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(link, "/etc/passwd")
    archive.writestr("Cat/large.jpg", b"\0" * (files.MAX_FILE_BYTES + 1))
    archive.writestr("Cat/0.jpg", jpeg(106))


def test_hostile_members_are_named_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 20_000)
    place = tmp_path / "a" / "b" / "c"
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(place / "photos.zip", *class_folders(), extra=hostile)
    before = sorted(tmp_path.rglob("*"))
    source = folder_source(path, 0.25, 0)
    assert dict(source.rejected) == {
        "Cat/../../escaped.jpg": "unsafe name",
        "Cat/../../backslash.jpg": "unsafe name",
        "Cat/link.jpg": "link in an archive",
        "Cat/large.jpg": files._TOO_LARGE,
        "Cat/0.jpg (again)": "name occurs twice in the archive",
    }
    all_found = files.open_files(path).rejected
    assert {"../../escaped.jpg", "/absolute.jpg", "C:/drive.jpg"} <= all_found.keys()
    assert {item.path for item in (*source.train, *source.test)} == set(class_folders())
    data = prepare(source, place / "cache", size=8, max_bad_fraction=0.5)
    assert len(data.train) + len(data.test) == 8
    assert len(data.audit.quarantined) == 5
    new = [found for found in sorted(tmp_path.rglob("*")) if found not in before]
    assert all(found.is_relative_to(place / "cache") for found in new)
    assert not list(tmp_path.rglob("*escaped*"))


def patched(path, name, change):
    """Change the central directory entry of a member behind zipfile's back."""
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    change(content, at)
    path.write_bytes(content)


def lie_about_size(content, at):
    struct.pack_into("<I", content, at + 24, 5)


def wrong_checksum(content, at):
    struct.pack_into("<I", content, at + 16, 12345)


def unknown_compression(content, at):
    struct.pack_into("<H", content, at + 10, 77)


def say_encrypted(content, at):
    struct.pack_into("<H", content, at + 8, 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lie_about_size, "cannot be unpacked|damaged"),
        (wrong_checksum, "cannot be unpacked: Bad CRC-32"),
        (unknown_compression, "cannot be unpacked: .*compression"),
        (say_encrypted, "encrypted"),
    ],
)
def test_members_that_lie(tmp_path, change, reason):
    path = zipped(tmp_path / "photos.zip", *class_folders(per_class=6))
    patched(path, "Dog/3.jpg", change)
    data = prepare(folder_source(path, 0.25, 0), tmp_path / "cache", size=8, max_bad_fraction=0.1)
    ((name, why),) = data.audit.quarantined
    assert name == "Dog/3.jpg"
    assert re.search(reason, why)
    assert len(data.train) + len(data.test) == 11


@pytest.mark.parametrize(
    ("limit", "most", "said"),
    [
        ("MAX_FILES", 7, "holds more than 7 files and folders; allowed are 7 files"),
        ("MAX_ARCHIVE_BYTES", 100, r"claims to hold [\d,]+ bytes; allowed are 100"),
        ("MAX_LIST_BYTES", 300, "its list of files is longer than 300 bytes"),
    ],
)
def test_a_claim_of_too_much_is_refused(tmp_path, monkeypatch, limit, most, said):
    path = zipped(tmp_path / "photos.zip", *class_folders())
    folder_source(path, 0.25, 0)
    monkeypatch.setattr(files, limit, most)
    with pytest.raises(UserError, match=said):
        folder_source(path, 0.25, 0)


@pytest.mark.parametrize("name", ["a/" * 32_000, "a/" * 65, "é" * 1020 + "/", "\\a" * 99])
def test_names_without_end_are_refused_in_one_line(tmp_path, name):
    path = zipped(tmp_path / "photos.zip", *class_folders(), f"Cat/{name}x.jpg")
    with pytest.raises(UserError, match=r"allowed are 1,000,000 files and folders, and paths of"):
        folder_source(path, 0.25, 0)


def test_folders_without_end_are_refused_in_one_line(tmp_path, monkeypatch):
    zipped(tmp_path / "p.zip", *class_folders())
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        archive.extractall(tmp_path / "p")
    assert len(folder_source(tmp_path / "p", 0.25, 0).train) == 6
    monkeypatch.setattr(files, "MAX_FILES", 9)
    with pytest.raises(UserError, match="more than 9 files"):
        folder_source(tmp_path / "p", 0.25, 0)
    monkeypatch.undo()
    deep = os.open(tmp_path / "p" / "Cat", os.O_RDONLY)
    for _ in range(200):
        os.mkdir("d", dir_fd=deep)
        inner = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = inner
    os.close(deep)
    with pytest.raises(UserError, match=r"folders more than 64 deep, Cat/d/d/d.*; allowed are"):
        folder_source(tmp_path / "p", 0.25, 0)


def test_listing_takes_time_by_the_file_not_by_the_pair(tmp_path, monkeypatch):
    """The same work for each file, however many classes there are: counted, not timed."""
    calls = []
    look = files._folder_then_name
    monkeypatch.setattr(files, "_folder_then_name", lambda path: calls.append(1) or look(path))
    for classes in (20, 200):
        names = [f"c{i}/{j}.jpg" for i in range(classes) for j in range(2)]
        calls.clear()
        source = folder_source(zipped(tmp_path / f"{classes}.zip", *names), 0.5, 0)
        assert len(source.classes) == classes
        assert len(calls) <= 6 * classes


def test_classes_that_are_shown_alike_are_refused(tmp_path):
    names = [f"{name}/{n}.jpg" for name in ("a\x1b", "a\\x1b", "b") for n in (1, 2)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(1))
    with pytest.raises(UserError, match="two classes are called"):
        folder_source(tmp_path, 0.5, 0)


def test_a_bomb_is_not_unpacked_further_than_allowed(tmp_path, monkeypatch):
    """A member that says 5 bytes and holds 50 MB gives at most what it claims."""
    path = zipped(
        tmp_path / "photos.zip",
        *class_folders(per_class=6),
        extra=lambda archive: archive.writestr("Dog/bomb.jpg", b"\0" * 50_000_000),
    )
    patched(path, "Dog/bomb.jpg", lie_about_size)
    source = folder_source(path, 0.25, 0)
    data = prepare(source, tmp_path / "cache", size=8, max_bad_fraction=0.1)
    assert [name for name, _ in data.audit.quarantined] == ["Dog/bomb.jpg"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"Rar!\x1a\x07"])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "photos.zip").write_bytes(content)
    with pytest.raises(UserError, match="is neither a folder nor a zip archive"):
        folder_source(tmp_path / "photos.zip", 0.25, 0)


def test_a_cut_archive(tmp_path):
    path = zipped(tmp_path / "photos.zip", *class_folders())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + content[-22:])
    with pytest.raises(UserError, match="the archive cannot be read"):
        folder_source(path, 0.25, 0)


# --- counts and limits ----------------------------------------------------------------------------


def test_exact_counts_from_a_pool(tmp_path):
    path = zipped(tmp_path / "photos.zip", *class_folders(per_class=12))
    counts = {"train": [5, 8], "test": [3, 4]}
    source = folder_source(path, 0.25, 0, counts=counts)
    data = prepare(source, tmp_path / "cache", size=8)
    assert np.bincount(data.train.labels).tolist() == [5, 8]
    assert np.bincount(data.test.labels).tolist() == [3, 4]
    assert not set(data.train.files) & set(data.test.files)
    again = prepare(folder_source(path, 0.25, 0, counts=counts), tmp_path / "cache", size=8)
    assert again.train.files == data.train.files
    other = prepare(folder_source(path, 0.25, 1, counts=counts), tmp_path / "cache", size=8)
    assert other.train.files != data.train.files


def test_unusable_and_doubled_files_are_replaced(tmp_path):
    """9 cats of which 2 are broken and one is in test too still give exactly 6."""
    for split, count in (("train", 9), ("test", 3)):
        for label, kind in enumerate(("cat", "dog")):
            for number in range(count):
                file = tmp_path / "photos" / split / kind / f"{number}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(jpeg(100 * label + number + (50 if split == "test" else 0)))
    cats = tmp_path / "photos/train/cat"
    (cats / "2.jpg").write_bytes(b"")
    (cats / "5.jpg").write_bytes(b"broken")
    (cats / "7.jpg").write_bytes((tmp_path / "photos/test/cat/1.jpg").read_bytes())

    def prepared(cats_wanted):
        counts = {"train": [cats_wanted, 4], "test": [3, 2]}
        source = folder_source(tmp_path / "photos", 0.25, 0, counts=counts)
        return prepare(source, tmp_path / "cache", size=8, max_bad_fraction=0.5)

    data = prepared(6)
    assert np.bincount(data.train.labels).tolist() == [6, 4]
    assert np.bincount(data.test.labels).tolist() == [3, 2]
    assert not {f"train/cat/{n}.jpg" for n in (2, 5, 7)} & set(data.train.files)
    with pytest.raises(
        UserError,
        match=r"data.counts: 7 images of class 'cat' are wanted for train, but there are only 6",
    ):
        prepared(7)


def test_limit_takes_at_most_so_many(tmp_path):
    names = class_folders(per_class=12)[:-8]  # 12 cats, 4 dogs
    path = zipped(tmp_path / "photos.zip", *names)
    data = prepare(folder_source(path, 0.5, 0, limit=3), tmp_path / "cache", size=8)
    assert np.bincount(data.train.labels).tolist() == [3, 2]
    assert np.bincount(data.test.labels).tolist() == [3, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, r"data.limit=0: must be at least 1, or null"),
        ({"limit": 3, "counts": {"train": [1, 1], "test": [1, 1]}}, "only one of them can be set"),
        ({"counts": {"train": [1, 1]}}, r"data.counts=\{'train': \[1, 1\]\}: allowed is train and"),
        ({"counts": {"train": [1], "test": [1, 1]}}, r"each with 2 numbers from 1, .* Cat, Dog"),
        ({"counts": {"train": [0, 1], "test": [1, 1]}}, r"numbers from 1"),
        ({"counts": {"train": [1.5, 1], "test": [1, 1]}}, r"numbers from 1"),
    ],
)
def test_counts_and_limits_are_checked(tmp_path, options, message):
    path = zipped(tmp_path / "photos.zip", *class_folders())
    with pytest.raises(UserError, match=message):
        folder_source(path, 0.25, 0, **options)
