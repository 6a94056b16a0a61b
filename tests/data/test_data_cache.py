"""The decoded-image cache: built once, keyed by content, never half there."""

import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from cached import datasets_in, prepare_slowly, prepared
from conftest import photo, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedcats import locks
from fedcats.data import (
    DamagedData,
    folder_source,
    open_dataset,
    prepare,
    synthetic_source,
)
from fedcats.data.build import sha256_of
from fedcats.errors import RunError, UserError


def test_content(root, tmp_path):
    data = prepared(root, tmp_path / "cache")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (10, 6)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    assert data.train.labels.dtype == np.int64
    assert data.train.files[6] == "train/dog/1.png"
    with Image.open(root / "train/dog/1.png") as image:
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    pixels = data.train.pixels([6, 0])
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0), expected)


def test_subset_is_a_view_by_position(root, tmp_path):
    train = prepared(root, tmp_path / "cache").train
    part = train.subset([7, 2, 9])
    assert part.labels.tolist() == [1, 0, 1]
    assert part.files == tuple(train.files[i] for i in (7, 2, 9))
    assert torch.equal(part.pixels(torch.tensor([2, 0])), train.pixels([9, 7]))
    assert torch.equal(part.subset([1]).pixels([0]), train.pixels([2]))
    assert len(train.subset([])) == 0


def test_digest_follows_files_labels_order_and_size(root, tmp_path):
    train = prepared(root, tmp_path / "cache").train
    assert train.subset([1, 2]).digest == train.subset([1, 2]).digest
    assert train.subset([1, 2]).digest != train.subset([2, 1]).digest
    assert train.subset([1, 2]).digest != train.subset([1, 3]).digest
    larger = prepare(folder_source(root, 0.25, 0), tmp_path / "cache", size=17).train
    assert larger.digest != train.digest
    (root / "train/cat").rename(root / "train/z")
    (root / "test/cat").rename(root / "test/z")
    relabelled = prepared(root, tmp_path / "cache").train
    dog = relabelled.files.index("train/dog/0.png")
    assert relabelled.subset([dog]).digests == train.subset([5]).digests
    assert relabelled.subset([dog]).digest != train.subset([5]).digest


def test_opened_again_without_decoding(root, tmp_path):
    calls = []
    first = prepared(root, tmp_path / "cache", on_progress=lambda *done: calls.append(done))
    assert calls == [(i, 16) for i in range(1, 17)]
    before = (first.path / "train.npy").stat().st_mtime_ns
    again = prepared(root, tmp_path / "cache", on_progress=lambda *done: calls.append(done))
    assert len(calls) == 16
    assert (again.path / "train.npy").stat().st_mtime_ns == before
    assert again.train.digest == first.train.digest


def test_a_moved_folder_is_the_same_data(root, tmp_path):
    first = prepared(root, tmp_path / "cache")
    moved = root.rename(tmp_path / "moved")
    assert prepared(moved, tmp_path / "cache").path == first.path


def test_a_changed_photo_is_other_data(root, tmp_path):
    first = prepared(root, tmp_path / "cache")
    photo(root / "train/cat/0.png", seed=999)
    second = prepared(root, tmp_path / "cache")
    assert second.path != first.path
    assert not torch.equal(second.train.pixels([0]), first.train.pixels([0]))
    assert torch.equal(second.train.pixels([1]), first.train.pixels([1]))


def damage_index(path):
    text = (path / "index.json").read_text()
    (path / "index.json").write_text(text.replace("train/cat/0.png", "train/cat/9.png"))


def cut_index(path):
    text = (path / "index.json").read_text()
    (path / "index.json").write_text(text[: len(text) // 2])


def cut_pixels(path):
    os.truncate(path / "train.npy", (path / "train.npy").stat().st_size - 1)


def other_shape(path):
    np.save(path / "test.npy", np.zeros((6, 3, 16, 15), dtype=np.uint8))


def other_type(path):
    np.save(path / "test.npy", np.zeros((6, 3, 16, 16), dtype=np.int8))


def rearrange(name, order):
    def damage(path):
        images = np.load(path / name)
        np.save(path / name, images[order])

    return damage


def zero(path):
    with (path / "train.npy").open("r+b") as file:
        file.seek(1000)
        file.write(bytes(2000))


def swap_the_parts(path):
    """As far as they go: of the same length as before."""
    train, test = (np.load(path / name) for name in ("train.npy", "test.npy"))
    np.save(path / "train.npy", np.concatenate([test, train[6:]]))
    np.save(path / "test.npy", train[:6])


def without_checksums(path):
    """As earlier versions wrote it."""
    index = json.loads((path / "index.json").read_text())["index"]
    for part in (index["train"], index["test"]):
        del part["xxh3"], part["offset"]
    (path / "index.json").write_text(json.dumps({"sha256": sha256_of(index), "index": index}))


def copy_of_another(path):
    other = prepare(synthetic_source(5, 3, 0), path.parent, size=16).path
    shutil.rmtree(path)
    shutil.copytree(other, path)


@pytest.mark.parametrize(
    "damage",
    [
        rearrange("test.npy", slice(None, None, -1)),
        rearrange("train.npy", [1, 0, *range(2, 10)]),
        zero,
        swap_the_parts,
        without_checksums,
        copy_of_another,
        damage_index,
        cut_index,
        cut_pixels,
        other_shape,
        other_type,
        lambda path: (path / "test.npy").write_bytes(b""),
        lambda path: (path / "test.npy").unlink(),
        lambda path: (path / "index.json").unlink(),
        lambda path: (path / "index.json").write_text("[]"),
    ],
)
def test_damage_is_noticed_and_repaired(root, tmp_path, damage):
    first = prepared(root, tmp_path / "cache")
    pixels = first.train.pixels(range(10))
    damage(first.path)
    with pytest.raises(DamagedData, match=r"cannot be used|is damaged"):
        open_dataset(first.path).verify()
    said = []
    again = prepared(root, tmp_path / "cache", say=said.append)
    assert len(said) == 1
    assert "; a run begins by decoding it anew" in said[0]
    assert again.path == first.path
    assert torch.equal(again.train.pixels(range(10)), pixels)
    assert open_dataset(again.path).train.digest == first.train.digest


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_changed_bit_is_ever_read(tmp_path_factory, data):
    """Also where the data set was whole when it was opened."""
    cache = tmp_path_factory.getbasetemp() / "changed"
    opened = prepare(synthetic_source(3, 2, 0), cache, size=8)
    part = data.draw(st.sampled_from(["train", "test"]))
    images = getattr(opened, part)
    bit = data.draw(st.integers(0, len(images) * 3 * 8 * 8 * 8 - 1))
    content = bytearray(images.path.read_bytes())
    content[images.offset + bit // 8] ^= 1 << bit % 8
    images.path.write_bytes(content)
    hit = bit // (3 * 8 * 8 * 8)
    for i in range(len(images)):
        if i == hit:
            with pytest.raises(RunError, match=re.escape(f"{part}.npy, {images.files[i]}")):
                images.subset([i]).pixels([0])
        else:
            images.pixels([i])


def test_damage_is_said_in_another_process_in_the_same_words():
    error = DamagedData("the decoded data set is damaged")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, RunError)
    assert str(again) == str(error)


def test_locks_of_data_sets_that_are_gone_go_too(root, tmp_path):
    """As earlier versions left them; one that is held stays."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "left.lock").touch()
    with locks.locked(cache / "held.lock"):
        data = prepared(root, cache)
        assert {path.name for path in cache.iterdir()} == {data.path.name, "held.lock"}


def test_what_cannot_be_opened_for_a_moment_is_not_damaged(root, tmp_path):
    data = prepared(root, tmp_path / "cache")
    before = (data.path / "train.npy").stat()
    images, limit = data.train, resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))  # files that are open stay so
        for attempt in (lambda: open_dataset(data.path), lambda: images.pixels([0])):
            with pytest.raises(RunError, match="Too many open files") as error:
                attempt()
            assert not isinstance(error.value, DamagedData)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert prepared(root, tmp_path / "cache").path == data.path
    assert (data.path / "train.npy").stat().st_mtime_ns == before.st_mtime_ns


def test_open_dataset_in_another_place(root, tmp_path):
    data = prepared(root, tmp_path / "cache")
    opened = open_dataset(str(data.path))
    assert opened.classes == data.classes
    assert opened.note == data.note
    assert opened.test.digest == data.test.digest
    assert torch.equal(opened.test.pixels([3]), data.test.pixels([3]))
    with pytest.raises(RunError, match=r"cannot be used: .*No such file"):
        open_dataset(tmp_path / "nothing")


def test_pickled_views_carry_no_pixels(root, tmp_path):
    train = prepare(folder_source(root, 0.25, 0), tmp_path / "cache", size=224).train
    train.pixels([0])
    content = pickle.dumps(train)
    assert len(content) < 5000
    assert torch.equal(pickle.loads(content).pixels([4]), train.pixels([4]))


def _prepare_in_process(root, cache, start, results):
    start.wait()
    decoded = []
    data = prepared(root, cache, on_progress=lambda *done: decoded.append(done))
    results.put((str(data.path), data.train.digest, len(decoded)))


def test_several_processes_at_once_decode_once(root, tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    processes = [
        context.Process(target=_prepare_in_process, args=(root, tmp_path / "cache", start, results))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    start.set()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({answer[:2] for answer in answers}) == 1
    assert sorted(answer[2] for answer in answers) == [0, 0, 0, 16]


def test_a_killed_process_leaves_nothing_behind(root, tmp_path):
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=prepare_slowly, args=(root, cache))
    process.start()
    wait_until(lambda: list(cache.glob("*.part/train.npy")))
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (part,) = datasets_in(cache)
    assert part.suffix == ".part"
    data = prepared(root, cache)
    assert datasets_in(cache) == [data.path]
    assert len(data.train) == 10


def test_unusable_files_are_left_out_and_named(root, tmp_path):
    (root / "train/cat/1.png").write_bytes(b"")
    (root / "test/dog/0.png").write_text("no image")
    data = prepared(root, tmp_path / "cache", max_bad_fraction=0.2)
    assert data.audit.quarantined == (
        ("test/dog/0.png", "not an image of a known kind"),
        ("train/cat/1.png", "empty file"),
    )
    assert "train/cat/1.png" not in data.train.files
    assert data.train.labels.tolist() == [0] * 4 + [1] * 5
    with Image.open(root / "train/cat/2.png") as image:
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(data.train.pixels([1])[0].permute(1, 2, 0), expected)


def test_too_many_unusable_files_stop_the_run(root, tmp_path):
    (root / "train/cat/1.png").write_bytes(b"")
    for _ in range(2):  # also when the cache is there already
        with pytest.raises(
            UserError,
            match=r"1 of 16 files cannot be used, more than data.max_bad_fraction=0.05 allows: "
            r"train/cat/1.png \(empty file\)",
        ):
            prepared(root, tmp_path / "cache")


def test_a_class_without_usable_images_stops_the_run(root, tmp_path):
    for number in range(3):
        (root / f"test/dog/{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match="no usable image of class 'dog' is left in test"):
        prepared(root, tmp_path / "cache", max_bad_fraction=1.0)


def test_a_file_that_changes_meanwhile(root, tmp_path):
    source = folder_source(root, 0.25, 0)

    def change(done, total):
        (root / "train/dog/4.png").write_bytes(b"")

    with pytest.raises(RunError, match=r"train/dog/4\.png changed while it was being read"):
        prepare(source, tmp_path / "cache", size=16, on_progress=change)
    assert len(prepared(root, tmp_path / "cache", max_bad_fraction=0.2).train) == 9


def test_cache_that_cannot_be_written(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"image cache .* cannot be written"):
        prepared(root, tmp_path / "file")


def test_index_is_plain_json(root, tmp_path):
    data = prepared(root, tmp_path / "cache")
    index = json.loads((data.path / "index.json").read_text())["index"]
    assert index["classes"] == ["cat", "dog"]
    assert index["train"]["files"][0] == "train/cat/0.png"
    assert len(index["train"]["sha256"][0]) == 64


def test_drawings_are_not_drawn_again(tmp_path):
    calls = []
    for _ in range(2):
        data = prepare(
            synthetic_source(2, 1, 0),
            tmp_path,
            size=32,
            on_progress=lambda *done: calls.append(done),
        )
    assert len(calls) == 6
    assert data.name == "synthetic"
    assert data.note == "drawings made by fedcats, not photos"
    assert prepare(synthetic_source(2, 1, 1), tmp_path, size=32).path != data.path
