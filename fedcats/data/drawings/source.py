"""Cats and dogs drawn by fedcats itself: the data set that is there without any download.

Every picture follows from the seed and its own name. An animal is a handful of traits (ears,
muzzle, eyes, tail, ..), each drawn by itself and now and then borrowed from the other animal, so
that no single trait settles the class; then comes what makes photos hard: pose, scale, coat,
surroundings, things in the way, light, blur and noise. They are drawings, no stand-in for photos.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw

from fedcats.data.drawings.animal import draw_animal, look_of
from fedcats.data.drawings.pen import SIDE, Pen
from fedcats.data.drawings.scene import (
    colour_field,
    draw_surroundings,
    in_the_way,
    photograph,
    thing,
)
from fedcats.data.sources import Item, Source
from fedcats.errors import UserError
from fedcats.seeding import derive_seed

CLASSES = ("cat", "dog")

NOTE = "drawings made by fedcats, not photos"


def synthetic_source(train_per_class: int, test_per_class: int, seed: int) -> Source:
    """Return drawn cats and dogs.

    Parameters
    ----------
    train_per_class, test_per_class
        Drawings of each class in either part, at least 1. The first drawings stay the same when
        there are to be more of them.
    seed
        Decides every drawing.

    Returns
    -------
    Source
        With files ``train/cat/cat.0.jpg`` and so on; reading one draws it.

    Raises
    ------
    UserError
        When a number is below 1.
    """
    counts = {"train": train_per_class, "test": test_per_class}
    for split, count in counts.items():
        if count < 1:
            raise UserError(f"data.{split}_per_class={count}: must be at least 1")
    items = {
        split: tuple(
            Item(f"{split}/{kind}/{kind}.{number}.jpg", label)
            for label, kind in enumerate(CLASSES)
            for number in range(count)
        )
        for split, count in counts.items()
    }
    return Source(
        name="synthetic",
        note=NOTE,
        classes=CLASSES,
        train=items["train"],
        test=items["test"],
        read=DrawingReader(seed),
        fingerprint=_fingerprint(seed),
        own_drawings=True,
    )


def _fingerprint(seed: int) -> str:
    """Identify the drawings: by the seed, and by the program that draws them."""
    program = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        program.update(file.read_bytes())
    drawn = f"seed {seed}, drawn by {program.hexdigest()}"
    return f"{drawn}, Pillow {PIL.__version__}, NumPy {np.__version__}"


@dataclass(frozen=True)
class DrawingReader:
    """Draws the picture that a path such as ``train/cat/cat.0.jpg`` names."""

    seed: int

    def __call__(self, path: str) -> bytes:
        """Return the drawing as the bytes of a JPEG file."""
        split, kind, file = path.split("/")
        rng = np.random.default_rng(derive_seed(self.seed, "drawing", split, kind, file))
        buffer = io.BytesIO()
        draw(kind, rng).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw one animal somewhere.

    Parameters
    ----------
    kind
        ``cat`` or ``dog``.
    rng
        Decides everything else.

    Returns
    -------
    PIL.Image.Image
        `SIDE` x `SIDE`, RGB.
    """
    canvas = colour_field(rng, 2 * SIDE)  # drawn at twice the size, which smooths the edges
    pen = Pen(ImageDraw.Draw(canvas), np.array([[2.0 * SIDE, 0, 0], [0, 2.0 * SIDE, 0]]))
    draw_surroundings(pen, rng)
    for _ in range(rng.integers(0, 4)):
        thing(pen.at(rng.uniform(0, 1), rng.uniform(0.6, 0.98), rng.uniform(0.04, 0.1)), rng)
    draw_animal(pen, look_of(kind, rng), rng)
    if rng.random() < 0.2:
        in_the_way(pen, rng)
    return photograph(canvas.reduce(2), rng)


# --- the animal -----------------------------------------------------------------------------------
