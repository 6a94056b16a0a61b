"""Decoded images: room on the disk, and other users."""

import errno
import multiprocessing
import os
import re
import signal

import pytest
import torch
from cached import datasets_in, prepare_slowly, prepared
from conftest import wait_until

from fedcats import locks
from fedcats.data import (
    folder_source,
    open_dataset,
    prepare,
    upkeep,
)
from fedcats.errors import RunError

# --- room, and other users ------------------------------------------------------------------------


def in_another_process(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def _prepare_sizes(root, cache, sizes):
    for size in sizes:
        prepare(folder_source(root, 0.25, 0), cache, size=size)


def test_a_complete_data_set_needs_no_right_to_write(root, tmp_path, monkeypatch):
    first = prepared(root, tmp_path / "cache")

    def refused(path):
        raise RunError(f"{path} cannot be opened or made: Permission denied")

    monkeypatch.setattr(locks, "open_lock", refused)
    assert prepared(root, tmp_path / "cache").train.digest == first.train.digest
    with pytest.raises(RunError, match=r"cache/.*\.lock cannot be opened or made"):
        prepare(folder_source(root, 0.25, 0), tmp_path / "cache", size=17)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_gives(root, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        data = prepared(root, tmp_path / "cache")
    finally:
        os.umask(before)
    files = [*data.path.iterdir()]
    assert len(files) == 3
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_fails_leaves_nothing_behind(root, tmp_path, monkeypatch, number):
    def full(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=rf"cannot be written: {os.strerror(number)}") as error:
            prepared(root, tmp_path / "cache")
    assert ("16 images take 0 MB" in str(error.value)) == (number == errno.ENOSPC)
    assert datasets_in(tmp_path / "cache") == []
    assert len(prepared(root, tmp_path / "cache").train) == 10


def test_leftovers_go_when_their_process_is_gone(root, tmp_path):
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("fork").Process(target=prepare_slowly, args=(root, cache))
    process.start()
    wait_until(lambda: list(cache.glob("*.part/train.npy")))
    other = prepare(folder_source(root, 0.25, 0), cache, size=17)
    assert len(datasets_in(cache)) == 2  # it is still at work
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    prepare(folder_source(root, 0.25, 0), cache, size=17)
    assert datasets_in(cache) == [other.path]


def test_the_data_sets_used_longest_ago_are_dropped(root, tmp_path):
    cache = tmp_path / "cache"
    in_another_process(_prepare_sizes, root, cache, (20, 21, 22))
    oldest, middle, newest = upkeep.decoded(cache)
    assert [one.images for one in (oldest, middle, newest)] == [16, 16, 16]
    assert oldest.what == "folder: cat, dog"
    os.utime(oldest.path / "index.json")  # as a use does
    said: list[str] = []
    most = oldest.size + newest.size + 20_000
    data = prepare(folder_source(root, 0.25, 0), cache, size=16, max_bytes=most, say=said.append)
    (line,) = said
    assert re.fullmatch(r"[\d.]+ kB of images decoded .* store.images_gb: folder: cat, dog", line)
    assert {one.path for one in upkeep.decoded(cache)} == {data.path, oldest.path, newest.path}
    # Less than this one alone takes: what is in use stays.
    other = prepare(folder_source(root, 0.25, 0), cache, size=18, max_bytes=1)
    assert {one.path for one in upkeep.decoded(cache)} == {data.path, other.path}
    assert upkeep.drop_unused(cache) == []
    del other
    assert len(upkeep.drop_unused(cache)) == 1
    assert torch.equal(data.train.pixels([0]), prepared(root, cache).train.pixels([0]))


def test_a_data_set_that_another_process_opens_is_not_dropped(root, tmp_path):
    context = multiprocessing.get_context("fork")
    cache = tmp_path / "cache"
    in_another_process(_prepare_sizes, root, cache, (20,))
    (made,) = upkeep.decoded(cache)
    opened, done = context.Event(), context.Event()

    def use():
        data = open_dataset(made.path)
        opened.set()
        done.wait()
        del data

    process = context.Process(target=use)
    process.start()
    opened.wait()
    assert upkeep.drop_unused(cache) == []
    done.set()
    process.join()
    assert [one.path for one in upkeep.drop_unused(cache)] == [made.path]
    assert datasets_in(cache) == []
