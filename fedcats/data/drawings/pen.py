"""What is drawn with: shapes, colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw

SIDE = 256
"""Height and width of a drawing in pixels."""


Colour = tuple[int, int, int]


Points = NDArray[np.float64] | Sequence[tuple[float, float]]


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
        self.polygon(smoothed(np.asarray(points, dtype=float), closed=True), fill, outline)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: Colour | None = None
    ) -> None:
        """Fill an ellipse."""
        self.polygon(_CIRCLE * (rx, ry) + (x, y), fill, outline)

    def line(self, points: Points, fill: Colour, width: float) -> None:
        """Draw a smooth line through the points; the width is in units of this frame."""
        curve = smoothed(np.asarray(points, dtype=float), closed=False)
        scale = math.sqrt(abs(float(np.linalg.det(self.frame[:, :2]))))
        self.canvas.line(
            self._pixels(curve), fill=fill, width=max(1, round(width * scale)), joint="curve"
        )

    def strip(
        self, points: Points, start: float, end: float, fill: Colour, outline: Colour | None = None
    ) -> None:
        """Fill a band along a smooth line, as wide as `start` at first and `end` at last."""
        curve = smoothed(np.asarray(points, dtype=float), closed=False)
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


def smoothed(points: NDArray[np.float64], closed: bool) -> NDArray[np.float64]:
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


def mirrored(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Complete the right half of a symmetric outline, listed from top to bottom."""
    return [*points, *((-x, y) for x, y in reversed(points) if x)]


def tint(colour: Colour, factor: float) -> Colour:
    """Darken (factor < 1) or lighten (factor > 1) a colour."""
    if factor <= 1:
        r, g, b = (round(value * factor) for value in colour)
    else:
        r, g, b = (round(255 - (255 - value) / factor) for value in colour)
    return r, g, b


def pick(rng: np.random.Generator, options: Sequence[Colour], jitter: float = 14) -> Colour:
    """Pick a colour and shift it a little."""
    base = options[int(rng.integers(len(options)))]
    r, g, b = (int(np.clip(value + rng.normal(0, jitter), 0, 255)) for value in base)
    return r, g, b


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


PINK: Colour = (232, 152, 150)


INK: Colour = (34, 26, 26)


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
