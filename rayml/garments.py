"""The forms of the ten garments: polygons and lines in the garment's own plane, x to the right and y down.

Nothing here knows of colours, photos or files; `rayml.sample` puts what these functions collect into a picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# What a shape is made of; index into the picture's table of colours.
NOTHING, CLOTH, DARK, TRIM, PALE = range(5)
SEAM = 0.012  # Width of a seam, as a share of the garment's larger side.

Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Shape:
    """One polygon, or with `width` above 0 one line, of one material.

    Arguments:
        points: float (P, 2), x to the right and y down in the garment's plane.
        tone: CLOTH, DARK, TRIM or PALE.
        width: the line's width as a share of the garment's larger side; 0 fills the polygon.
    """

    points: NDArray[np.float64]
    tone: int
    width: float = 0.0


class Pen:
    """Collects a garment's shapes in the order of drawing, and hands out its random numbers.

    Arguments:
        rng: the picture's generator.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.shapes: list[Shape] = []

    def between(self, low: float, high: float) -> float:
        """A number from `low` to `high`, evenly spread."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        """True in `probability` of the cases."""
        return float(self.rng.random()) < probability

    def fill(self, points: list[Point], tone: int = CLOTH, *, seam: bool = True) -> None:
        """A filled polygon with softened corners, by default with a seam around it."""
        outline = _soften(np.array(points, np.float64), closed=True)
        self.shapes.append(Shape(outline, tone))
        if seam:
            self.shapes.append(Shape(np.vstack([outline, outline[:1]]), DARK, SEAM))

    def line(self, points: list[Point], tone: int = DARK, width: float = SEAM) -> None:
        """A line with softened corners."""
        self.shapes.append(Shape(_soften(np.array(points, np.float64), closed=False), tone, width))

    def dot(self, centre: Point, radius: float, tone: int) -> None:
        """A disc: a button, a bobble, a print."""
        angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
        ring = np.array(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self.shapes.append(Shape(ring, tone))


def _soften(points: NDArray[np.float64], *, closed: bool) -> NDArray[np.float64]:
    """Split each edge in three, then cut the corners once (Chaikin, 1974): cloth has no sharp corners."""
    following = np.roll(points, -1, axis=0) if closed else points[1:]
    starts = points if closed else points[:-1]
    fine = np.concatenate([starts + (following - starts) * t for t in (0.0, 1 / 3, 2 / 3)], axis=1).reshape(-1, 2)
    if not closed:
        return np.vstack([fine, points[-1:]])
    after = np.roll(fine, -1, axis=0)
    return np.concatenate([0.75 * fine + 0.25 * after, 0.25 * fine + 0.75 * after], axis=1).reshape(-1, 2)


@dataclass(frozen=True)
class Torso:
    """Where the upper body of a garment lies; its shoulders are at y = 0.05 and it is mirrored at x = 0."""

    neck: float
    neck_depth: float
    shoulder: float
    chest: float
    hem: float
    length: float


def _torso(pen: Pen, *, length: tuple[float, float], loose: float = 0.0) -> Torso:
    shoulder = pen.between(0.42, 0.52) + loose
    chest = shoulder * pen.between(0.86, 0.98)
    return Torso(
        neck=pen.between(0.14, 0.22),
        neck_depth=pen.between(0.08, 0.26),
        shoulder=shoulder,
        chest=chest,
        hem=chest * pen.between(0.9, 1.12),
        length=pen.between(*length),
    )


def _body(pen: Pen, t: Torso, *, dip: float = 0.0) -> None:
    """The back of the neck, then the front from shoulder to hem; `dip` lowers the hem's middle."""
    pen.fill([(-t.neck, 0), (0, -0.05), (t.neck, 0), (0.6 * t.neck, t.neck_depth), (-0.6 * t.neck, t.neck_depth)], DARK)
    right = [(0.6 * t.neck, 0.8 * t.neck_depth), (t.neck, 0), (t.shoulder, 0.08), (t.chest, 0.45)]
    right += [
        (0.5 * (t.chest + t.hem) - 0.02, 0.5 * (0.45 + t.length)),
        (t.hem, t.length),
        (0.5 * t.hem, t.length + dip),
    ]
    pen.fill([(0, t.neck_depth), *right, *[(-x, y) for x, y in reversed(right)]])


def _sleeves(pen: Pen, t: Torso, length: tuple[float, float], *, width: float = 0.1) -> list[tuple[Point, Point]]:
    """Two sleeves that bend at the elbow, drawn one by one; returns the two ends of each cuff."""
    long = pen.between(*length)
    angle = pen.between(0.55, 1.2)  # From straight out (0) to hanging down (pi / 2).
    cuffs = []
    for side in (-1, 1):
        first = angle + pen.between(-0.12, 0.12)
        second = first + pen.between(-0.15, 0.45) * min(1.0, long)
        end_width = width * pen.between(0.85, 1.1) + max(0.0, 0.5 - long) * 0.18  # A short sleeve stays wide.
        x, y = 0.5 * (t.shoulder + t.chest) - 0.03, 0.24
        elbow = (x + 0.5 * long * math.cos(first), y + 0.5 * long * math.sin(first))
        end = (elbow[0] + 0.5 * long * math.cos(second), elbow[1] + 0.5 * long * math.sin(second))
        across = (math.sin(second), -math.cos(second))
        middle = 0.5 * (end_width + 0.19)
        outer, inner = ((end[0] + s * end_width * across[0], end[1] + s * end_width * across[1]) for s in (1.0, -1.0))
        arm = [(t.shoulder, 0.06), (elbow[0] + middle * across[0], elbow[1] + middle * across[1]), outer]
        arm += [inner, (elbow[0] - middle * across[0], elbow[1] - middle * across[1]), (t.chest - 0.02, 0.46)]
        pen.fill([(side * px, py) for px, py in [*arm, (t.shoulder - 0.12, 0.2)]])
        cuffs.append(((side * outer[0], outer[1]), (side * inner[0], inner[1])))
    return cuffs


def _print(pen: Pen, t: Torso) -> None:
    """Sometimes a patch, a disc or a band on the chest: an undershirt's decoration, the same for all plain tops."""
    kind = pen.between(0, 1)
    x, y, r = 0.0, pen.between(0.5, 0.7), pen.between(0.1, 0.2)
    if kind < 0.12:
        pen.dot((x, y), r, TRIM)
    elif kind < 0.24:
        pen.fill([(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)], TRIM, seam=False)
    elif kind < 0.36:
        pen.fill([(-t.chest, y - 0.1), (t.chest, y - 0.1), (t.chest, y + 0.1), (-t.chest, y + 0.1)], TRIM, seam=False)


def _plain_top(pen: Pen, sleeve: tuple[float, float], *, cuffed: bool) -> None:
    t = _torso(pen, length=(1.15, 1.5))
    cuffs = _sleeves(pen, t, sleeve)
    _body(pen, t)
    _print(pen, t)
    for cuff in cuffs:
        pen.line(list(cuff), TRIM if cuffed and pen.chance(0.4) else DARK, 0.03)
    low = 0.8 * t.neck_depth
    pen.line([(-t.neck, 0.01), (-0.6 * t.neck, low), (0, t.neck_depth), (0.6 * t.neck, low), (t.neck, 0.01)],
             TRIM if pen.chance(0.3) else DARK, 0.022)  # fmt: skip


def _t_shirt(pen: Pen) -> None:
    _plain_top(pen, (0.3, 0.5), cuffed=False)


def _longsleeve(pen: Pen) -> None:
    _plain_top(pen, (0.95, 1.25), cuffed=True)


def _shirt(pen: Pen) -> None:
    """A pointed collar and a row of buttons; one in four has short sleeves."""
    t = _torso(pen, length=(1.25, 1.6))
    short = pen.chance(0.25)
    cuffs = _sleeves(pen, t, (0.32, 0.5) if short else (0.95, 1.25))
    _body(pen, t, dip=pen.between(0.0, 0.14))
    if not short:
        for (ax, ay), (bx, by) in cuffs:
            pen.line([(ax, ay), (bx, by)], TRIM if pen.chance(0.3) else DARK, 0.03)
    half = 0.05
    for x in (-half, half):
        pen.line([(x, t.neck_depth), (x, t.length + 0.03)])
    tone = PALE if pen.chance(0.6) else TRIM
    for button in np.linspace(t.neck_depth + 0.08, t.length - 0.1, int(pen.between(5, 8))):
        pen.dot((0.0, float(button)), 0.026, tone)
    tall, wide = pen.between(0.2, 0.3), pen.between(0.16, 0.24)
    collar = TRIM if pen.chance(0.15) else CLOTH
    for side in (-1, 1):
        pen.fill([(side * 0.5 * t.neck, -0.1), (side * (t.neck + 0.03), 0.0), (side * (wide + 0.06), tall),
                  (side * 0.02, t.neck_depth + 0.02)], collar)  # fmt: skip
    if pen.chance(0.5):
        x, y = pen.between(0.12, 0.16), pen.between(0.42, 0.5)
        pen.line([(x, y), (x, y + 0.22), (x + 0.2, y + 0.22), (x + 0.2, y), (x, y)])


def _outwear(pen: Pen) -> None:
    """A coat with lapels, or a jacket with a zip and a hood or stand-up collar, quilted at times."""
    coat = pen.chance(0.45)
    t = _torso(pen, length=(1.6, 2.05) if coat else (1.15, 1.5), loose=0.08)
    hood = not coat and pen.chance(0.5)
    if hood:
        r = pen.between(0.26, 0.34)
        pen.fill([(-r, 0.1), (-0.95 * r, -0.2), (-0.5 * r, -0.36), (0.5 * r, -0.36), (0.95 * r, -0.2), (r, 0.1)])
        pen.fill([(-0.6 * r, 0.1), (-0.6 * r, -0.16), (0, -0.26), (0.6 * r, -0.16), (0.6 * r, 0.1)], DARK)
    cuffs = _sleeves(pen, t, (1.0, 1.25), width=0.145)
    _body(pen, t)
    for cuff in cuffs:
        pen.line(list(cuff), TRIM if pen.chance(0.4) else DARK, 0.05)
    if not coat and pen.chance(0.5):
        for y in np.arange(0.35, t.length - 0.05, pen.between(0.15, 0.22)):
            pen.line([(-0.97 * t.chest, float(y)), (0, float(y) + 0.03), (0.97 * t.chest, float(y))])
    if coat:
        depth, gap = pen.between(0.55, 0.8), pen.between(0.0, 0.16)
        pen.fill([(-t.neck, 0), (t.neck, 0), (gap, depth), (1.6 * gap, t.length), (-1.6 * gap, t.length),
                  (-gap, depth)], TRIM if pen.chance(0.6) else DARK)  # fmt: skip
        for side in (-1, 1):
            pen.fill([(side * t.neck, -0.06), (side * (t.neck + 0.14), 0.14), (side * (t.neck + 0.1), 0.26),
                      (side * (gap + 0.01), depth), (side * (t.neck - 0.08), 0.1)])  # fmt: skip
        pen.line([(gap, depth), (1.6 * gap, t.length)])
        for y in np.linspace(depth + 0.1, min(t.length - 0.4, depth + 0.6), 3):
            for x in (-gap - 0.1, gap + 0.1) if pen.chance(0.5) else (gap + 0.08,):
                pen.dot((x, float(y)), 0.035, DARK)
    else:
        if not hood:
            pen.fill([(-t.neck - 0.04, 0.1), (-t.neck, -0.14), (t.neck, -0.14), (t.neck + 0.04, 0.1), (0, 0.2)])
        pen.line([(0, 0.02 if hood else -0.1), (0, t.length)], PALE if pen.chance(0.5) else DARK, 0.035)
        pen.line([(-t.hem, t.length - 0.05), (t.hem, t.length - 0.05)], TRIM if pen.chance(0.3) else DARK, 0.03)
    low = 0.62 * t.length
    for side in (-1, 1):
        pen.line([(side * 0.2, low + 0.16), (side * 0.36, low)] if not coat or pen.chance(0.5)
                 else [(side * 0.2, low), (side * 0.42, low)], DARK, 0.03)  # fmt: skip


def _dress(pen: Pen) -> None:
    """A narrow top on straps, sleeveless or short-sleeved, and a skirt that starts at its waist."""
    t = Torso(neck=pen.between(0.14, 0.24), neck_depth=pen.between(0.12, 0.34), shoulder=pen.between(0.3, 0.4),
              chest=pen.between(0.3, 0.36), hem=0.0, length=0.0)  # fmt: skip
    waist_y, waist = pen.between(0.62, 0.85), pen.between(0.22, 0.3)
    hem, length = pen.between(0.38, 0.9), pen.between(1.55, 2.2)
    kind = pen.between(0, 1)
    if kind < 0.35:
        _sleeves(pen, t, (0.22, 0.42))
    top = 0.3
    if kind > 0.7:  # On straps.
        for side in (-1, 1):
            pen.line([(side * 0.8 * t.chest, top + 0.03), (side * 0.6 * t.chest, 0.0)], CLOTH, 0.028)
        upper = [(0.4 * t.chest, top), (0.9 * t.chest, top - 0.05), (t.chest, 0.42)]
        middle = (0.0, top + pen.between(0.0, 0.08))
    else:
        pen.fill([(-t.neck, 0.0), (0, -0.04), (t.neck, 0.0), (0, t.neck_depth)], DARK)
        upper = [(0.6 * t.neck, 0.8 * t.neck_depth), (t.neck, 0), (t.shoulder, 0.06), (t.chest, 0.42)]
        middle = (0.0, t.neck_depth)
    wave = pen.between(0.0, 0.08)
    right = [*upper, (waist, waist_y), (waist + 0.4 * (hem - waist) + 0.06, waist_y + 0.4 * (length - waist_y))]
    right += [(hem, length - 0.06), (0.6 * hem, length + wave), (0.25 * hem, length)]
    pen.fill([middle, *right, *[(-x, y) for x, y in reversed(right)]])
    if pen.chance(0.5):
        pen.line([(-waist, waist_y), (waist, waist_y)], TRIM, 0.05)
    else:
        pen.line([(-waist, waist_y), (waist, waist_y)])
    for x in np.linspace(-0.6, 0.6, int(pen.between(2, 6))):
        pen.line([(float(x) * waist, waist_y + 0.1), (float(x) * hem, length - 0.1)])


def _skirt(pen: Pen) -> None:
    """A waistband over one flaring piece, from mini to long, pleated at times."""
    waist, length = pen.between(0.28, 0.38), pen.between(0.6, 1.5)
    hem = waist + pen.between(0.06, 0.5)
    hip = waist + (hem - waist) * pen.between(0.3, 0.6)
    sag, wave = pen.between(0.02, 0.12), pen.between(0.0, 0.05)
    right = [(waist, 0.0), (hip, 0.35 * length), (hem, length - sag), (0.6 * hem, length + wave), (0.25 * hem, length)]
    pen.fill([(0.0, 0.03), *right, *[(-x, y) for x, y in reversed(right)]])
    for x in np.linspace(-0.85, 0.85, int(pen.between(2, 9))):
        pen.line([(float(x) * waist, 0.14), (float(x) * hip, 0.35 * length), (float(x) * hem, length - 0.03)])
    band = pen.between(0.08, 0.14)
    pen.fill([(-waist, 0.0), (0, 0.03), (waist, 0.0), (waist + 0.02, band), (0, band + 0.03), (-waist - 0.02, band)],
             TRIM if pen.chance(0.4) else CLOTH)  # fmt: skip


def _legs(pen: Pen, length: tuple[float, float], hem_half: tuple[float, float]) -> None:
    """A waistband, a fly, pockets and two legs."""
    waist, hip, crotch = pen.between(0.3, 0.38), pen.between(0.38, 0.46), pen.between(0.45, 0.6)
    long, half, splay = pen.between(*length), pen.between(*hem_half), pen.between(0.02, 0.2)
    for side in (-1, 1):
        middle = 0.5 * hip + splay * (long - crotch) + pen.between(-0.03, 0.03)
        foot = long + pen.between(-0.03, 0.03)
        leg = [(0.0, 0.0), (waist, 0.0), (hip, 0.6 * crotch), (middle + half, foot), (middle - half, foot),
               (0.02, crotch), (0.0, 0.8 * crotch)]  # fmt: skip
        pen.fill([(side * x, y) for x, y in leg])
        pen.line([(side * (middle - half), foot - 0.05), (side * (middle + half), foot - 0.05)])
        pen.line([(side * 0.6 * waist, 0.1), (side * (waist + 0.02), 0.28)])
    pen.line([(0.0, 0.08), (0.0, crotch)])
    pen.line([(0.07, 0.08), (0.07, 0.6 * crotch), (0.0, 0.75 * crotch)])
    pen.fill([(-waist, -0.02), (waist, -0.02), (waist + 0.01, 0.08), (-waist - 0.01, 0.08)],
             TRIM if pen.chance(0.4) else CLOTH)  # fmt: skip


def _pants(pen: Pen) -> None:
    _legs(pen, (1.6, 2.1), (0.12, 0.24))


def _shorts(pen: Pen) -> None:
    _legs(pen, (0.72, 1.05), (0.19, 0.29))


def _hat(pen: Pen) -> None:
    """A cap from the side, a hat with a brim all round, or a knitted cap."""
    kind, tall = pen.between(0, 1), pen.between(0.42, 0.62)
    dome = [(-0.5, 0.0), (-0.5, -0.5 * tall), (-0.34, -0.9 * tall), (0.0, -1.05 * tall), (0.34, -0.9 * tall)]
    dome += [(0.5, -0.5 * tall), (0.5, 0.0)]
    if kind < 0.4:
        reach, drop = pen.between(0.9, 1.1), pen.between(0.02, 0.16)
        pen.fill([*dome, (0.0, 0.06)])
        pen.line([(0.0, -1.04 * tall), (0.18, -0.5 * tall), (0.2, 0.03)])
        pen.line([(0.0, -1.04 * tall), (-0.2, -0.5 * tall), (-0.22, 0.03)])
        pen.fill([(0.1, -0.06), (0.5, -0.1), (reach, drop - 0.03), (reach, drop + 0.05), (0.5, 0.06), (0.1, 0.06)],
                 TRIM if pen.chance(0.4) else CLOTH)  # fmt: skip
        pen.dot((0.0, -1.05 * tall), 0.05, TRIM)
    elif kind < 0.72:
        wide, droop = pen.between(0.78, 1.05), pen.between(-0.06, 0.16)
        pen.fill([(-0.4, -0.06), (-wide, droop), (-0.9 * wide, droop + 0.07), (0.0, 0.2), (0.9 * wide, droop + 0.07),
                  (wide, droop), (0.4, -0.06)])  # fmt: skip
        dent = tall * pen.between(0.75, 1.05)
        pen.fill([(-0.46, 0.04), (-0.38, -tall), (0.0, -dent), (0.38, -tall), (0.46, 0.04), (0.0, 0.1)])
        if pen.chance(0.7):
            pen.fill([(-0.46, 0.04), (-0.44, -0.12), (0.0, -0.07), (0.44, -0.12), (0.46, 0.04), (0.0, 0.1)], TRIM)
    else:
        pen.fill([*dome, (0.0, 0.04)])
        if pen.chance(0.6):
            pen.dot((0.0, -1.12 * tall), pen.between(0.12, 0.18), TRIM)
        fold = pen.between(0.18, 0.3)
        pen.fill([(-0.53, -fold), (0.53, -fold), (0.54, 0.06), (-0.54, 0.06)], TRIM if pen.chance(0.4) else CLOTH)
        for x in np.linspace(-0.45, 0.45, 8):
            pen.line([(float(x), 0.05), (float(x), -fold)])


def _shoe(pen: Pen, kind: float, x: float, y: float, sizes: tuple[float, float, float], accent: int) -> None:
    shaft, toe, sole = sizes

    def at(points: list[Point]) -> list[Point]:
        return [(x + px, y + py) for px, py in points]

    if kind < 0.5:  # A trainer.
        pen.fill(at([(-0.7, 0.0), (-0.74, -0.44), (-0.6, -0.52), (-0.42, -0.4), (-0.2, -0.42), (-0.08, -0.56),
                     (0.06, -0.5), (0.34, -0.28), (0.66, -toe), (0.8, -0.06), (0.78, 0.0)]))  # fmt: skip
        pen.fill(at([(0.42, 0.0), (0.46, -0.14), (0.66, -toe), (0.8, -0.06), (0.78, 0.0)]), accent)
        for step in (0.0, 0.1, 0.2, 0.3):
            pen.line(at([(-0.02 + step, -0.46 + 0.7 * step), (-0.12 + step, -0.3 + 0.55 * step)]), PALE, 0.03)
        pen.line(at([(-0.5, -0.04), (-0.3, -0.26), (-0.02, -0.06)]), accent, 0.04)
        pen.fill(at([(-0.78, -0.04), (0.84, -0.04), (0.8, sole), (-0.76, sole)]), PALE)
    elif kind < 0.78:  # A boot.
        pen.fill(at([(-0.62, 0.0), (-0.6, -shaft), (0.02, -shaft), (0.02, -0.5), (0.36, -0.34), (0.64, -toe - 0.04),
                     (0.76, -0.04), (0.74, 0.0)]))  # fmt: skip
        pen.line(at([(-0.6, -shaft + 0.07), (0.02, -shaft + 0.07)]), accent, 0.05)
        pen.line(at([(-0.6, -0.42), (-0.3, -0.5), (0.02, -0.42)]))
        pen.fill(at([(-0.66, -0.03), (0.78, -0.03), (0.76, sole), (-0.2, sole), (-0.24, sole - 0.05),
                     (-0.3, sole + 0.06), (-0.66, sole + 0.06)]), DARK)  # fmt: skip
    else:  # A court shoe on its heel.
        heel = 0.3 + sole
        pen.fill(at([(-0.68, -heel), (-0.66, -heel - 0.3), (-0.52, -heel - 0.22), (-0.2, -0.3), (0.22, -0.18),
                     (0.5, -0.22), (0.8, -0.02), (0.76, 0.04), (0.3, 0.04), (-0.1, -0.12),
                     (-0.46, -heel + 0.04)]))  # fmt: skip
        pen.fill(at([(-0.68, -heel), (-0.46, -heel + 0.04), (-0.56, 0.05), (-0.64, 0.05)]), accent)


def _shoes(pen: Pen) -> None:
    """A trainer, boot or court shoe from the side; a pair in half of the pictures."""
    kind, sizes = pen.between(0, 1), (pen.between(0.75, 1.15), pen.between(0.16, 0.26), pen.between(0.06, 0.13))
    accent = TRIM if pen.chance(0.5) else CLOTH
    if pen.chance(0.5):
        _shoe(pen, kind, pen.between(-0.5, 0.5), -pen.between(0.3, 0.7), sizes, accent)
    _shoe(pen, kind, 0.0, 0.0, sizes, accent)


GARMENTS: dict[str, Callable[[Pen], None]] = {
    "dress": _dress, "hat": _hat, "longsleeve": _longsleeve, "outwear": _outwear, "pants": _pants, "shirt": _shirt,
    "shoes": _shoes, "shorts": _shorts, "skirt": _skirt, "t-shirt": _t_shirt,
}  # fmt: skip
