"""Predictions on disk."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedcats.errors import UserError
from fedcats.metrics.scores import Labels, Probabilities, checked
from fedcats.text import from_cell, write_csv


class Predictions(NamedTuple):
    """What a prediction file holds.

    Attributes
    ----------
    files
        Path of each photo, relative to the data folder; length n.
    labels
        True class of each photo, shape (n,), int64.
    probabilities
        Class probabilities, shape (n, k), float32.
    classes
        Names of the k classes, in the order of the columns.
    """

    files: list[str]
    labels: Labels
    probabilities: Probabilities
    classes: list[str]


def write_predictions(
    path: Path,
    files: Sequence[str],
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    classes: Sequence[str],
) -> None:
    """Write one row per photo: file, label and prediction by name, and every probability.

    The columns are ``file,label,prediction,p_<class>..``. Probabilities are written with nine
    significant digits, which single out a float32, so that reading them back loses nothing.

    Parameters
    ----------
    path
        The CSV file; its folder is made if it is missing.
    files
        Path of each photo; length n.
    labels
        True classes, shape (n,), integers in [0, k).
    probabilities
        Class probabilities, shape (n, k).
    classes
        Names of the k classes.
    """
    y, p = checked(labels, probabilities)
    if len(files) != len(y) or len(classes) != p.shape[1]:
        raise ValueError(f"{len(files)} files, {len(classes)} classes: probabilities are {p.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    header = ["file", "label", "prediction", *(f"p_{name}" for name in classes)]
    # As Python's numbers: NumPy's, one at a time, take several times as long.
    guesses = p.argmax(axis=1).tolist()
    rows = (
        [file, classes[label], classes[guess], *(f"{v:.9g}" for v in row)]
        for file, label, guess, row in zip(files, y.tolist(), guesses, p.tolist(), strict=True)
    )
    write_csv(path, itertools.chain([header], rows))


def read_predictions(path: Path) -> Predictions:
    """Read what :func:`write_predictions` wrote.

    Raises
    ------
    UserError
        If the file is missing or is no such table.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            header, *rows = [list(map(from_cell, row)) for row in csv.reader(stream)]
        if header[:3] != ["file", "label", "prediction"] or len(header) < 5:
            raise ValueError(f"its columns are {','.join(header)}")
        classes = [name.removeprefix("p_") for name in header[3:]]
        index = {name: i for i, name in enumerate(classes)}
        y, p = checked(
            [index[row[1]] for row in rows],
            np.array([row[3:] for row in rows], dtype=np.float64),
        )
    except OSError as error:
        raise UserError(f"predictions {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, csv.Error) as error:
        raise UserError(
            f"predictions {path}: not a table file,label,prediction,p_<class>.. ({error})"
        ) from error
    return Predictions([row[0] for row in rows], y, p, classes)
