"""Cats and dogs drawn by fedcats itself: the data set that is there without any download.

Every picture follows from the seed and its own name. An animal is a handful of traits (ears,
muzzle, eyes, tail, ..), each drawn by itself and now and then borrowed from the other animal, so
that no single trait settles the class; then comes what makes photos hard: pose, scale, coat,
surroundings, things in the way, light, blur and noise. They are drawings, no stand-in for photos.
"""

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from fedcats.data.sources import Item, Source
from fedcats.errors import UserError
from fedcats.seeding import derive_seed

SIDE = 256
"""Height and width of a drawing in pixels."""

CLASSES = ("cat", "dog")

NOTE = "drawings made by fedcats, not photos"

BORROWED = 0.03
"""Probability with which a trait is taken from the other animal."""

Colour = tuple[int, int, int]
Points = NDArray[np.float64] | Sequence[tuple[float, float]]


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
    program = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return f"seed {seed}, drawn by {program}, Pillow {PIL.__version__}, NumPy {np.__version__}"


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
    canvas = _colour_field(rng, 2 * SIDE)  # drawn at twice the size, which smooths the edges
    pen = Pen(ImageDraw.Draw(canvas), np.array([[2.0 * SIDE, 0, 0], [0, 2.0 * SIDE, 0]]))
    _surroundings(pen, rng)
    for _ in range(rng.integers(0, 4)):
        _thing(pen.at(rng.uniform(0, 1), rng.uniform(0.6, 0.98), rng.uniform(0.04, 0.1)), rng)
    _animal(pen, _look(kind, rng), rng)
    if rng.random() < 0.2:
        _in_the_way(pen, rng)
    return _photograph(canvas.reduce(2), rng)


# --- drawing tools --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pen:
    """Draws in a coordinate frame of its own; x to the right, y down."""

    canvas: ImageDraw.ImageDraw
    frame: NDArray[np.float64]  # (2, 3): from this frame to pixels

    def at(
        self, x: float, y: float, scale: float = 1, angle: float = 0, mirror: bool = False
    ) -> "Pen":
        """Return a pen whose origin lies at (x, y), turned by `angle` degrees."""
        c, s = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
        m = -1 if mirror else 1
        inner = np.array([[c * m, -s, x], [s * m, c, y], [0, 0, 1]])
        return replace(self, frame=self.frame @ inner)

    def polygon(self, points: Points, fill: Colour, outline: Colour | None = None) -> None:
        """Fill a polygon; an outline is as thin as a pen."""
        pixels = self._pixels(points)
        self.canvas.polygon(pixels, fill=fill)
        if outline:
            self.canvas.line(pixels + pixels[:2], fill=outline, width=3, joint="curve")

    def blob(self, points: Points, fill: Colour, outline: Colour | None = None) -> None:
        """Fill a smooth closed curve through the points."""
        self.polygon(_smooth(np.asarray(points, dtype=float), closed=True), fill, outline)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: Colour | None = None
    ) -> None:
        """Fill an ellipse."""
        self.polygon(_CIRCLE * (rx, ry) + (x, y), fill, outline)

    def line(self, points: Points, fill: Colour, width: float) -> None:
        """Draw a smooth line through the points; the width is in units of this frame."""
        curve = _smooth(np.asarray(points, dtype=float), closed=False)
        scale = math.sqrt(abs(float(np.linalg.det(self.frame[:, :2]))))
        self.canvas.line(
            self._pixels(curve), fill=fill, width=max(1, round(width * scale)), joint="curve"
        )

    def strip(
        self, points: Points, start: float, end: float, fill: Colour, outline: Colour | None = None
    ) -> None:
        """Fill a band along a smooth line, as wide as `start` at first and `end` at last."""
        curve = _smooth(np.asarray(points, dtype=float), closed=False)
        along = np.gradient(curve, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], axis=1)
        across /= np.linalg.norm(across, axis=1, keepdims=True) + 1e-9
        half = np.linspace(start, end, len(curve))[:, None] / 2
        self.polygon(
            np.concatenate([curve + half * across, (curve - half * across)[::-1]]), fill, outline
        )
        self.ellipse(float(curve[-1, 0]), float(curve[-1, 1]), end / 2, end / 2, fill)

    def _pixels(self, points: Points) -> list[float]:
        array = np.asarray(points, dtype=float)
        pixels: list[float] = (array @ self.frame[:, :2].T + self.frame[:, 2]).ravel().tolist()
        return pixels


_ANGLES = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_T = np.linspace(0, 1, 6, endpoint=False)[:, None, None]


def _smooth(points: NDArray[np.float64], closed: bool) -> NDArray[np.float64]:
    """Catmull-Rom spline through (n, 2) points: (6 n, 2) if closed, else (6 (n - 1) + 1, 2)."""
    if closed:
        before, after, beyond = (np.roll(points, shift, axis=0) for shift in (1, -1, -2))
        start = points
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
        before, start, after, beyond = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    curve = 0.5 * (
        2 * start
        + (after - before) * _T
        + (2 * before - 5 * start + 4 * after - beyond) * _T**2
        + (3 * start - before - 3 * after + beyond) * _T**3
    )
    smooth: NDArray[np.float64] = curve.transpose(1, 0, 2).reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, points[-1:]])


def _mirrored(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Complete the right half of a symmetric outline, listed from top to bottom."""
    return [*points, *((-x, y) for x, y in reversed(points) if x)]


def _tint(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) or lighten (factor > 1) a colour."""
    if factor <= 1:
        r, g, b = (round(value * factor) for value in colour)
    else:
        r, g, b = (round(255 - (255 - value) / factor) for value in colour)
    return r, g, b


def _pick(rng: np.random.Generator, options: Sequence[Colour], jitter: float = 14) -> Colour:
    """Pick a colour and shift it a little."""
    base = options[int(rng.integers(len(options)))]
    r, g, b = (int(np.clip(value + rng.normal(0, jitter), 0, 255)) for value in base)
    return r, g, b


# --- the animal -----------------------------------------------------------------------------------

COATS: tuple[Colour, ...] = (
    (222, 142, 62),
    (52, 48, 50),
    (132, 132, 140),
    (236, 230, 222),
    (120, 78, 46),
    (226, 196, 150),
    (190, 138, 82),
    (86, 62, 48),
    (168, 150, 128),
    (98, 104, 116),
)
IRISES: tuple[Colour, ...] = ((120, 170, 70), (206, 176, 60), (110, 170, 214), (196, 130, 50))
BROWN_EYES: tuple[Colour, ...] = ((84, 50, 26), (58, 36, 22), (120, 76, 36))
PINK: Colour = (232, 152, 150)
INK: Colour = (34, 26, 26)


class Look(NamedTuple):
    """Traits of one animal; lengths in units of half the height of its head."""

    width: float  # of half the head
    ears: str  # pointed, pricked, floppy or folded
    ear_length: float
    muzzle: float  # half the width of the muzzle
    drop: float  # how far the muzzle reaches down
    nose: float  # half the width of the nose
    nose_colour: Colour
    eye: float
    iris: Colour
    slit: bool  # pupil
    whiskers: float
    tongue: bool
    tail: str  # long, bushy, stub or up
    legs: float
    bulk: float  # of the body
    fluff: float
    coat: Colour
    second: Colour
    pattern: str
    collar: Colour | None


def _look(kind: str, rng: np.random.Generator) -> Look:
    """Draw the traits of a cat or a dog, each by itself."""

    def cat() -> bool:
        return (kind == "cat") != (rng.random() < BORROWED)

    coat = _pick(rng, COATS)
    second = _pick(rng, COATS) if rng.random() < 0.5 else (244, 240, 234)
    return Look(
        width=rng.normal(1.16, 0.09) if cat() else rng.normal(0.95, 0.09),
        ears=str(
            rng.choice(["pointed", "pricked", "folded"], p=[0.85, 0.08, 0.07])
            if cat()
            else rng.choice(["floppy", "pricked", "pointed", "folded"], p=[0.68, 0.18, 0.04, 0.1])
        ),
        ear_length=rng.uniform(0.75, 1.25),
        muzzle=rng.normal(0.42, 0.06) if cat() else rng.normal(0.56, 0.08),
        drop=rng.normal(0.72, 0.08) if cat() else rng.normal(1.0, 0.12),
        nose=rng.normal(0.13, 0.03) if cat() else rng.normal(0.24, 0.04),
        nose_colour=_pick(rng, [PINK, (170, 96, 92), INK]) if cat() else _pick(rng, [INK], 8),
        eye=rng.normal(0.26, 0.03) if cat() else rng.normal(0.19, 0.03),
        iris=_pick(rng, IRISES) if cat() else _pick(rng, BROWN_EYES),
        slit=bool(rng.random() < 0.7) if cat() else False,
        whiskers=rng.uniform(0.6, 1.2) if cat() else rng.uniform(0, 0.4),
        tongue=bool(rng.random() < (0.08 if cat() else 0.5)),
        tail=str(
            rng.choice(["long", "bushy", "up"]) if cat() else rng.choice(["bushy", "stub", "up"])
        ),
        legs=rng.normal(1.0, 0.15) if cat() else rng.normal(1.25, 0.25),
        bulk=rng.normal(1.0, 0.1) if cat() else rng.normal(1.15, 0.15),
        fluff=rng.uniform(0, 0.045),
        coat=coat,
        second=second,
        pattern=str(rng.choice(["plain", "tabby", "bicolour", "patches", "mask", "spots"])),
        collar=_pick(rng, [(200, 40, 50), (40, 90, 190), (240, 200, 60), (60, 150, 90)])
        if rng.random() < 0.35
        else None,
    )


def _animal(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    """Place the animal in the picture in one of four poses."""
    pose = str(rng.choice(["portrait", "sit", "stand", "lie"], p=[0.6, 0.25, 0.05, 0.1]))
    scale = {
        "portrait": rng.uniform(0.22, 0.33),
        "sit": rng.uniform(0.14, 0.19),
        "stand": rng.uniform(0.11, 0.15),
        "lie": rng.uniform(0.14, 0.2),
    }[pose]
    x = 0.5 + rng.normal(0, 0.09)
    y = {"portrait": 0.52, "sit": 0.36, "stand": 0.42, "lie": 0.5}[pose] + rng.normal(0, 0.05)
    body = pen.at(x, y, scale, rng.normal(0, 4), mirror=bool(rng.random() < 0.5))
    tilt = rng.normal(0, 9)
    if pose == "portrait":
        shoulders = [(0.0, 0.3), (0.7, 0.6), (1.25 * look.bulk, 1.6), (1.6 * look.bulk, 4.0)]
        body.blob(_mirrored(shoulders), look.coat, _tint(look.coat, 0.6))
        if look.pattern in ("bicolour", "mask"):
            body.blob(_mirrored([(0.0, 0.6), (0.5, 1.2), (0.45, 2.6), (0.0, 3.2)]), look.second)
        _collar(body, look, 0.78, 1.16)
    elif pose == "sit":
        _sitting(body, look)
    elif pose == "lie":
        _lying(body, look)
    else:
        _standing(body, look)
        body = body.at(-2.2, -0.35)
    _head(body.at(0, 0, 1, tilt), look, rng)


def _collar(pen: Pen, look: Look, half: float, y: float) -> None:
    if look.collar:
        pen.line([(-half, y - 0.12), (0, y + 0.12), (half, y - 0.12)], look.collar, 0.22)
        pen.ellipse(0, y + 0.32, 0.14, 0.14, (236, 204, 96), _tint(look.collar, 0.6))


def _tail(pen: Pen, look: Look) -> None:
    """Draw a tail that starts at the origin and goes to the right."""
    colour, edge = look.coat, _tint(look.coat, 0.6)
    if look.tail == "long":
        pen.strip(
            [(0, 0), (0.8, 0.2), (1.4, -0.4), (1.3, -1.2), (1.7, -1.7)], 0.34, 0.2, colour, edge
        )
    elif look.tail == "bushy":
        pen.strip([(0, 0), (0.7, 0), (1.3, -0.5), (1.6, -1.1)], 0.3, 0.62, colour, edge)
    elif look.tail == "up":
        pen.strip([(0, 0), (0.45, -0.5), (0.5, -1.2), (0.25, -1.7)], 0.34, 0.24, colour, edge)
    else:
        pen.strip([(0, 0), (0.3, -0.25), (0.45, -0.5)], 0.36, 0.26, colour, edge)


def _markings(pen: Pen, look: Look, x: float, y: float, w: float, h: float) -> None:
    """Put stripes, patches or spots on the part of the body around (x, y)."""
    dark = _tint(look.coat, 0.62)
    if look.pattern == "tabby":
        for step in (-0.6, -0.2, 0.2, 0.6):
            top = [
                (x + step * w, y - 0.75 * h),
                (x + step * w + 0.12, y - 0.3 * h),
                (x + step * w, y),
            ]
            pen.line(top, dark, 0.14)
    elif look.pattern == "patches":
        pen.blob(
            [
                (x, y - 0.7 * h),
                (x + 0.6 * w, y - 0.5 * h),
                (x + 0.5 * w, y),
                (x + 0.1 * w, y - 0.1 * h),
            ],
            look.second,
        )
    elif look.pattern == "spots":
        for dx, dy in ((-0.5, -0.3), (0, -0.6), (0.45, -0.2), (-0.1, 0.1), (0.3, 0.4)):
            pen.ellipse(x + dx * w, y + dy * h, 0.14, 0.11, look.second)


def _sitting(pen: Pen, look: Look) -> None:
    coat, edge, b = look.coat, _tint(look.coat, 0.6), look.bulk
    white = look.second if look.pattern in ("bicolour", "mask") else coat
    _tail(pen.at(1.15 * b, 2.9), look)
    outline = [
        (0.0, 0.3),
        (0.6 * b, 0.7),
        (0.85 * b, 1.5),
        (1.3 * b, 2.5),
        (1.15 * b, 3.1),
        (0.0, 3.15),
    ]
    pen.blob(_mirrored(outline), coat, edge)
    _markings(pen, look, 0.3, 2.0, 0.9 * b, 0.8)
    if look.pattern == "bicolour":
        pen.blob(_mirrored([(0.0, 0.9), (0.42, 1.3), (0.36, 2.1), (0.0, 2.5)]), look.second)
    for side in (-1, 1):
        pen.ellipse(side * 1.0 * b, 3.05, 0.42, 0.22, white, edge)
        foot = 2.2 + 0.9 * look.legs
        pen.strip([(side * 0.4, 1.7), (side * 0.42, foot)], 0.46, 0.4, coat, edge)
        pen.ellipse(side * 0.44, foot + 0.05, 0.32, 0.2, white, edge)
    _collar(pen, look, 0.6, 1.0)


def _standing(pen: Pen, look: Look) -> None:
    coat, edge, b = look.coat, _tint(look.coat, 0.6), look.bulk
    white = look.second if look.pattern in ("bicolour", "mask") else coat
    _tail(pen.at(1.9, 0.35), look)
    foot = 1.3 + 1.3 * look.legs
    for x, shade in ((-1.2, 0.8), (1.7, 0.8), (-1.65, 1.0), (1.3, 1.0)):
        pen.strip([(x, 0.9), (x + 0.05, foot)], 0.56, 0.36, _tint(coat, shade), edge)
        pen.ellipse(x - 0.06, foot + 0.08, 0.3, 0.19, _tint(white, shade), edge)
    pen.blob(
        [
            *((-2.0, 0.1), (-1.2, -0.1 * b), (0.4, 0.05), (1.6, -0.05), (2.15, 0.5)),
            *((1.9, 1.3), (0.4, 1.05 * b), (-1.3, 1.4 * b), (-2.1, 1.0)),
        ],
        coat,
        edge,
    )
    _markings(pen, look, 0.2, 0.7, 1.4, 0.7)
    pen.strip([(-1.6, 0.8), (-2.15, -0.1)], 1.2, 0.95, coat)


def _lying(pen: Pen, look: Look) -> None:
    coat, edge, b = look.coat, _tint(look.coat, 0.6), look.bulk
    white = look.second if look.pattern in ("bicolour", "mask") else coat
    _tail(pen.at(2.6, 1.5, 1, 25), look)
    pen.blob(
        [
            (-0.9, 0.6),
            (0.3, 0.15),
            (1.6, 0.1),
            (2.7 * b, 0.7),
            (2.8 * b, 1.6),
            (0.8, 1.85),
            (-1.0, 1.8),
        ],
        coat,
        edge,
    )
    _markings(pen, look, 1.6, 0.95, 1.0, 0.8)
    for x in (-0.55, 0.35):
        pen.ellipse(x, 1.72, 0.5 * look.legs, 0.24, white, edge)
    _collar(pen, look, 0.6, 1.0)


def _head(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    w, coat = look.width, look.coat
    edge = _tint(coat, 0.6)
    if look.ears != "floppy":
        _ears(pen, look)
    outline = np.array(
        _mirrored(
            [
                *((0.0, -0.92), (0.55 * w, -0.82), (0.95 * w, -0.25), (0.92 * w, 0.35)),
                *(
                    (0.6 * w, 0.78),
                    (0.3 * w, 0.9 + 0.1 * look.drop),
                    (0.0, 0.86 + 0.16 * look.drop),
                ),
            ]
        )
    )
    curve = _smooth(outline, closed=True)
    curve *= 1 + rng.normal(0, look.fluff, (len(curve), 1))  # tufts of fur
    pen.polygon(curve, coat, edge)
    _face_pattern(pen, look)
    if look.ears == "floppy":
        _ears(pen, look)
    _eyes(pen, look, rng)
    _muzzle(pen, look)


def _ears(pen: Pen, look: Look) -> None:
    w, length = look.width, look.ear_length
    edge, inside = _tint(look.coat, 0.6), _tint(PINK, 0.9)
    for side in (-1, 1):
        if look.ears == "floppy":
            shape = [
                (0.5 * w, -0.88),
                (1.05 * w, -0.75),
                (1.3 * w, -0.1),
                (1.25 * w, 0.75 * length),
            ]
            shape += [(0.98 * w, 0.8 * length), (0.85 * w, 0.1), (0.68 * w, -0.4)]
            pen.blob([(side * x, y) for x, y in shape], _tint(look.coat, 0.75), edge)
            continue
        if look.ears == "folded":
            shape = [(0.35 * w, -0.85), (0.6 * w, -1.15 * length), (1.15 * w, -0.95)]
            shape += [(1.1 * w, -0.55), (0.85 * w, -0.4)]
            pen.blob([(side * x, y) for x, y in shape], _tint(look.coat, 0.85), edge)
            continue
        wide, tip = (0.8, -1.35) if look.ears == "pointed" else (0.62, -1.75)
        left, right = (0.95 - wide) * w, 0.98 * w
        top = (0.84 * w, tip * length - 0.1)
        pen.polygon(
            [(side * left, -0.75), (side * top[0], top[1]), (side * right, -0.2)], look.coat, edge
        )
        pen.polygon(
            [
                (side * (left + 0.2 * w), -0.8),
                (side * (top[0] - 0.02), top[1] + 0.28),
                (side * (right - 0.1 * w), -0.4),
            ],
            inside,
        )


def _face_pattern(pen: Pen, look: Look) -> None:
    w, dark = look.width, _tint(look.coat, 0.62)
    if look.pattern == "tabby":
        for x in (-0.28, 0.0, 0.28):
            pen.line([(x, -0.88), (0.8 * x, -0.5)], dark, 0.1)
        for side in (-1, 1):
            for y in (0.15, 0.38):
                pen.line([(side * 0.9 * w, y), (side * 0.62 * w, y + 0.02)], dark, 0.08)
    elif look.pattern == "bicolour":
        pen.blob(
            _mirrored([(0.0, -0.8), (0.13, -0.2), (0.5 * w, 0.4), (0.3 * w, 0.9), (0.0, 1.0)]),
            look.second,
        )
    elif look.pattern == "patches":
        pen.blob(
            [(0.1, -0.85), (0.7 * w, -0.7), (0.85 * w, -0.05), (0.35 * w, 0.2), (0.1, -0.2)],
            look.second,
        )
    elif look.pattern == "mask":
        pen.blob(
            _mirrored(
                [(0.0, -0.45), (0.55 * w, -0.4), (0.7 * w, 0.2), (0.4 * w, 0.8), (0.0, 0.95)]
            ),
            look.second,
        )
    elif look.pattern == "spots":
        for x, y in ((-0.5, -0.55), (0.15, -0.68), (0.6, 0.3), (-0.62, 0.25)):
            pen.ellipse(x * w, y, 0.11, 0.09, look.second)


def _eyes(pen: Pen, look: Look, rng: np.random.Generator) -> None:
    x, y, r = 0.44 * look.width, -0.14, look.eye
    open_ = rng.uniform(0.75, 1.05)
    asleep = rng.random() < 0.08
    glance = rng.normal(0, 0.2) * r
    for side in (-1, 1):
        if asleep:
            pen.line([(side * (x - r), y), (side * x, y + 0.12), (side * (x + r), y)], INK, 0.07)
            continue
        pen.ellipse(side * x, y, r * 1.1, r * open_ * 1.1, INK)
        pen.ellipse(side * x, y, r * 0.95, r * open_ * 0.95, look.iris)
        pupil = 0.26 if look.slit else 0.6
        pen.ellipse(side * x + glance, y, pupil * r, 0.8 * r * open_ if look.slit else 0.6 * r, INK)
        pen.ellipse(side * x + glance - 0.3 * r, y - 0.35 * r, 0.2 * r, 0.2 * r, (250, 250, 250))


def _muzzle(pen: Pen, look: Look) -> None:
    m, low = look.muzzle, look.drop
    light = look.second if look.pattern in ("bicolour", "mask") else _tint(look.coat, 1.5)
    edge = _tint(light, 0.75)
    nose_y = 0.3 + 0.12 * (low - 0.7)
    if look.tongue:
        pen.blob(
            [
                (-0.16, low - 0.1),
                (0.16, low - 0.1),
                (0.17, low + 0.28),
                (0, low + 0.4),
                (-0.17, low + 0.28),
            ],
            (226, 96, 110),
            (170, 60, 80),
        )
    pen.blob(
        _mirrored(
            [
                (0.0, nose_y - 0.18),
                (0.62 * m, nose_y),
                (m, 0.62 * low + 0.1),
                (0.55 * m, low),
                (0.0, low - 0.1),
            ]
        ),
        light,
        edge,
    )
    n = look.nose
    pen.blob(
        [
            (-n, nose_y - 0.5 * n),
            (0, nose_y - 0.7 * n),
            (n, nose_y - 0.5 * n),
            (0.35 * n, nose_y + 0.6 * n),
            (-0.35 * n, nose_y + 0.6 * n),
        ],
        look.nose_colour,
        _tint(look.nose_colour, 0.6),
    )
    mouth = nose_y + 0.6 * n
    for side in (-1, 1):
        pen.line(
            [(0, mouth), (0, low - 0.26), (side * 0.22, low - 0.14), (side * 0.5 * m, low - 0.24)],
            INK,
            0.05,
        )
        if look.whiskers > 0.1:
            for dy in (-0.12, 0.02, 0.16):
                start = (side * 0.7 * m, 0.62 * low + dy)
                end = (side * (0.7 * m + look.whiskers), 0.6 * low + 2.6 * dy)
                pen.line([start, end], (240, 238, 232), 0.03)


# --- the rest of the picture ----------------------------------------------------------------------

HUES: tuple[Colour, ...] = (
    (206, 190, 168),
    (150, 176, 196),
    (176, 156, 184),
    (190, 204, 170),
    (214, 168, 150),
    (120, 130, 140),
    (232, 222, 200),
    (96, 120, 110),
)


def _colour_field(rng: np.random.Generator, side: int) -> Image.Image:
    """A smooth play of two or three related colours."""
    base = np.array(_pick(rng, HUES, 24), dtype=float)
    small = np.clip(base + rng.normal(0, 22, (3, 3, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR)


def _surroundings(pen: Pen, rng: np.random.Generator) -> None:
    place = str(
        rng.choice(["room", "garden", "sofa", "lights", "plain"], p=[0.3, 0.25, 0.2, 0.15, 0.1])
    )
    if place == "room":
        _room(pen, rng)
    elif place == "garden":
        _garden(pen, rng)
    elif place == "sofa":
        _sofa(pen, rng)
    elif place == "lights":
        for _ in range(rng.integers(8, 22)):
            r = rng.uniform(0.02, 0.09)
            pen.ellipse(rng.random(), rng.random(), r, r, _pick(rng, HUES, 40))


def _room(pen: Pen, rng: np.random.Generator) -> None:
    floor, colour = (
        rng.uniform(0.55, 0.85),
        _pick(rng, [(150, 110, 76), (180, 150, 120), (110, 96, 92)]),
    )
    if rng.random() < 0.5:
        stripe = _pick(rng, HUES)
        for x in np.arange(rng.uniform(0, 0.1), 1, rng.uniform(0.07, 0.16)):
            pen.polygon([(x, 0), (x + 0.03, 0), (x + 0.03, floor), (x, floor)], stripe)
    if rng.random() < 0.6:
        x, y, w, h = (
            rng.uniform(0, 0.7),
            rng.uniform(0, 0.25),
            rng.uniform(0.15, 0.35),
            rng.uniform(0.15, 0.4),
        )
        pen.polygon(
            [(x, y), (x + w, y), (x + w, y + h), (x, y + h)],
            _pick(rng, [(190, 220, 240), (60, 70, 90), *HUES]),
            (240, 236, 230),
        )
        pen.line([(x + w / 2, y), (x + w / 2, y + h)], (240, 236, 230), 0.012)
    pen.polygon([(0, floor), (1, floor), (1, 1), (0, 1)], colour)
    for y in np.arange(floor, 1, 0.06):
        pen.line([(0, y), (1, y)], _tint(colour, 0.85), 0.005)
    if rng.random() < 0.5:
        pen.ellipse(
            rng.uniform(0.3, 0.7), 0.92, 0.45, 0.12, _pick(rng, [*HUES, *COATS]), _tint(colour, 0.7)
        )


def _garden(pen: Pen, rng: np.random.Generator) -> None:
    horizon, grass = (
        rng.uniform(0.35, 0.75),
        _pick(rng, [(96, 140, 64), (130, 150, 80), (70, 110, 60)]),
    )
    for _ in range(rng.integers(0, 5)):
        x, r = rng.random(), rng.uniform(0.08, 0.22)
        pen.polygon(
            [
                (x - 0.02, horizon - r),
                (x + 0.02, horizon - r),
                (x + 0.03, horizon),
                (x - 0.03, horizon),
            ],
            (104, 78, 56),
        )
        pen.ellipse(x, horizon - 1.2 * r, r, r, _tint(grass, rng.uniform(0.6, 1.1)))
    pen.polygon([(0, horizon), (1, horizon), (1, 1), (0, 1)], grass)
    blades = rng.random((40, 2)) * (1, 1 - horizon) + (0, horizon)
    for x, y in blades:
        pen.polygon(
            [(x, y), (x + 0.012, y), (x + rng.normal(0, 0.02), y - 0.06)],
            _tint(grass, rng.uniform(0.7, 1.3)),
        )


def _sofa(pen: Pen, rng: np.random.Generator) -> None:
    colour, seat = _pick(rng, [*HUES, *COATS], 24), rng.uniform(0.55, 0.75)
    top = rng.uniform(0.05, 0.3)
    pen.blob(
        [(0, top), (0.5, top - 0.03), (1, top), (1.1, 0.6), (1, 1.1), (0, 1.1), (-0.1, 0.6)],
        colour,
        _tint(colour, 0.7),
    )
    for x in np.arange(rng.uniform(0.1, 0.4), 1, rng.uniform(0.25, 0.45)):
        pen.line([(x, top), (x + 0.01, seat)], _tint(colour, 0.75), 0.012)
    pen.polygon([(0, seat), (1, seat), (1, 1), (0, 1)], _tint(colour, 0.9), _tint(colour, 0.65))
    for _ in range(rng.integers(0, 3)):
        cushion = pen.at(
            rng.random(), rng.uniform(0.35, 0.6), rng.uniform(0.1, 0.17), rng.normal(0, 25)
        )
        cushion.blob(
            [(-1, -1), (0, -0.85), (1, -1), (0.9, 0), (1, 1), (0, 0.9), (-1, 1), (-0.9, 0)],
            _pick(rng, HUES, 40),
            (90, 80, 80),
        )


def _thing(pen: Pen, rng: np.random.Generator) -> None:
    """Something that lies about: a ball, a bowl, a box, a plant or a mug."""
    colour = _pick(rng, [(214, 70, 60), (70, 120, 200), (240, 196, 70), (90, 160, 100), *HUES], 24)
    edge = _tint(colour, 0.65)
    kind = rng.integers(5)
    if kind == 0:
        pen.ellipse(0, 0, 1, 1, colour, edge)
        pen.line([(-0.9, -0.3), (0, 0.1), (0.9, -0.3)], edge, 0.14)
        pen.line([(-0.7, 0.6), (0, 0.2), (0.75, 0.55)], edge, 0.14)
    elif kind == 1:
        pen.polygon([(-1, -0.4), (1, -0.4), (1.3, 0.5), (-1.3, 0.5)], colour, edge)
        pen.ellipse(0, -0.4, 1, 0.25, _tint(colour, 0.5))
    elif kind == 2:
        pen.polygon([(-1.2, -1), (1.2, -1), (1.2, 1), (-1.2, 1)], colour, edge)
        pen.polygon([(-0.2, -1), (0.2, -1), (0.2, 1), (-0.2, 1)], _tint(colour, 1.4))
    elif kind == 3:
        for angle in (-50, -25, 0, 25, 50):
            leaf = pen.at(0, 0, 1, angle)
            leaf.blob([(0, 0), (0.3, -1.2), (0, -2.4), (-0.3, -1.2)], (86, 140, 80), (50, 96, 60))
        pen.polygon([(-0.8, -0.2), (0.8, -0.2), (0.55, 1.1), (-0.55, 1.1)], colour, edge)
    else:
        pen.line([(0.7, -0.4), (1.3, 0), (0.7, 0.5)], edge, 0.22)
        pen.polygon([(-0.8, -0.9), (0.8, -0.9), (0.7, 0.9), (-0.7, 0.9)], colour, edge)


def _in_the_way(pen: Pen, rng: np.random.Generator) -> None:
    """Something between the animal and the camera."""
    kind = rng.integers(4)
    colour = _pick(rng, [*HUES, *COATS], 24)
    if kind == 0:  # tall grass
        for _ in range(rng.integers(10, 24)):
            x, height = rng.random(), rng.uniform(0.2, 0.6)
            blade = [(x, 1.02), (x + 0.025, 1.02), (x + rng.normal(0, 0.1), 1 - height)]
            pen.polygon(blade, _pick(rng, [(96, 140, 64), (120, 160, 80), (70, 110, 60)]))
    elif kind == 1:  # a blanket, or the edge of a box
        y, slope = rng.uniform(0.62, 0.85), rng.normal(0, 0.1)
        pen.polygon([(0, y - slope), (1, y + slope), (1, 1), (0, 1)], colour, _tint(colour, 0.7))
    elif kind == 2:  # a door or a curtain
        x, left = rng.uniform(0.2, 0.38), rng.random() < 0.5
        xs = (
            (0, x, x + rng.normal(0, 0.04), 0)
            if left
            else (1, 1 - x, 1 - x + rng.normal(0, 0.04), 1)
        )
        pen.polygon(list(zip(xs, (0, 0, 1, 1), strict=True)), colour, _tint(colour, 0.7))
    else:  # slats of a fence
        for x in np.arange(rng.uniform(0, 0.2), 1, rng.uniform(0.2, 0.34)):
            pen.polygon(
                [(x, 0), (x + 0.045, 0), (x + 0.045, 1), (x, 1)], colour, _tint(colour, 0.7)
            )


def _photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light, lens and sensor."""
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.6, 2.2)))
    if rng.random() < 0.1:
        image = image.convert("L").convert("RGB")
    pixels = np.array(image, dtype=np.float32)
    side = np.linspace(-1, 1, SIDE, dtype=np.float32)
    gx, gy = rng.normal(0, 0.22, 2).astype(np.float32)
    tone = (rng.uniform(0.7, 1.15) * (1 + rng.normal(0, 0.05, 3))).astype(np.float32)
    pixels *= (1 + gx * side[None, :] + gy * side[:, None])[:, :, None]
    pixels *= tone
    pixels -= 118
    pixels *= np.float32(rng.uniform(0.65, 1.1))
    pixels += 118
    grain = rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32)
    pixels += grain * np.float32(rng.uniform(1, 14))
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
