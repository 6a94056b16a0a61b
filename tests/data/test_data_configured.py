"""Sources and partitions as a user asks for them: by the configuration, through a whole run."""

import os
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedcats.cli.data import main
from fedcats.data import downloaded
from fedcats.errors import UserError

Go = Callable[..., tuple[dict[str, Any], Path]]
QUICK = ["runner=local", "mode=federated", "train.epochs=1", "save_models=false"]


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kaggle's train.zip: train/cat.0.jpg and so on, 12 of each, two files broken."""
    folder = tmp_path_factory.mktemp("kaggle")
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for seed in range(24):
            name = f"train/{('cat', 'dog')[seed % 2]}.{seed // 2}.jpg"
            photo(folder / name, seed)
            content = (folder / name).read_bytes()
            archive.writestr(name, content[:300] if seed in (4, 9) else content)
    return folder / "train.zip"


def test_kaggles_archive_in_exact_counts(run: Go, kaggle: Path) -> None:
    counts = "data.counts={train:[6,5],test:[3,4]}"
    bad = "data.max_bad_fraction=0.2"
    results, folder = run(*QUICK, "data=kaggle", f"data.root={kaggle}", counts, bad)
    assert results["data"]["train"] == {"cat": 6, "dog": 5}
    assert results["data"]["test"] == {"cat": 3, "dog": 4}
    assert results["config"]["data"]["counts"] == {"train": [6, 5], "test": [3, 4]}
    again, other = run(*QUICK, "data=kaggle", f"data.root={kaggle}", counts, bad, folder="again")
    assert (folder / "shards.csv").read_bytes() == (other / "shards.csv").read_bytes()
    assert again["store"]["trained"] == []
    with pytest.raises(UserError, match=r"data.counts: 12 images of class 'cat' are wanted for te"):
        run(*QUICK, "data=kaggle", f"data.root={kaggle}", "data.counts={train:[2,2],test:[12,1]}")
    with pytest.raises(UserError, match=r"data.counts=.*: allowed is train and test, each with 2"):
        run(*QUICK, "data=kaggle", f"data.root={kaggle}", "data.counts={train:[2],test:[9]}")


def test_a_limit(run: Go, kaggle: Path) -> None:
    data = ["data=folder", f"data.root={kaggle}", "data.limit=3", "data.max_bad_fraction=0.5"]
    results, _ = run(*QUICK, *data)
    assert results["data"]["train"] == {"cat": 3, "dog": 3}
    # Of twelve each nine are for training; cat.2 is damaged and for testing, dog.4 for training.
    assert results["data"]["test"] == {"cat": 2, "dog": 3}
    assert results["data"]["left_out"]["limit"] == {"cat": 6, "dog": 5}


def test_training_photos_that_are_test_photos_can_be_kept(run: Go, tmp_path: Path) -> None:
    for seed in range(8):
        name = f"{'ab'[seed % 2]}/{seed}.jpg"
        photo(tmp_path / "photos/train" / name, seed)
        photo(tmp_path / "photos/test" / name, seed if seed < 2 else 50 + seed)
    data = ["data=folder", f"data.root={tmp_path / 'photos'}", "partition=iid"]
    dropped, _ = run(*QUICK, *data)
    kept, _ = run(*QUICK, *data, "data.keep_duplicates=true", folder="kept")
    none = {"a": 0, "b": 0}
    assert dropped["data"]["left_out"] == {"limit": none, "partition": none}
    assert (dropped["data"]["train"], kept["data"]["train"]) == ({"a": 3, "b": 3}, {"a": 4, "b": 4})


def test_a_photo_in_several_shards_is_named(
    run: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(8):
        name = f"{'ab'[seed % 2]}/{seed}.jpg"
        photo(tmp_path / "photos/train" / name, seed)
        photo(tmp_path / "photos/test" / name, 50 + seed)
    for number in range(4):
        photo(tmp_path / f"photos/train/a/copy-{number}.jpg", 0)
    data = ["data=folder", f"data.root={tmp_path / 'photos'}", "partition=iid"]
    results, _ = run(*QUICK, *data, "partition.num_shards=4")
    (group,) = results["data"]["in_several_shards"]
    assert {one["file"] for one in group} == {
        "train/a/0.jpg",
        *(f"train/a/copy-{n}.jpg" for n in range(4)),
    }
    assert "1 photos are in several shards, e.g. train/a/" in " ".join(
        capsys.readouterr().err.split()
    )


def test_the_hubs_layout(run: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    for seed in range(12):
        photo(tmp_path / f"{seed}.jpg", seed)
    rows = {
        "image": [{"bytes": (tmp_path / f"{n}.jpg").read_bytes(), "path": None} for n in range(12)],
        "labels": [n % 2 for n in range(12)],
    }
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "labels": names})
    repo = tmp_path / "repo"
    repo.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(repo / "train.parquet")
    counts = "data.counts={train:[4,3],test:[2,2]}"
    results, _ = run(*QUICK, "data=cats_vs_dogs", f"data.repo={repo}", counts)
    assert results["data"]["source"] == "hub"
    assert results["data"]["train"] == {"cat": 4, "dog": 3}


def test_a_download_that_shows_itself(
    run: Go,
    kaggle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import hashlib

    monkeypatch.setattr(downloaded, "PETIMAGES_URL", f"file://{kaggle}")
    digest = hashlib.sha256(kaggle.read_bytes()).hexdigest()
    monkeypatch.setattr(downloaded, "PETIMAGES_SHA256", digest)
    small = ["data.counts={train:[4,4],test:[2,2]}", "data.max_bad_fraction=0.5"]
    results, _ = run(*QUICK, "data=petimages", *small)
    assert results["data"]["source"] == "petimages"
    assert "download, MB: done" in capsys.readouterr().err


def test_oxfords_own_folder_that_is_not_there(run: Go, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.root=.*: has no oxford-iiit-pet/images"):
        run(*QUICK, "data=oxford_pets", f"data.root={tmp_path}")


# --- shards ---------------------------------------------------------------------------------------


def test_a_class_missing_at_a_client(run: Go) -> None:
    shards = ["partition=pathological", "partition.num_shards=2", "figures=[svg]"]
    results, folder = run(*QUICK, *shards)
    counts = [shard["per_class"] for shard in results["data"]["shards"]]
    assert counts == [{"cat": 8, "dog": 0}, {"cat": 0, "dog": 8}]
    assert set(results["models"]) == {"submodel/0", "submodel/1", "polyak", "fedavg"}
    assert "who-has-what" in "".join(path.name for path in (folder / "figures").iterdir())


@pytest.mark.slow
def test_one_image_at_a_client(run: Go) -> None:
    shards = ["partition=iid", "partition.num_shards=15"]
    results, _ = run(*QUICK, *shards)
    sizes = Counter(shard["examples"] for shard in results["data"]["shards"])
    assert sizes == {1: 14, 2: 1}
    steps = results["models"]["submodel/14"]["training"]["steps"]
    assert steps == 1
    with pytest.raises(
        UserError,
        match=r"train.drop_last=true: client 0 has 2 training images, fewer than "
        r"train.batch_size=4, and would train on nothing",
    ):
        run(*QUICK, *shards, "train.drop_last=true")


@pytest.mark.parametrize("partition", ["equal", "paper", "iid", "dirichlet", "shard", "linear"])
def test_more_clients_than_images(run: Go, partition: str) -> None:
    with pytest.raises(UserError, match=r"partition.*\b(8|16) training images") as caught:
        run(*QUICK, f"partition={partition}", "partition.num_shards=17")
    assert "\n" not in str(caught.value)


def test_uneven_shards_are_weighted_by_their_sizes(run: Go) -> None:
    results, _ = run(*QUICK, "partition=linear", "partition.num_shards=3")
    sizes = [shard["examples"] for shard in results["data"]["shards"]]
    assert len({*sizes}) == 3
    weights = results["models"]["fedavg"]["effective_weights"]
    assert weights == pytest.approx([size / sum(sizes) for size in sizes])


def test_names_that_are_no_text(
    run: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No UTF-8, a line end, a terminal's escape: kept in tables, escaped in print."""
    names = [b"k\xe4tzchen.jpg", b"two\nlines.jpg", b"red\x1b[31m.jpg", b'a,"b".jpg']
    root = tmp_path / "photos"
    for seed in range(16):
        photo(root / "ab"[seed % 2] / f"{seed}.jpg", seed)
    for number, name in enumerate(names):
        (root / f"a/{2 * number}.jpg").rename(root / "a" / os.fsdecode(name))
    for name in (b"b\xe4d.jpg", b"b\na\x1bd.jpg"):
        (root / "b" / os.fsdecode(name)).write_bytes(b"")
    data = ["data=folder", f"data.root={root}", "data.max_bad_fraction=0.5"]
    results, folder = run(*QUICK, *data)
    listed = (folder / "shards.csv").read_bytes() + b"".join(
        path.read_bytes() for path in (folder / "predictions").iterdir()
    )
    assert all(name.replace(b'"', b'""') in listed for name in names)
    assert len(results["data"]["audit"]["quarantined"]) == 2
    assert main(["check", *data]) == 0
    out, err = capsys.readouterr()
    assert "  b/b\\na\\x1bd.jpg: empty file\n" in out
    assert "  b/b\\udce4d.jpg: empty file\n" in out
    assert "\x1b[31m" not in out + err
