"""What is around an animal, and the camera."""

import numpy as np
from PIL import Image, ImageFilter

from fedcats.data.drawings.pen import COATS, HUES, SIDE, Pen, pick, tint


def colour_field(rng: np.random.Generator, side: int) -> Image.Image:
    """A smooth play of two or three related colours."""
    base = np.array(pick(rng, HUES, 24), dtype=float)
    small = np.clip(base + rng.normal(0, 22, (3, 3, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BILINEAR)


def draw_surroundings(pen: Pen, rng: np.random.Generator) -> None:
    """Draw a place for the animal to be in."""
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
            pen.ellipse(rng.random(), rng.random(), r, r, pick(rng, HUES, 40))


def _room(pen: Pen, rng: np.random.Generator) -> None:
    floor, colour = (
        rng.uniform(0.55, 0.85),
        pick(rng, [(150, 110, 76), (180, 150, 120), (110, 96, 92)]),
    )
    if rng.random() < 0.5:
        stripe = pick(rng, HUES)
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
            pick(rng, [(190, 220, 240), (60, 70, 90), *HUES]),
            (240, 236, 230),
        )
        pen.line([(x + w / 2, y), (x + w / 2, y + h)], (240, 236, 230), 0.012)
    pen.polygon([(0, floor), (1, floor), (1, 1), (0, 1)], colour)
    for y in np.arange(floor, 1, 0.06):
        pen.line([(0, y), (1, y)], tint(colour, 0.85), 0.005)
    if rng.random() < 0.5:
        pen.ellipse(
            rng.uniform(0.3, 0.7), 0.92, 0.45, 0.12, pick(rng, [*HUES, *COATS]), tint(colour, 0.7)
        )


def _garden(pen: Pen, rng: np.random.Generator) -> None:
    horizon, grass = (
        rng.uniform(0.35, 0.75),
        pick(rng, [(96, 140, 64), (130, 150, 80), (70, 110, 60)]),
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
        pen.ellipse(x, horizon - 1.2 * r, r, r, tint(grass, rng.uniform(0.6, 1.1)))
    pen.polygon([(0, horizon), (1, horizon), (1, 1), (0, 1)], grass)
    blades = rng.random((40, 2)) * (1, 1 - horizon) + (0, horizon)
    for x, y in blades:
        pen.polygon(
            [(x, y), (x + 0.012, y), (x + rng.normal(0, 0.02), y - 0.06)],
            tint(grass, rng.uniform(0.7, 1.3)),
        )


def _sofa(pen: Pen, rng: np.random.Generator) -> None:
    colour, seat = pick(rng, [*HUES, *COATS], 24), rng.uniform(0.55, 0.75)
    top = rng.uniform(0.05, 0.3)
    pen.blob(
        [(0, top), (0.5, top - 0.03), (1, top), (1.1, 0.6), (1, 1.1), (0, 1.1), (-0.1, 0.6)],
        colour,
        tint(colour, 0.7),
    )
    for x in np.arange(rng.uniform(0.1, 0.4), 1, rng.uniform(0.25, 0.45)):
        pen.line([(x, top), (x + 0.01, seat)], tint(colour, 0.75), 0.012)
    pen.polygon([(0, seat), (1, seat), (1, 1), (0, 1)], tint(colour, 0.9), tint(colour, 0.65))
    for _ in range(rng.integers(0, 3)):
        cushion = pen.at(
            rng.random(), rng.uniform(0.35, 0.6), rng.uniform(0.1, 0.17), rng.normal(0, 25)
        )
        cushion.blob(
            [(-1, -1), (0, -0.85), (1, -1), (0.9, 0), (1, 1), (0, 0.9), (-1, 1), (-0.9, 0)],
            pick(rng, HUES, 40),
            (90, 80, 80),
        )


def thing(pen: Pen, rng: np.random.Generator) -> None:
    """Something that lies about: a ball, a bowl, a box, a plant or a mug."""
    colour = pick(rng, [(214, 70, 60), (70, 120, 200), (240, 196, 70), (90, 160, 100), *HUES], 24)
    edge = tint(colour, 0.65)
    kind = rng.integers(5)
    if kind == 0:
        pen.ellipse(0, 0, 1, 1, colour, edge)
        pen.line([(-0.9, -0.3), (0, 0.1), (0.9, -0.3)], edge, 0.14)
        pen.line([(-0.7, 0.6), (0, 0.2), (0.75, 0.55)], edge, 0.14)
    elif kind == 1:
        pen.polygon([(-1, -0.4), (1, -0.4), (1.3, 0.5), (-1.3, 0.5)], colour, edge)
        pen.ellipse(0, -0.4, 1, 0.25, tint(colour, 0.5))
    elif kind == 2:
        pen.polygon([(-1.2, -1), (1.2, -1), (1.2, 1), (-1.2, 1)], colour, edge)
        pen.polygon([(-0.2, -1), (0.2, -1), (0.2, 1), (-0.2, 1)], tint(colour, 1.4))
    elif kind == 3:
        for angle in (-50, -25, 0, 25, 50):
            leaf = pen.at(0, 0, 1, angle)
            leaf.blob([(0, 0), (0.3, -1.2), (0, -2.4), (-0.3, -1.2)], (86, 140, 80), (50, 96, 60))
        pen.polygon([(-0.8, -0.2), (0.8, -0.2), (0.55, 1.1), (-0.55, 1.1)], colour, edge)
    else:
        pen.line([(0.7, -0.4), (1.3, 0), (0.7, 0.5)], edge, 0.22)
        pen.polygon([(-0.8, -0.9), (0.8, -0.9), (0.7, 0.9), (-0.7, 0.9)], colour, edge)


def in_the_way(pen: Pen, rng: np.random.Generator) -> None:
    """Something between the animal and the camera."""
    kind = rng.integers(4)
    colour = pick(rng, [*HUES, *COATS], 24)
    if kind == 0:  # tall grass
        for _ in range(rng.integers(10, 24)):
            x, height = rng.random(), rng.uniform(0.2, 0.6)
            blade = [(x, 1.02), (x + 0.025, 1.02), (x + rng.normal(0, 0.1), 1 - height)]
            pen.polygon(blade, pick(rng, [(96, 140, 64), (120, 160, 80), (70, 110, 60)]))
    elif kind == 1:  # a blanket, or the edge of a box
        y, slope = rng.uniform(0.62, 0.85), rng.normal(0, 0.1)
        pen.polygon([(0, y - slope), (1, y + slope), (1, 1), (0, 1)], colour, tint(colour, 0.7))
    elif kind == 2:  # a door or a curtain
        x, left = rng.uniform(0.2, 0.38), rng.random() < 0.5
        xs = (
            (0, x, x + rng.normal(0, 0.04), 0)
            if left
            else (1, 1 - x, 1 - x + rng.normal(0, 0.04), 1)
        )
        pen.polygon(list(zip(xs, (0, 0, 1, 1), strict=True)), colour, tint(colour, 0.7))
    else:  # slats of a fence
        for x in np.arange(rng.uniform(0, 0.2), 1, rng.uniform(0.2, 0.34)):
            pen.polygon([(x, 0), (x + 0.045, 0), (x + 0.045, 1), (x, 1)], colour, tint(colour, 0.7))


def photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
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
