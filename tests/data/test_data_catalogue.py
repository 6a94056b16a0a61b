"""Public data sets, from local files in their own layouts."""

import hashlib
import io
import tarfile
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.data import (
    SOURCES,
    downloaded,
    folder_source,
    hub_source,
    oxford_pets_source,
    prepare,
    synthetic_source,
)
from fedcats.errors import UserError


def jpeg(seed, kind="JPEG"):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


# --- Hugging Face hub -----------------------------------------------------------------------------

FEATURES = datasets.Features(
    {"image": datasets.Image(), "labels": datasets.ClassLabel(names=["cat", "dog"])}
)
CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: labels
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
# Cats Vs. Dogs
"""
HUB = {
    "image": "image",
    "label": "labels",
    "train_split": "train",
    "test_split": None,
    "test_fraction": 0.25,
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """microsoft/cats_vs_dogs as the hub has it: a card and parquet files with the images."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    repo = tmp_path / "cats_vs_dogs"
    (repo / "data").mkdir(parents=True)
    (repo / "README.md").write_text(CARD)
    rows = [{"bytes": jpeg(seed), "path": None} for seed in range(20)]
    labels = [seed % 2 for seed in range(20)]
    for part in range(2):
        table = datasets.Dataset.from_dict(
            {
                "image": rows[10 * part : 10 * part + 10],
                "labels": labels[10 * part : 10 * part + 10],
            },
            features=FEATURES,
        )
        table.to_parquet(repo / "data" / f"train-{part:05d}-of-00002.parquet")
    return repo


def test_hub_layout(hub, tmp_path):
    source = hub_source(str(hub), seed=0, **HUB)
    assert source.classes == ("cat", "dog")
    assert source.note == "cats_vs_dogs"
    assert (len(source.train), len(source.test)) == (16, 4)
    for item in (*source.train, *source.test):
        row = int(item.path.removeprefix("train/"))
        assert item.label == row % 2
        assert source.read(item.path) == jpeg(row)
    data = prepare(source, tmp_path / "cache", size=8)
    assert data.name == "hub"
    assert data.train.digests[0] == hashlib.sha256(source.read(data.train.files[0])).hexdigest()


def test_hub_with_exact_counts(hub, tmp_path):
    counts = {"train": [4, 5], "test": [3, 2]}
    source = hub_source(str(hub), seed=0, counts=counts, **HUB)
    data = prepare(source, tmp_path / "cache", size=8)
    assert np.bincount(data.train.labels).tolist() == [4, 5]
    assert np.bincount(data.test.labels).tolist() == [3, 2]


def test_hub_with_a_test_part_text_labels_and_holes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    repo = tmp_path / "pets"
    repo.mkdir()
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.Value("string")})
    kinds = {"train": ["emu", "cat", None, "cat", "emu"], "test": ["cat", "emu", "emu"]}
    for part, names in kinds.items():
        images = [{"bytes": jpeg(n + 9 * len(names)), "path": None} for n in range(len(names))]
        if part == "train":
            images[3] = None
        datasets.Dataset.from_dict({"img": images, "kind": names}, features=features).to_parquet(
            repo / f"{part}.parquet"
        )
    options = HUB | {"image": "img", "label": "kind", "test_split": "test"}
    source = hub_source(str(repo), seed=0, **options)
    assert source.classes == ("cat", "emu")
    assert [(item.path, item.label) for item in source.test] == [
        ("test/000000", 0),
        ("test/000001", 1),
        ("test/000002", 1),
    ]
    data = prepare(source, tmp_path / "cache", size=8, max_bad_fraction=0.5)
    assert data.audit.quarantined == (
        ("train/000002", "no label"),
        ("train/000003", "no image in the table"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "img"}, r"data.image=img: .* has the columns image, labels"),
        ({"label": "class"}, r"data.label=class: .* has the columns image, labels"),
        ({"test_split": "exam"}, r"the split 'exam' cannot be loaded \(.*\); copy the data set to"),
    ],
)
def test_hub_mistakes(hub, change, message):
    with pytest.raises(UserError, match=message) as error:
        hub_source(str(hub), seed=0, **HUB | change)
    assert "\n" not in str(error.value)


def test_hub_revision(hub, monkeypatch):
    """A commit is asked for, and which one it was is noted."""
    commit, asked = "0123456789" * 4, []
    load = datasets.load_dataset

    def from_hub(repo, *, split, revision):
        asked.append((repo, revision))
        table = load(str(hub), split=split)
        address = f"hf://datasets/{repo}@{commit}/data/train.parquet"
        table.info.download_checksums = {address: {"num_bytes": 1, "checksum": None}}
        return table

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    source = hub_source("microsoft/cats_vs_dogs", seed=0, revision="v1", **HUB)
    assert asked == [("microsoft/cats_vs_dogs", "v1")]
    assert source.note == f"microsoft/cats_vs_dogs@{commit}"
    with pytest.raises(UserError, match=r"data.revision=v1: not of a folder"):
        hub_source(str(hub), seed=0, revision="v1", **HUB)
    monkeypatch.setattr("fedcats.data.hub.MAX_FILES", 19)
    with pytest.raises(UserError, match=r"the split 'train' has 20 rows; allowed are 19"):
        hub_source("microsoft/cats_vs_dogs", seed=0, **HUB)


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError,
        match=r"data.repo=microsoft/cats_vs_dogs: the split 'train' cannot be loaded \(.*\); copy "
        r"the data set to a folder and name that: data.repo=FOLDER",
    ) as error:
        hub_source("microsoft/cats_vs_dogs", seed=0, **HUB)
    assert "\n" not in str(error.value)


# --- Oxford-IIIT Pet ------------------------------------------------------------------------------

BREEDS = {"Abyssinian": (1, 1), "beagle": (5, 2), "Bengal": (6, 1), "pug": (26, 2)}


def oxford(folder):
    """The data set's own layout, with a list file of images, classes and species."""
    base = folder / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations").mkdir()
    lists = {"trainval": [], "test": []}
    for seed, (breed, (number, species)) in enumerate(BREEDS.items()):
        for n in range(1, 6):
            name = f"{breed}_{n}"
            (base / "images" / f"{name}.jpg").write_bytes(
                jpeg(10 * seed + n, "PNG" if n == 2 else "JPEG")
            )
            lists["test" if n > 3 else "trainval"].append(f"{name} {number} {species} {n}")
    (base / "images" / "Abyssinian_1.mat").write_bytes(b"MATLAB 5.0")
    for part, lines in lists.items():
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_oxford_pets_by_species_as_torchvision_has_them(tmp_path):
    root = oxford(tmp_path)
    source = oxford_pets_source(root, seed=0, downloads=tmp_path / "none")
    for part, items in (("trainval", source.train), ("test", source.test)):
        theirs = OxfordIIITPet(root, part, target_types="binary-category")
        names = [path.name for path in theirs._images]
        expected = set(zip(names, theirs._bin_labels, strict=True))
        assert {(item.path, item.label) for item in items} == expected
        assert [name.lower() for name in theirs.bin_classes] == list(source.classes)
    data = prepare(source, tmp_path / "cache", size=8)
    assert np.bincount(data.train.labels).tolist() == [6, 6]
    assert np.bincount(data.test.labels).tolist() == [4, 4]


def test_oxford_pets_that_are_missing_are_named(tmp_path):
    root = oxford(tmp_path)
    (root / "oxford-iiit-pet/images/pug_1.jpg").unlink()
    source = oxford_pets_source(root, seed=0, downloads=tmp_path / "none")
    data = prepare(source, tmp_path / "cache", size=8, max_bad_fraction=0.1)
    assert data.audit.quarantined == (("pug_1.jpg", "cannot be read: No such file or directory"),)


def test_oxford_pets_downloaded_once(tmp_path, monkeypatch):
    root = oxford(tmp_path / "original") / "oxford-iiit-pet"
    sums = {}
    (tmp_path / "host").mkdir()
    for name in ("images", "annotations"):
        archive = tmp_path / "host" / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(root / name, name)
        sums[archive.name] = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(downloaded, "OXFORD_URL", f"file://{tmp_path}/host/")
    monkeypatch.setattr(downloaded, "OXFORD_MD5", sums)
    for _ in range(2):
        source = SOURCES["oxford_pets"](root=None).open(0, tmp_path / "down")
        assert len(source.train) == 12
        monkeypatch.setattr(downloaded, "OXFORD_URL", "file:///nowhere/")


def test_oxford_pets_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"data.root=.*: has no oxford-iiit-pet/images"):
        oxford_pets_source(tmp_path, seed=0, downloads=tmp_path)
    root = oxford(tmp_path)
    (root / "oxford-iiit-pet/annotations/test.txt").write_text("../../../etc/passwd 1 1 1\n")
    with pytest.raises(UserError, match=r"test.txt cannot be used: the line '../../../etc/passwd"):
        oxford_pets_source(root, seed=0, downloads=tmp_path)


# --- PetImages, and all by name -------------------------------------------------------------------


def test_petimages_downloaded(tmp_path, monkeypatch):
    archive = tmp_path / "host.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for seed in range(8):
            file.writestr(f"PetImages/{('Cat', 'Dog')[seed % 2]}/{seed}.jpg", jpeg(seed))
    monkeypatch.setattr(downloaded, "PETIMAGES_URL", f"file://{archive}")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(downloaded, "PETIMAGES_SHA256", sha256)
    counts = {"train": [2, 3], "test": [1, 1]}
    source = SOURCES["petimages"](test_fraction=0.5, counts=counts).open(0, tmp_path / "down")
    assert source.name == "petimages"
    assert source.classes == ("Cat", "Dog")
    data = prepare(source, tmp_path / "cache", size=8)
    assert np.bincount(data.train.labels).tolist() == [2, 3]


def test_sources_by_name(tmp_path):
    drawn = SOURCES["synthetic"](train_per_class=2, test_per_class=1).open(3, tmp_path)
    assert drawn == synthetic_source(2, 1, 3)
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for n in range(3):
            (tmp_path / "photos" / kind / f"{n}.jpg").write_bytes(jpeg(n))
    photos = SOURCES["folder"](root=tmp_path / "photos", test_fraction=0.4).open(3, tmp_path)
    assert photos == folder_source(tmp_path / "photos", 0.4, 3)
    with pytest.raises(UserError, match=r"data.name=nope: allowed are synthetic, folder, peti"):
        load(compose_config(["data.name=nope"]))


def test_a_hub_folder_by_any_path_without_strangers(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    root = tmp_path / "photos"
    for seed, path in enumerate(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(3)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / path)
    monkeypatch.chdir(root)
    columns = {"image": "image", "label": "label", "train_split": "train", "test_split": None}
    source = hub_source(".", **columns, test_fraction=0.3, seed=0)
    assert (source.classes, source.note) == (("cat", "dog"), "photos")
    (root / "@eaDir").mkdir()
    (root / "@eaDir/thumb.png").write_bytes((root / "cat/0.png").read_bytes())
    with pytest.raises(
        UserError, match=r"data.repo=.*: @eaDir/thumb.png is no photo of a data set"
    ):
        hub_source(str(root), **columns, test_fraction=0.3, seed=0)
    with pytest.raises(UserError, match=r"data\.repo=: is empty"):
        hub_source("", **columns, test_fraction=0.3, seed=0)
