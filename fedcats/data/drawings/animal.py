"""How an animal is drawn."""

from typing import NamedTuple

import numpy as np

from fedcats.data.drawings.pen import (
    COATS,
    INK,
    PINK,
    Colour,
    Pen,
    mirrored,
    pick,
    smoothed,
    tint,
)

BORROWED = 0.03
"""Probability with which a trait is taken from the other animal."""


IRISES: tuple[Colour, ...] = ((120, 170, 70), (206, 176, 60), (110, 170, 214), (196, 130, 50))


BROWN_EYES: tuple[Colour, ...] = ((84, 50, 26), (58, 36, 22), (120, 76, 36))


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


def look_of(kind: str, rng: np.random.Generator) -> Look:
    """Draw the traits of a cat or a dog, each by itself."""

    def cat() -> bool:
        return (kind == "cat") != (rng.random() < BORROWED)

    coat = pick(rng, COATS)
    second = pick(rng, COATS) if rng.random() < 0.5 else (244, 240, 234)
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
        nose_colour=pick(rng, [PINK, (170, 96, 92), INK]) if cat() else pick(rng, [INK], 8),
        eye=rng.normal(0.26, 0.03) if cat() else rng.normal(0.19, 0.03),
        iris=pick(rng, IRISES) if cat() else pick(rng, BROWN_EYES),
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
        collar=pick(rng, [(200, 40, 50), (40, 90, 190), (240, 200, 60), (60, 150, 90)])
        if rng.random() < 0.35
        else None,
    )


def draw_animal(pen: Pen, look: Look, rng: np.random.Generator) -> None:
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
        body.blob(mirrored(shoulders), look.coat, tint(look.coat, 0.6))
        if look.pattern in ("bicolour", "mask"):
            body.blob(mirrored([(0.0, 0.6), (0.5, 1.2), (0.45, 2.6), (0.0, 3.2)]), look.second)
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
        pen.ellipse(0, y + 0.32, 0.14, 0.14, (236, 204, 96), tint(look.collar, 0.6))


def _tail(pen: Pen, look: Look) -> None:
    """Draw a tail that starts at the origin and goes to the right."""
    colour, edge = look.coat, tint(look.coat, 0.6)
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
    dark = tint(look.coat, 0.62)
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
    coat, edge, b = look.coat, tint(look.coat, 0.6), look.bulk
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
    pen.blob(mirrored(outline), coat, edge)
    _markings(pen, look, 0.3, 2.0, 0.9 * b, 0.8)
    if look.pattern == "bicolour":
        pen.blob(mirrored([(0.0, 0.9), (0.42, 1.3), (0.36, 2.1), (0.0, 2.5)]), look.second)
    for side in (-1, 1):
        pen.ellipse(side * 1.0 * b, 3.05, 0.42, 0.22, white, edge)
        foot = 2.2 + 0.9 * look.legs
        pen.strip([(side * 0.4, 1.7), (side * 0.42, foot)], 0.46, 0.4, coat, edge)
        pen.ellipse(side * 0.44, foot + 0.05, 0.32, 0.2, white, edge)
    _collar(pen, look, 0.6, 1.0)


def _standing(pen: Pen, look: Look) -> None:
    coat, edge, b = look.coat, tint(look.coat, 0.6), look.bulk
    white = look.second if look.pattern in ("bicolour", "mask") else coat
    _tail(pen.at(1.9, 0.35), look)
    foot = 1.3 + 1.3 * look.legs
    for x, shade in ((-1.2, 0.8), (1.7, 0.8), (-1.65, 1.0), (1.3, 1.0)):
        pen.strip([(x, 0.9), (x + 0.05, foot)], 0.56, 0.36, tint(coat, shade), edge)
        pen.ellipse(x - 0.06, foot + 0.08, 0.3, 0.19, tint(white, shade), edge)
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
    coat, edge, b = look.coat, tint(look.coat, 0.6), look.bulk
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
    edge = tint(coat, 0.6)
    if look.ears != "floppy":
        _ears(pen, look)
    outline = np.array(
        mirrored(
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
    curve = smoothed(outline, closed=True)
    curve *= 1 + rng.normal(0, look.fluff, (len(curve), 1))  # tufts of fur
    pen.polygon(curve, coat, edge)
    _face_pattern(pen, look)
    if look.ears == "floppy":
        _ears(pen, look)
    _eyes(pen, look, rng)
    _muzzle(pen, look)


def _ears(pen: Pen, look: Look) -> None:
    w, length = look.width, look.ear_length
    edge, inside = tint(look.coat, 0.6), tint(PINK, 0.9)
    for side in (-1, 1):
        if look.ears == "floppy":
            shape = [
                (0.5 * w, -0.88),
                (1.05 * w, -0.75),
                (1.3 * w, -0.1),
                (1.25 * w, 0.75 * length),
            ]
            shape += [(0.98 * w, 0.8 * length), (0.85 * w, 0.1), (0.68 * w, -0.4)]
            pen.blob([(side * x, y) for x, y in shape], tint(look.coat, 0.75), edge)
            continue
        if look.ears == "folded":
            shape = [(0.35 * w, -0.85), (0.6 * w, -1.15 * length), (1.15 * w, -0.95)]
            shape += [(1.1 * w, -0.55), (0.85 * w, -0.4)]
            pen.blob([(side * x, y) for x, y in shape], tint(look.coat, 0.85), edge)
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
    w, dark = look.width, tint(look.coat, 0.62)
    if look.pattern == "tabby":
        for x in (-0.28, 0.0, 0.28):
            pen.line([(x, -0.88), (0.8 * x, -0.5)], dark, 0.1)
        for side in (-1, 1):
            for y in (0.15, 0.38):
                pen.line([(side * 0.9 * w, y), (side * 0.62 * w, y + 0.02)], dark, 0.08)
    elif look.pattern == "bicolour":
        pen.blob(
            mirrored([(0.0, -0.8), (0.13, -0.2), (0.5 * w, 0.4), (0.3 * w, 0.9), (0.0, 1.0)]),
            look.second,
        )
    elif look.pattern == "patches":
        pen.blob(
            [(0.1, -0.85), (0.7 * w, -0.7), (0.85 * w, -0.05), (0.35 * w, 0.2), (0.1, -0.2)],
            look.second,
        )
    elif look.pattern == "mask":
        pen.blob(
            mirrored([(0.0, -0.45), (0.55 * w, -0.4), (0.7 * w, 0.2), (0.4 * w, 0.8), (0.0, 0.95)]),
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
    light = look.second if look.pattern in ("bicolour", "mask") else tint(look.coat, 1.5)
    edge = tint(light, 0.75)
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
        mirrored(
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
        tint(look.nose_colour, 0.6),
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
