"""``fedcats-data``: what a user sees of a data set before training."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fedcats.cli.data import main
from fedcats.report import drawing, figures


@pytest.fixture
def dirty(photos: Path, tmp_path: Path) -> Path:
    """27 + 12 photos, and one of each thing that can be wrong."""
    root = tmp_path / "dirty"
    shutil.copytree(photos, root)
    whole = (root / "train/ant/0.jpg").read_bytes()
    (root / "train/ant/broken.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/ant/text.jpg").write_text("not an image")
    (root / "train/ant/notes.txt").write_text("about ants")
    (root / "train/ant/outside.jpg").symlink_to("/etc/hostname")
    shutil.copy(root / "test/bee/1.jpg", root / "train/bee/leaked.jpg")
    shutil.copy(root / "train/bee/2.jpg", root / "train/bee/again.jpg")
    shutil.copy(root / "train/cow/3.jpg", root / "train/ant/a-cow.jpg")
    return root


def test_check_names_every_finding_and_fails_only_by_the_limit(
    dirty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["data=folder", f"data.root={dirty}"]
    assert main(["check", *data, "data.max_bad_fraction=0.07"]) == 0
    out = capsys.readouterr().out
    for line in (
        "files that cannot be used, left out: 3",
        "  train/ant/broken.jpg: damaged or cut off",
        "  train/ant/text.jpg: ",
        "  train/ant/outside.jpg: link that leaves the folder",
        "files that do not look like images, ignored: 1\n  train/ant/notes.txt",
        "training images that are test images too, left out of training: 1\n"
        "  train/bee/leaked.jpg = test/bee/1.jpg",
        "  train/ant/a-cow.jpg = train/cow/3.jpg",
        "  train/bee/2.jpg = train/bee/again.jpg",
        "test: 4 ant, 4 bee, 4 cow",
    ):
        assert line in out
    assert main(["check", *data]) == 2
    out, err = capsys.readouterr()
    assert "train/ant/text.jpg: " in out
    assert err.splitlines()[-1].startswith("fedcats-data: 3 of 45 files cannot be used, more than")
    assert main(["prepare", *data]) == 2


def test_show_writes_a_sheet_for_each_shard(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["data=folder", f"data.root={photos}"]
    out = tmp_path / "sheets"
    assert main(["show", *data, "partition.num_shards=9", "--out", str(out)]) == 0
    assert (
        main(["show", "--out", str(out), *data, "partition=linear", "partition.num_shards=3"]) == 0
    )
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"shard-{client}.png" for client in range(3)),
        "who-has-what.png",
        "who-has-what.svg",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(out)
    counts = [int(word) for line in lines[-4:-1] for word in line.split() if word.isdigit()]
    assert sum(counts) == 27
    heights = [Image.open(out / f"shard-{client}.png").height for client in range(3)]
    assert len({*heights}) == 2  # of 4, 8 and 15 images, ten in a row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "data=folder"], "data.root: a value is needed"),
        (["check", "data=folder", "data.root=nowhere"], "data.root=nowhere: does not exist"),
        (["show", "partition.num_shards=201"], "partition.num_shards=201: the smallest class has"),
        (["prepare", "daat=folder"], "daat: no such key"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("clients", [1, 12, 100])
def test_who_has_what_for_any_number(classes: int, clients: int, tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(classes)]
    shards = [{name: c * k for k, name in enumerate(names)} for c in range(clients)]
    (drawn,) = drawing.write(
        tmp_path, {"x": ("", lambda: figures.who_has_what(shards, names, always=True))}
    )
    assert drawn.svg
    assert figures.who_has_what(shards[:1] * 3, names) is None
