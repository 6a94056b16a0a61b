"""What finished runs are good for: ``fedcats predict``, ``runs``, ``compare``; hints on keys."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_tiny
from PIL import Image

from fedcats import __version__
from fedcats.cli import after, run
from fedcats.config.compose import compose_config
from fedcats.config.load import load
from fedcats.data import normalise
from fedcats.errors import UserError
from fedcats.metrics import read_predictions
from fedcats.report.runs import beside
from fedcats.results import Results

Made = tuple[Path, Results, Path]


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("after") / "outputs/one"
    given = ("data=folder", f"data.root={photos}", "train.epochs=1", "runner=local")
    results, _ = run_tiny(folder, *given, "save_models=merged")
    return folder, results, photos


def test_predict(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, results, photos = made
    out = [tmp_path / "answers.csv", tmp_path / "answers.json"]
    (tmp_path / "no.txt").write_text("no photo")
    given = [
        folder,
        photos / "test",
        tmp_path / "no.txt",
        "--clients",
        "--out",
        out[0],
        "--out",
        out[1],
    ]
    assert after.main(["predict", *map(str, given)]) == 0
    said = capsys.readouterr()
    assert "sub-model 1" in said.out
    assert f"{tmp_path / 'no.txt'}: cannot be used: not an image" in said.err
    with out[0].open() as file:
        header, *rows = list(csv.reader(file))
    assert header == ["file", "model", "prediction", "p_ant", "p_bee", "p_cow"]
    assert len(rows) == 12 * len(results["models"])
    answers = json.loads(out[1].read_text())
    assert answers["photos"][0]["models"].keys() == results["models"].keys()
    for name, model in results["models"].items():
        with (folder / model["predictions"]).open() as file:
            stored = {str(photos / row[0]): row[2:] for row in csv.reader(file)}
        assert all(stored[row[0]] == row[2:] for row in rows if row[1] == name)


def test_runs_and_compare(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, results, _ = made
    assert after.main(["runs", str(folder.parent)]) == 0
    first, second, header, line = capsys.readouterr().out.splitlines()
    assert first.startswith("1 run, ")
    assert "finished trainings" in second
    assert header.split() == ["folder", "size", "photos", "clients", "centralized", "merged"]
    accuracy = results["models"]["polyak"]["accuracy"]
    assert line.split()[-1] == f"{100 * accuracy:.1f}%"
    assert after.main(["compare", str(folder), str(folder)]) == 0
    assert "run 2: " in capsys.readouterr().out
    other = json.loads(json.dumps(results))
    other["config"]["strategy"]["beta"] = 0.25
    settings, scores, against = beside([(folder, results), (folder, other)])
    assert settings.rows == [("strategy.beta", "0.5", "0.25")]
    assert len(scores.rows) == 6
    assert {row[2] for row in against.rows} == {"0.0"}
    other["data"]["digest"]["test"] = "another"
    *_, against = beside([(folder, results), (folder, other)])
    assert not against.rows
    assert "Not for run 2: tested on other images" in against.note


@pytest.mark.parametrize("form", ["hub", "torchscript", "onnx"])
def test_an_exported_model_gives_the_same_predictions(
    made: Made, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results, photos = made
    out = tmp_path / "out"
    given = ["export", str(folder), "--format", form, "--out", str(out)]
    assert after.main([*given, "--model", "centralized"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out.resolve())
    card = (out / "README.md").read_text()
    assert all(name in card for name in ("ant, bee, cow", "squeezenet1_1", "all 27 photos"))
    image = Image.open(photos / "test/cow/1.jpg").convert("RGB").resize((224, 224), 2)
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None]
    if form == "hub":
        (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        names: dict[str, Any] = {}
        exec(block.replace('"model.safetensors"', repr(str(out / "model.safetensors"))), names)
        with torch.no_grad():
            found = torch.softmax(names["model"](normalise(pixels)), dim=1)
        said = json.loads((out / "config.json").read_text())
        assert said["classes"] == ["ant", "bee", "cow"]
        assert said["mean"] == [0.485, 0.456, 0.406]
    elif form == "torchscript":
        found = torch.jit.load(out / "model.pt")(pixels)
    else:
        (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        path = repr(str(out / "model.onnx"))
        names = {"pixels": np.repeat(pixels.numpy(), 3, axis=0)}
        exec(block.replace('"model.onnx"', path), names)
        found = torch.from_numpy(names["probabilities"])[1:]
        said = json.loads(names["model"].get_modelmeta().custom_metadata_map["fedcats"])
        assert (said["classes"], said["size"]) == (["ant", "bee", "cow"], 224)
    stored = read_predictions(folder / results["models"]["centralized"]["predictions"])
    expected = stored.probabilities[stored.files.index("test/cow/1.jpg")]
    torch.testing.assert_close(found[0], torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert after.main(given) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert after.main([*given[:-1], str(tmp_path / "b"), "--model", "x"]) == 2
    assert "--model x: allowed are centralized" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_without_its_package_is_said_in_one_line(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    given = ["export", str(made[0]), "--format", "onnx", "--out", str(tmp_path / "out")]
    assert after.main(given) == 2
    assert "onnx: the package onnxscript is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{tmp}", "x.jpg"], "{tmp}: not a run folder, it has no results.json"),
        (["predict", "{run}", "{tmp}/x.jpg"], "{tmp}/x.jpg: No such file or directory"),
        (["predict", "{run}", "{tmp}"], "no photo to ask about"),
        (["predict", "{run}", "x.jpg", "--out", "x.txt"], "--out x.txt: allowed are names that"),
        (["runs", "{tmp}"], "no run below {tmp}"),
        (["compare", "{tmp}"], "{tmp}: not a run folder"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    made: Made, arguments: list[str], message: str, tmp_path: Path, capsys
) -> None:
    given = [one.format(tmp=tmp_path, run=made[0]) for one in arguments]
    assert after.main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fedcats: {message.format(tmp=tmp_path)}")


def test_another_results_json_is_not_taken(tmp_path: Path, capsys) -> None:
    for text in ("[]", "{", '{"models": {}}'):
        (tmp_path / "results.json").write_text(text)
        assert after.main(["compare", str(tmp_path)]) == 2
        assert str(tmp_path) in capsys.readouterr().err


def test_these_commands_start_without_hydra(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["fedcats", "--version"])
    run.main()
    assert capsys.readouterr().out.startswith(f"fedcats {__version__} (flwr ")
    code = "import sys, fedcats.cli.run, fedcats.cli.after; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"hydra", "omegaconf", "torch", "numpy", "rich"} & {*found.stdout.split()}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("beta=0.3", "beta: no such key; did you mean strategy.beta or"),
        ("epochs=3", "did you mean train.epochs?"),
        ("lr=3", "did you mean train.lr or"),
        ("trian.epochs=3", "did you mean train.epochs?"),
        ("rouns=3", "did you mean rounds?"),
        ("data.root=x", "data.root: no such key; only with data=folder, oxford_pets"),
        ("partition.alpha=1", "only with partition=dirichlet"),
        ("model=resnet18", "any torchvision classifier by model.name=resnet18"),
        ("+zzz=1", "zzz: no such key; see fedcats --cfg job for all keys"),
        ("+betta=1", "betta: no such key; did you mean strategy.beta"),
    ],
)
def test_a_wrong_key_gets_a_hint(given: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(compose_config([given]))
    assert said in str(caught.value)
