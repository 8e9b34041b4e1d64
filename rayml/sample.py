"""The embedded sample: garments of ten classes, drawn procedurally, so that demo and tests need no network.

A drawing is a handful of polygons and lines in the garment's own plane (x to the right, y down), bent a little,
turned, scaled and shifted into a photo with a background, a shadow, folds, light, noise and sometimes something in
front of it. Colours, patterns and backgrounds come from one distribution for all classes: only the form tells them
apart. Everything random comes from one generator seeded by the picture's seed and the class's name; NumPy keeps a
generator's numbers stable on every platform (NEP 19), and only the last bit of a sine may differ between them.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from rayml.clothing import CLASSES
from rayml.errors import RaymlError, UsageError
from rayml.garments import CLOTH, GARMENTS, NOTHING, Pen, Point, Shape
from rayml.new_folder import behind_links, drafted, is_new

SAMPLE_SEED = 1
SEEDS_PER_SPLIT = 2**20  # Pictures that a class can have in a split before its seeds reach the next split's.
SAMPLE_SEEDS_END = 2**40  # `write_sample` uses seeds below this; scripts/train_tiny.py uses only seeds from here on.
SPLITS = ("train", "validation")
JPEG_QUALITY = 90
OVERSAMPLING = 2  # Shapes are drawn twice as large and averaged down two by two: smooth edges.

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Pose:
    """How the garment's plane lies in the photo: pixel = centre + scale * turned plane point."""

    angle: float
    scale: float
    centre: Point


def _place(pen: Pen, shapes: list[Shape], side_px: int) -> tuple[list[Shape], Pose]:
    """Bend, mirror, turn, scale and shift the shapes into a photo of `side_px`; also the pose, for the pattern."""
    everything = np.vstack([shape.points for shape in shapes])
    low, high = everything.min(axis=0), everything.max(axis=0)
    bend, phase = pen.between(0.0, 0.05), pen.between(0.0, 6.0)
    flip = -1.0 if pen.chance(0.5) else 1.0
    angle, stretch = pen.between(-0.45, 0.45), pen.between(0.9, 1.1)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])

    plane = (everything - (low + high) / 2) * (2 / float((high - low).max()))
    plane = plane + bend * np.sin(3 * plane[:, ::-1] + phase)
    turned = plane * (flip * stretch, 1.0) @ turn
    low_turned, high_turned = turned.min(axis=0), turned.max(axis=0)
    spread = float((high_turned - low_turned).max())
    scale = pen.between(0.68, 0.98) * side_px / spread
    room = side_px - scale * (high_turned - low_turned)
    shift = np.array([pen.between(0.0, 1.0), pen.between(0.0, 1.0)]) * room - scale * low_turned
    parts = np.split(turned * scale + shift, np.cumsum([len(shape.points) for shape in shapes])[:-1])
    placed = [Shape(p, s.tone, s.width * 2 * scale) for p, s in zip(parts, shapes, strict=True)]
    return placed, Pose(angle, scale, (float(shift[0]), float(shift[1])))


def _materials(shapes: list[Shape], side_px: int) -> NDArray[np.uint8]:
    """The material of each pixel: uint8 (side_px, side_px)."""
    canvas = Image.new("L", (side_px, side_px), NOTHING)
    brush = ImageDraw.Draw(canvas)
    for shape in shapes:
        corners = shape.points.ravel().tolist()
        if shape.width:
            brush.line(corners, fill=shape.tone, width=max(1, round(shape.width)), joint="curve")
        else:
            brush.polygon(corners, fill=shape.tone)
    return np.asarray(canvas)


def _colour(pen: Pen) -> Float:
    """An RGB colour in 0..255, one in three nearly grey; the same spread for cloth and background."""
    saturation = pen.between(0.0, 0.12) if pen.chance(0.33) else pen.between(0.25, 0.9)
    rgb = colorsys.hsv_to_rgb(pen.between(0, 1), saturation, pen.between(0.18, 0.97))
    return np.array(rgb, np.float32) * 255


def _colour_unlike(pen: Pen, other: Float, distance: float) -> Float:
    """A colour that differs from `other` by at least `distance` in one channel; any other leaves one in reach."""
    while True:
        colour = _colour(pen)
        if float(np.abs(colour - other).max()) >= distance:
            return colour


def _field(pen: Pen, cells: int, side_px: int) -> Float:
    """A smooth random field of about 0..1 with `cells` bumps a side: float32 (side_px, side_px)."""
    coarse = Image.fromarray(pen.rng.random((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC))


def _weave(pen: Pen, pose: Pose, side_px: int) -> Float | None:
    """How much of the second colour the cloth has at each pixel: 0..1, (side_px, side_px); None in half: plain."""
    kind, period, share = pen.between(0, 1), pen.between(0.12, 0.3), pen.between(0.25, 0.6)
    if kind < 0.5:
        return None
    y, x = np.mgrid[0:side_px, 0:side_px].astype(np.float32)
    x, y = (x - pose.centre[0]) / pose.scale, (y - pose.centre[1]) / pose.scale
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    u, v = x * cos - y * sin, x * sin + y * cos
    across, along = (u / period) % 1 < share, (v / period) % 1 < share
    if kind < 0.6:
        second = across
    elif kind < 0.7:
        second = along
    elif kind < 0.78:
        second = 0.5 * across + 0.5 * along
    elif kind < 0.86:
        second = ((u / period) % 1 - 0.5) ** 2 + ((v / period) % 1 - 0.5) ** 2 < 0.06
    elif kind < 0.93:
        second = np.clip(0.5 + 0.5 * v, 0, 1)
    else:
        second = _field(pen, 12, side_px) > 0.55
    return np.asarray(second, np.float32)


def _background(pen: Pen, base: Float, side_px: int) -> Float:
    """A floor, a wall or a sheet with things lying about: float32 (side_px, side_px, 3) in 0..255."""
    canvas = Image.new("RGB", (side_px, side_px), tuple(int(c) for c in base))
    brush, kind = ImageDraw.Draw(canvas), pen.between(0, 1)

    def near(spread: float) -> tuple[int, ...]:
        return tuple(int(np.clip(c + pen.between(-spread, spread), 0, 255)) for c in base)

    if kind < 0.25:  # Boards.
        edge, board = 0.0, pen.between(0.12, 0.3) * side_px
        while edge < side_px:
            brush.rectangle([0, edge, side_px, edge + board], fill=near(14), outline=near(30))
            edge += board
        if pen.chance(0.5):
            canvas = canvas.transpose(Image.Transpose.ROTATE_90)
    elif kind < 0.45:  # A wall and a floor.
        brush.rectangle([0, int(pen.between(0.55, 0.9) * side_px), side_px, side_px], fill=near(45))
    brush = ImageDraw.Draw(canvas)
    for _ in range(int(pen.between(0, 5)) if pen.chance(0.6) else 0):
        x, y, r = pen.between(0, side_px), pen.between(0, side_px), pen.between(0.04, 0.2) * side_px
        if pen.chance(0.3):
            brush.line([(x - 3 * r, y - r), (x + 3 * r, y + r)], fill=near(80), width=max(1, int(0.2 * r)))
        elif pen.chance(0.5):
            brush.ellipse([x - r, y - 0.6 * r, x + r, y + 0.6 * r], fill=near(60))
        else:
            brush.polygon([(x + pen.between(-r, r), y + pen.between(-r, r)) for _ in range(4)], fill=near(60))
    uneven = _field(pen, int(pen.between(3, 14)), side_px)[..., None]
    return np.asarray(np.asarray(canvas, np.float32) + (uneven - 0.5) * 30, np.float32)


def _blur(mask: Float, radius: float) -> Float:
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(np.asarray(image, np.float32) / 255, np.float32)


def _before(pen: Pen, photo: Float, cover: Float) -> None:
    """Lay a band of another colour over a corner of the photo, in place: something that hides a part."""
    side_px = len(photo)
    y, x = np.mgrid[0:side_px, 0:side_px].astype(np.float32) / side_px - 0.5
    angle = pen.between(0, 2 * math.pi)
    distance = x * math.cos(angle) + y * math.sin(angle)
    start = pen.between(0.3, 0.46)
    photo[(distance > start) & (distance < start + pen.between(0.05, 0.3))] = cover


def draw(label: str, seed: int, size_px: int = 96) -> Image.Image:
    """Draw one garment as a photo.

    Arguments:
        label: one of `CLASSES`.
        seed: 0 or more; the same label, seed and size give the same picture.
        size_px: width and height in pixels, 16 or more.

    Returns:
        An RGB picture of `size_px` squared.

    Raises:
        UsageError: one of the arguments is out of its range.
    """
    if label not in GARMENTS:
        raise UsageError(f"label must be one of {', '.join(CLASSES)}. Received: {label!r}")
    if seed < 0 or size_px < 16:
        raise UsageError(f"seed must be at least 0 and size_px at least 16. Received: {seed} and {size_px}")
    pen = Pen(np.random.default_rng(np.random.SeedSequence([seed, *label.encode()])))
    side_px = size_px * OVERSAMPLING
    GARMENTS[label](pen)
    shapes, pose = _place(pen, pen.shapes, side_px)
    materials = _materials(shapes, side_px)

    cloth = _colour(pen)
    trim = _colour_unlike(pen, cloth, 70)
    dark = cloth * 0.55 if cloth.max() > 80 else cloth + 60
    pale = np.array([235, 232, 225], np.float32) if cloth.mean() < 190 else cloth * 0.7
    surface = np.stack([cloth, cloth, dark, trim, pale])[materials]
    second = trim if pen.chance(0.5) else np.clip(cloth * pen.between(0.6, 1.4), 0, 255)
    woven = _weave(pen, pose, side_px)
    if woven is not None:
        surface += (woven * (materials == CLOTH))[..., None] * (second - cloth)

    mask = (materials != NOTHING).astype(np.float32)
    volume = _blur(mask, 0.03 * side_px)  # Darker towards the edge, as a body of cloth is.
    folds = _field(pen, int(pen.between(4, 9)), side_px)
    surface *= (0.62 + 0.26 * volume + pen.between(0.1, 0.4) * (folds - 0.3))[..., None]

    photo = _background(pen, _colour_unlike(pen, cloth, 60), side_px)
    offset = (int(pen.between(-0.04, 0.04) * side_px), int(pen.between(0.0, 0.04) * side_px))
    shadow = np.roll(_blur(mask, pen.between(0.01, 0.04) * side_px), offset, axis=(1, 0))
    photo *= (1 - pen.between(0.2, 0.6) * shadow)[..., None]
    photo += mask[..., None] * (surface - photo)
    if pen.chance(0.2):
        _before(pen, photo, _colour(pen))

    small = photo[0::2, 0::2] + photo[0::2, 1::2] + photo[1::2, 0::2] + photo[1::2, 1::2]
    ramp = np.linspace(-0.5, 0.5, size_px, dtype=np.float32)
    light = 1 + pen.between(-0.35, 0.35) * ramp[None, :] + pen.between(-0.35, 0.35) * ramp[:, None]
    tint = np.array([pen.between(0.9, 1.1) for _ in range(3)], np.float32) * pen.between(0.8, 1.2)
    small *= light[..., None] * (tint / OVERSAMPLING**2)
    grain = pen.between(2, 14) * (pen.rng.random(small.shape) + pen.rng.random(small.shape) - 1)
    return Image.fromarray(np.clip(small + grain, 0, 255).round().astype(np.uint8))


def sample_seed(seed: int, split: str, index: int) -> int:
    """The drawing seed of the `index`th picture of a split of the sample `seed`; below `SAMPLE_SEEDS_END`."""
    return (seed * len(SPLITS) + SPLITS.index(split)) * SEEDS_PER_SPLIT + index


def _write_class(folder: Path, label: str, split: str, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        picture = draw(label, sample_seed(seed, split, index))
        picture.save(folder / f"{label}-{index + 1:04d}.jpg", quality=JPEG_QUALITY)


def write_sample(
    folder: Path, train_per_class: int = 60, validation_per_class: int = 20, seed: int = SAMPLE_SEED
) -> int:
    """Write the sample as `train/<class>/<class>-0001.jpg` and on, and the same under `validation`.

    It is written into a hidden folder and moved at the end, so that an interruption leaves no half of a sample under
    its name.

    Arguments:
        folder: a folder that does not exist yet, or an empty one.
        train_per_class: pictures for each class in `train`, 1 to 2**20.
        validation_per_class: pictures for each class in `validation`, 1 to 2**20.
        seed: which sample, 0 to 2**19 - 1.

    Returns:
        The number of pictures written.

    Raises:
        UsageError: `folder` holds something already or is no folder, or a number is out of its range.
        RaymlError: it cannot be written.
    """
    counts = dict(zip(SPLITS, (train_per_class, validation_per_class), strict=True))
    if not all(1 <= count <= SEEDS_PER_SPLIT for count in counts.values()):
        raise UsageError(f"pictures for each class must be 1 to {SEEDS_PER_SPLIT}. Received: {counts}")
    seeds = SAMPLE_SEEDS_END // (len(SPLITS) * SEEDS_PER_SPLIT)
    if not 0 <= seed < seeds:
        raise UsageError(f"seed must be 0 to {seeds - 1}. Received: {seed}")
    folder = behind_links(folder)
    try:
        if not is_new(folder):
            raise UsageError(f"expected a new or an empty folder. Received: {folder}", "Name another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with drafted(folder) as root:
            for split, count in counts.items():
                for label in CLASSES:
                    _write_class(root / split / label, label, split, count, seed)
    except OSError as error:
        raise RaymlError(
            f"the sample cannot be written to {folder} ({error.strerror})", "Name a folder that can be written to."
        ) from None
    return len(CLASSES) * sum(counts.values())
