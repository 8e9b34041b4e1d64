"""Each file of its own: whether it is a whole picture, and what about it a person should know.

`header_findings` reads no further than a picture's header; `look` decodes it with the one preprocessing and keeps what
`rayml.check.twins` compares.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rayml.check.findings import Finding
from rayml.cores import usable_cores
from rayml.errors import DataError, InputError
from rayml.folders import sha256_of
from rayml.formats import ImageHeader, strip
from rayml.images import DEFAULT_LIMITS, check_header, decode_bytes, load_pixels
from rayml.pool import few_at_a_time
from rayml.progress import Advance

TINY_SIDE_PX = 64  # Every backbone looks at more than that: what it sees of the picture is interpolated.
HUGE_PIXELS = 20_000_000  # Decoding it takes as long as decoding hundreds of ordinary photos, each time.
EXTREME_ASPECT = 3.0  # The square that the backbone sees does not keep the aspect: such a picture is squashed.
BLANK_RANGE = 8  # Grey levels between a picture's darkest and lightest pixel.
LOOK_PX = 64  # The side at which pictures are compared; JPEG decodes to little more than that.
MEAN_PX = 8  # The side of the tiny picture that confirms a perceptual hash.

_HEADER_BYTES = (
    2**18
)  # EXIF, its thumbnail and a colour profile fit in; a picture without a header by then is read whole.
_HEAVY_BYTES = 64 * 2**20  # Pictures that take more to decode are decoded one at a time.
_SUFFIXES = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",)}
_heavy = threading.Lock()


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a file gave.

    Arguments:
        path: relative to the checked folder.
        sha256: of its bytes; "" where they cannot be read.
        findings: about this file alone.
        hash: 64 bits, perceptual; None where the picture cannot be decoded or shows nothing.
        means: uint8 (192,), the picture at 8 x 8; None as `hash`.
        decoded: whether the picture could be decoded.
    """

    path: str
    sha256: str
    findings: tuple[Finding, ...]
    hash: np.uint64 | None = None
    means: NDArray[np.uint8] | None = None
    decoded: bool = False


def look_at_all(root: Path, paths: Sequence[str], advance: Advance) -> Iterator[Look]:
    """A look at each of many files, in their order, several at a time.

    Arguments:
        root: the checked folder.
        paths: relative to it.
        advance: told of each.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:
        for seen in few_at_a_time(pool, lambda path: look(root, path), paths):
            advance()
            yield seen


def look(root: Path, path: str) -> Look:
    """Read, check and decode one file."""
    full = root / path
    try:
        if full.stat().st_size > DEFAULT_LIMITS.max_bytes:  # Never read whole.
            detail = f"{full.stat().st_size} bytes; at most {DEFAULT_LIMITS.max_bytes} are read"
            return Look(path, sha256_of(full), (Finding("too_large", (path,), detail),))
        data = full.read_bytes()
    except (OSError, DataError) as error:
        reason = error.strerror if isinstance(error, OSError) else error.message
        return Look(path, "", (Finding("unreadable", (path,), f"{reason}"),))
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        header = check_header(data)
        if decode_bytes(data, LOOK_PX) > _HEAVY_BYTES:
            with _heavy:
                pixels = load_pixels(data, LOOK_PX)
        else:
            pixels = load_pixels(data, LOOK_PX)
    except InputError as error:
        return Look(path, sha256, (_refused(path, error),))
    findings = [*_about_header(path, header), *_about_file(path, data, header)]
    if int(pixels.max()) - int(pixels.min()) < BLANK_RANGE:
        findings.append(Finding("blank", (path,), "nothing to be seen: one colour"))
        return Look(path, sha256, tuple(findings), decoded=True)
    return Look(path, sha256, tuple(findings), *_fingerprint(pixels), decoded=True)


def header_findings(root: Path, path: str) -> list[Finding]:
    """What a file's header says, nothing decoded: unreadable, too large, tiny, huge, squashed, wrongly named."""
    full = root / path
    try:
        with full.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > DEFAULT_LIMITS.max_bytes:
                return [Finding("too_large", (path,), f"{size} bytes; at most {DEFAULT_LIMITS.max_bytes} are read")]
            data = file.read(_HEADER_BYTES)
            try:
                return _about_header(path, check_header(data))
            except InputError:
                return _about_header(path, check_header(data + file.read()))
    except OSError as error:
        return [Finding("unreadable", (path,), f"{error.strerror}")]
    except InputError as error:
        return [_refused(path, error)]


def _refused(path: str, error: InputError) -> Finding:
    reason = error.message.rpartition("Received: ")[2]
    if "cut short" in reason:
        return Finding("truncated", (path,), reason)
    kinds = {413: "too_large", 415: "unsupported_format"}
    return Finding(kinds.get(error.status, "unreadable"), (path,), reason)


def _about_header(path: str, header: ImageHeader) -> list[Finding]:
    findings = []
    size = f"{header.width} x {header.height} pixels"
    small, large = sorted((header.width, header.height))
    if small < TINY_SIDE_PX:
        findings.append(Finding("tiny", (path,), f"{size}: less than {TINY_SIDE_PX} on a side"))
    if header.width * header.height > HUGE_PIXELS:
        findings.append(Finding("huge", (path,), f"{size}: slow to decode; a tenth of it would do"))
    if large > EXTREME_ASPECT * small:
        findings.append(Finding("extreme_aspect", (path,), f"{size}: squashed into a square"))
    if Path(path).suffix.lower() not in _SUFFIXES[header.format]:
        findings.append(Finding("wrong_extension", (path,), f"holds {header.format}; it is read as what it holds"))
    return findings


def _about_file(path: str, data: bytes, header: ImageHeader) -> Iterator[Finding]:
    """What the metadata of a sound picture says."""
    stripped = strip(data, header, DEFAULT_LIMITS.max_frames)
    if stripped.orientation != 1:
        detail = f"orientation {stripped.orientation}; it is turned upright when read"
        yield Finding("rotated_by_exif", (path,), detail)
    if header.format == "JPEG":
        with Image.open(io.BytesIO(stripped.stream), formats=("JPEG",)) as image:  # Reads the header alone.
            if image.mode == "CMYK":
                yield Finding("cmyk", (path,), "CMYK, meant for print; its colours are converted without its profile")


def _fingerprint(pixels: NDArray[np.uint8]) -> tuple[np.uint64, NDArray[np.uint8]]:
    """Perceptual hash and means of uint8 (LOOK_PX, LOOK_PX, 3)."""
    import imagehash

    image = Image.fromarray(pixels)
    bits = np.asarray(imagehash.phash(image).hash, np.bool_)
    means = np.asarray(image.resize((MEAN_PX, MEAN_PX), Image.Resampling.BOX)).reshape(-1)
    return np.packbits(bits).view(np.uint64)[0], means
