"""The experiment in Python: the same configuration, bytes and store as on the command line."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import check_results, quick_baseline, run_tiny
from matplotlib.text import Text
from PIL import Image

import fedcats as fc
from fedcats import api
from fedcats.config import asked
from fedcats.config.compose import as_dict, compose_config

DOCS = Path(__file__).parent.parent / "docs"


def middle(updates, examples, start, power=1.0):
    """A rule of a user's own; it can be imported."""
    return {name: sum(u[name] for u in updates) / len(updates) for name in start}


def tiny(photos: Path, folder: Path) -> fc.Run:
    shards = fc.shards(given := fc.photos(photos), clients=2)
    return fc.federate(
        given,
        shards,
        model="squeezenet1_1",
        weights="none",
        epochs=1,
        runner="local",
        folder=folder,
    )


@pytest.fixture(scope="module")
def federated(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> fc.Run:
    return tiny(photos, tmp_path_factory.mktemp("api") / "run")


def test_the_import_is_cheap() -> None:
    code = "import sys, fedcats; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "hydra", "flwr", "ray", "matplotlib", "pandas", "fedcats.api"}
    assert not heavy & {*found.stdout.split()}
    assert {*fc._API, *fc._ERRORS} <= {*dir(fc)}
    assert all(hasattr(fc, name) for name in dir(fc))


@pytest.mark.parametrize(
    ("photos", "shards", "given", "overrides"),
    [
        (fc.drawings(train_per_class=7), None, {}, ["data.train_per_class=7"]),
        (
            fc.photos("a ${b}'c", limit=5),
            lambda p: fc.shards(p, "dirichlet", clients=3, alpha=0.1),
            {"train.lr": 0.1, "model.name": "resnet18", "runner.workers": 1},
            [
                *("data=folder", "data.limit=5", "partition=dirichlet", "partition.num_shards=3"),
                *("partition.alpha=0.1", "train.lr=0.1", "model.name=resnet18"),
                "runner.workers=1",
            ],
        ),
    ],
)
def test_it_asks_for_what_the_command_line_asks_for(photos, shards, given, overrides) -> None:
    config = api._composed(photos, shards and shards(photos), given)
    expected = as_dict(compose_config(overrides))
    if "root" in photos.settings:
        expected["data"]["root"] = photos.settings["root"]
    assert config == expected
    assert as_dict(asked.raw(config)) == config


@pytest.mark.slow
def test_the_same_bytes_as_on_the_command_line(
    photos: Path, federated: fc.Run, tmp_path: Path
) -> None:
    asked = ("data=folder", f"data.root={photos}", "train.epochs=1", "strategy.beta=0.3")
    there, folder = run_tiny(tmp_path / "cli", *asked, "runner=local", "save_models=merged")
    assert not there["store"]["trained"] or there["store"]["trained"] == ["centralized"]
    merged = federated.merge(fc.polyak(beta=0.3), "fedavg", folder=tmp_path / "merged")
    base = federated.centralized(folder=tmp_path / "base")
    both = base.compare(merged)
    for run in (merged, base):
        check_results(run.folder)
        assert not run.results["store"]["trained"]
    assert both.results["comparison"] == there["comparison"]
    for name in ("centralized", "polyak", "fedavg"):
        assert both.models[name] == there["models"][name]
        of = base if name == "centralized" else merged
        for kind in ("predictions", "file"):
            file = there["models"][name][kind]
            assert (of.folder / file).read_bytes() == (folder / file).read_bytes()
    different = {k for k, v in merged.results["config"].items() if v != there["config"][k]}
    assert different == {"figures", "mode", "reference"}  # none of them changes what both have
    again = fc.open(folder)
    assert again.verdict.split("Training on")[1] == both.verdict.split("Training on")[1]
    frame = both.frame()
    assert frame.loc["polyak", "accuracy"] == there["models"]["polyak"]["accuracy"]
    assert frame.loc["polyak", "low"] == there["comparison"]["polyak"]["accuracy"]["low"]


def test_what_a_notebook_and_a_terminal_show(federated: fc.Run, tmp_path: Path, capsys) -> None:
    page = federated._repr_html_()
    assert "there is no centralized model" in page
    assert re.search(r'<img alt="[^"]+" .*src="data:image/svg', page)
    federated.show()
    assert str(federated.folder) in capsys.readouterr().out
    assert {"scores", "loss", "weights"} <= {*federated.figures}
    picture = federated.figure("loss")
    before = [text.get_fontsize() for text in picture.figure.findobj(Text)]
    picture.save(tmp_path / "loss.pdf", width=3.3)
    picture.save(tmp_path / "loss.png", width=3.3)
    assert Image.open(tmp_path / "loss.png").width == round(160 * 3.3)
    assert [text.get_fontsize() for text in picture.figure.findobj(Text)] == before
    assert (tmp_path / "loss.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(fc.UserError, match="figure 'los': allowed are here scores"):
        federated.figure("los")


@pytest.mark.slow
def test_rules_sources_and_partitions_of_ones_own(
    federated: fc.Run, photos: Path, tmp_path: Path
) -> None:
    merged = federated.merge(fc.rule(middle, power=2.0), folder=tmp_path / "own")
    assert merged.models.keys() == {"submodel/0", "submodel/1", "test_api:middle"}
    last = federated.merge(lambda updates, examples, start: updates[-1], folder=tmp_path / "last")
    assert last.models["own"]["accuracy"] == federated.models["submodel/1"]["accuracy"]
    # Opened again it can be merged anew, and its own rule's parameters are gone.
    fc.open(tmp_path / "own").merge("uniform", folder=tmp_path / "uniform")

    def some(seed, root):
        from fedcats.data import folder_source

        return folder_source(root, seed=seed, test_fraction=0.5)

    def first(labels, num_shards, seed):
        order = np.argsort(labels, kind="stable")
        return [order[i::num_shards] for i in range(num_shards)]

    given = fc.photos(photos, source=some)
    counts = fc.shards(given, first, clients=3).counts()
    assert counts == [{"ant": 3, "bee": 3, "cow": 3}] * 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda run: fc.photos(), "a folder is needed"),
        (lambda run: run.merge(fc.rule("polyak", betta=1)), "betta: no such key; did you mean"),
        (lambda run: run.merge("poliak"), "strategy.rules"),
        (lambda run: run.merge("polyak", fc.polyak(0.1)), "each rule once"),
        (lambda run: run.merge(fc.polyak(beta=2)), "strategy.beta=2: allowed is a number from 0"),
        (lambda run: run.merge(type("krum", (), {})()), "krum: is a rule of fedcats"),
        (lambda run: fc.open("/nowhere"), "/nowhere: not a run folder"),
        (lambda run: run.predict("/nowhere.jpg"), "/nowhere.jpg: No such file"),
        (
            lambda run: fc.federate(fc.drawings(), settings={"train.momentun": 1}),
            r"train.momentun: no such key; did you mean train.momentum",
        ),
        (
            lambda run: fc.federate(fc.drawings(), fc.shards(fc.photos("x"))),
            "the shards are of other photos",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(federated: fc.Run, wrong, message, tmp_path) -> None:
    with pytest.raises(fc.UserError, match=message) as caught:
        wrong(federated)
    assert "\n" not in str(caught.value)


def test_photos_are_predicted_with_the_bytes_of_the_run(federated: fc.Run, photos: Path) -> None:
    answers = federated.predict(photos / "test", clients=True)
    one = federated.predict(photos / "test/bee/2.jpg", clients=True)
    assert answers.models.keys() == federated.models.keys()
    for name, model in federated.models.items():
        with (federated.folder / model["predictions"]).open() as file:
            stored = {row[0]: row[2:] for row in csv.reader(file)}
        rows = [row for row in (*answers.rows(), *one.rows()) if row[1] == name]
        assert len(rows) == 13
        for file, _, *said in rows:
            assert said == stored[Path(file).relative_to(photos).as_posix()]
    (photos.parent / "not.jpg").write_bytes(b"\xff\xd8 no")
    mixed = federated.predict(photos.parent / "not.jpg", photos / "test/bee/2.jpg")
    assert [name for name, _ in mixed.unusable] == [str(photos.parent / "not.jpg")]
    assert mixed.as_dict()["photos"][0]["models"].keys() == {"polyak", "fedavg"}


@pytest.mark.slow
def test_the_page_of_the_documentation_runs(tmp_path: Path, monkeypatch, photos: Path) -> None:
    """The first block of docs/api.md, with tiny settings in place of the paper's."""
    block = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(), re.DOTALL)[0]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    block = block.replace('"alexnet"', '"squeezenet1_1", weights="none", runner="local"')
    block = block.replace("epochs=10", "epochs=1").replace("clients=10", "clients=2")
    (tmp_path / "new.jpg").symlink_to(photos / "test/ant/0.jpg")
    with quick_baseline():
        exec(block, {})
