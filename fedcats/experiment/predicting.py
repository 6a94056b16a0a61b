"""What the models of a finished run say of a photo, now: with the bytes that the run would write.

Probabilities depend in their last bits on how many photos a model is given at once. So one of the
run's test photos, known by its path, is given in a batch as large as its own was, filled up with
copies; others as they come.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcats.data.decoding import BadImage, decode_square
from fedcats.data.files import MAX_FILE_BYTES, open_files
from fedcats.data.transforms import SIZE, normalise
from fedcats.errors import UserError, first_line
from fedcats.home import home
from fedcats.metrics import read_predictions
from fedcats.models import build
from fedcats.results.names import is_submodel
from fedcats.text import write_csv
from fedcats.training.loop import BATCH
from fedcats.training.numerics import settle

if TYPE_CHECKING:
    from fedcats.results import Results
    from fedcats.tensors import State

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Probabilities = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Answers:
    """What some models say of some photos.

    Attributes
    ----------
    photos
        Names of the photos, as they were given; length n.
    classes
        Names of the k classes.
    models
        By the model's name in ``results.json`` the class probabilities, (n, k) float32.
    unusable
        For each file that is no usable photo its name and why.
    """

    photos: list[str]
    classes: list[str]
    models: dict[str, Probabilities]
    unusable: list[tuple[str, str]]

    def rows(self) -> list[tuple[str, ...]]:
        """A header, then a row for each photo and model: prediction and every probability.

        Numbers have nine significant digits, as in the run's ``predictions/``.
        """
        rows = [("file", "model", "prediction", *(f"p_{name}" for name in self.classes))]
        for i, photo in enumerate(self.photos):
            for name, found in self.models.items():
                numbers = (f"{value:.9g}" for value in found[i].tolist())
                rows.append((photo, name, self.classes[int(found[i].argmax())], *numbers))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        photos = [
            {
                "file": photo,
                "models": {
                    name: {
                        "prediction": self.classes[int(found[i].argmax())],
                        "probabilities": dict(zip(self.classes, found[i].tolist(), strict=True)),
                    }
                    for name, found in self.models.items()
                },
            }
            for i, photo in enumerate(self.photos)
        ]
        return {"classes": self.classes, "photos": photos, "unusable": self.unusable}

    def write(self, path: Path) -> None:
        """Write a ``.csv`` or ``.json`` file; UserError for any other."""
        if path.suffix == ".csv":
            write_csv(path, self.rows())
        elif path.suffix == ".json":
            path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        else:
            raise UserError(f"{path}: allowed are names that end in .csv or .json")


def predict(
    folder: Path, results: Results, photos: Iterable[Path], *, clients: bool = False
) -> Answers:
    """Ask the models of a run about photos.

    Parameters
    ----------
    folder, results
        Of the run.
    photos
        Files, folders or zip archives with any number of them.
    clients
        The clients' own models, too.

    Raises
    ------
    UserError
        When there is nothing to ask, or nobody: the weights come from the run folder
        (``save_models``), else from the store.
    """
    names = [n for n in results["models"] if clients or not is_submodel(n)]
    states = {name: state for name in names if (state := weights_of(folder, results, name))}
    if not states:
        raise UserError(
            f"{folder}: no weights of its models are at hand; a run with save_models=merged keeps "
            "them in its folder"
        )
    files, pixels, unusable = _read(photos)
    config = results["config"]
    threads = int(config["runner"].get("threads", 1))
    cuda = torch.cuda.is_available() and results["machine"]["device"] == "cuda"
    classes = results["data"]["classes"]
    batches = _batches(folder, results, files)

    def test(state: State) -> Probabilities:
        settle(threads)
        try:
            model = build.empty(config["model"]["name"], len(classes), state).eval()
        except RuntimeError as error:
            raise UserError(f"{folder}: other weights than a {error}") from error
        model = model.to("cuda" if cuda else "cpu").to(memory_format=torch.channels_last)
        found = np.empty((len(files), len(classes)), np.float32)
        with torch.inference_mode():
            for size, members in batches:
                filled = [*members, *members[:1] * (size - len(members))]
                x = normalise(torch.from_numpy(np.stack([pixels[i] for i in filled])))
                x = x.contiguous(memory_format=torch.channels_last)
                answers = torch.softmax(model(x.to("cuda") if cuda else x), dim=1)
                found[members] = answers[: len(members)].cpu().numpy()
        return found

    with ThreadPoolExecutor(max(1, torch.get_num_threads() // threads)) as pool:
        answers = dict(zip(states, pool.map(test, states.values()), strict=True))
    return Answers([name for name, _ in files], classes, answers, unusable)


def weights_of(folder: Path, results: Results, name: str) -> State | None:
    """All tensors of a model, or None where they are not at hand."""
    import safetensors.torch

    from fedcats.storage import Store
    from fedcats.training.update import get_weights, read

    model = results["models"][name]
    if model["file"] and (path := folder / model["file"]).is_file():
        try:
            state: State = safetensors.torch.load_file(path)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: cannot be read: {first_line(error)}") from error
        return state
    if not (key := model.get("key")) or not (home() / "store").is_dir():
        return None
    store = Store(home() / "store")
    update = read(store, key)
    if update is None:
        return None
    return get_weights(store, results["weights"]["sha256"]) | update.tensors


Found = list[tuple[str, Path]]  # a photo's name, and where it is


def _read(photos: Iterable[Path]) -> tuple[Found, list[Pixels], list[tuple[str, str]]]:
    """Decode what there is; of what is no photo the reason."""
    found: Found = []
    pixels: list[Pixels] = []
    unusable: list[tuple[str, str]] = []

    def take(name: str, path: Path, content: bytes) -> None:
        pixels.append(np.asarray(decode_square(content, SIZE)).transpose(2, 0, 1))
        found.append((name, path))

    for photo in photos:
        inside = [""]
        if photo.is_dir() or photo.suffix.lower() == ".zip":
            files = open_files(photo)
            inside = files.images
            unusable += [(f"{photo / name}", why) for name, why in files.rejected.items()]
        for name in inside:
            path = photo / name if name else photo
            try:
                if name:
                    content = files.read(name)
                elif path.stat().st_size > MAX_FILE_BYTES:
                    raise BadImage(f"larger than {MAX_FILE_BYTES} bytes")
                else:
                    content = path.read_bytes()
                take(str(path), path, content)
            except BadImage as bad:
                unusable.append((str(path), str(bad)))
            except OSError as error:
                raise UserError(f"{path}: {error.strerror}") from error
    if not found:
        why = f": {unusable[0][0]}: {unusable[0][1]}" if unusable else ""
        raise UserError(f"no photo to ask about{why}")
    return found, pixels, unusable


def _batches(folder: Path, results: Results, files: Found) -> list[tuple[int, list[int]]]:
    """Size and members of each batch: a test photo's is as large as the run's own was."""
    tested = sum(results["data"]["test"].values())
    known = _test_photos(folder, results)
    groups: dict[int, list[int]] = {}
    for i, (_, path) in enumerate(files):
        place = known.get(path.resolve())
        start = 0 if place is None else place // BATCH * BATCH
        groups.setdefault(0 if place is None else min(BATCH, tested - start), []).append(i)
    return [
        (size, members[start : start + (size or BATCH)])
        for size, members in groups.items()
        for start in range(0, len(members), size or BATCH)
    ]


def _test_photos(folder: Path, results: Results) -> dict[Path, int]:
    """Where the run's test photos are, if they are files, and which of them each is."""
    root = results["config"]["data"].get("root")
    written = [model["predictions"] for model in results["models"].values()]
    if not isinstance(root, str) or not written:
        return {}
    above = Path(root).expanduser().resolve()
    return {above / name: i for i, name in enumerate(read_predictions(folder / written[0]).files)}
