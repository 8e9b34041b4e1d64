"""Small pictures for the page, square as the classifier saw them, kept in RUN so that a moved run still shows them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from rayml.errors import InputError
from rayml.images import load_pixels
from rayml.report.facts import ChosenPhoto, least_sure, worst_mistakes
from rayml.report.run import Run

FOLDER = "pictures"
COUNT = 12  # of each kind: two rows on a wide screen, and few enough for a page under 5 MB with the largest of them
MAX_SIDE_PX = 192
_MAX_BYTES = 256 * 1024  # a JPEG of 192 x 192 pixels has at most about 60 kB
_QUALITY = 82


def shown_photos(run: Run) -> tuple[list[ChosenPhoto], list[ChosenPhoto]]:
    """The worst mistakes and the least sure answers; both empty before there is a winner."""
    if run.predictions is None or run.bundle is None:
        return [], []
    temperature = run.bundle.temperature
    return worst_mistakes(run.predictions, temperature, COUNT), least_sure(run.predictions, temperature, COUNT)


def find_pictures(run: Run, data: Path | None) -> dict[str, bytes]:
    """sha256 -> JPEG of each shown photo that can be found: in DATA, if the very bytes are there, else in RUN."""
    pictures = {}
    for photo in _all_shown(run):
        found = _from_data(data / photo.path, photo.sha256, run) if data else None
        if found is None:
            found = _from_run(run.folder / FOLDER / f"{photo.sha256}.jpg")
        if found is not None:
            pictures[photo.sha256] = found
    return pictures


def keep_pictures(run: Run, pictures: dict[str, bytes]) -> None:
    """Write them to RUN/pictures."""
    (run.folder / FOLDER).mkdir(exist_ok=True)
    for digest, data in pictures.items():
        (run.folder / FOLDER / f"{digest}.jpg").write_bytes(data)


def _all_shown(run: Run) -> Iterable[ChosenPhoto]:
    mistakes, unsure = shown_photos(run)
    return {photo.sha256: photo for photo in (*mistakes, *unsure)}.values()


def _from_data(path: Path, digest: str, run: Run) -> bytes | None:
    assert run.bundle is not None
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            return None
        image = Image.fromarray(load_pixels(data, run.bundle.image_size_px))
    except (OSError, ValueError, InputError):
        return None
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _from_run(path: Path) -> bytes | None:
    """A kept picture, if it is one: its bytes go into the page as they are."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        load_pixels(data, 1)
    except (OSError, InputError):
        return None
    return data if len(data) <= _MAX_BYTES and data.startswith(b"\xff\xd8") else None
