"""JPEG files: ITU-T T.81, annex B."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from rayml.formats.common import MAX_PARTS, StrippedImage, too_large, unreadable
from rayml.formats.exif import exif_orientation

MAX_SCANS = 100
"""An ordinary progressive JPEG has about ten scans; each costs a pass over the whole picture and need not hold data."""

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # Neither stuffing (00), fill (ff) nor restart (d0 to d7).
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
# Sequential and progressive, Huffman's or arithmetic coding, of 8 bits: what photos are. Of the others decoders do not
# agree what they can do, and libjpeg-turbo writes a lossless one at its whole size where a fraction was asked for.
_PHOTOS, _PHOTOS_BITS = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA}), 8
_START, _END, _SCAN, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
_METADATA = frozenset(range(0xE0, 0xF0)) | {0xFE}


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker, start and end of each segment up to the end of the first picture; coded data lies between them."""
    position = 2
    for _ in range(MAX_PARTS):
        match = _MARKER.search(data, position)
        if match is None:
            break
        start, position = match.span()
        marker = data[start + 1]
        if marker == _END:
            yield marker, start, position
            return
        if marker in (_START, _TEM) or 0x01 < marker < 0xC0:
            raise unreadable("a JPEG file with an unknown part")
        length = int.from_bytes(data[position : position + 2], "big")
        position += length
        if length < 2 or position > len(data):
            break
        yield marker, start, position
    else:
        raise too_large(f"at most {MAX_PARTS} segments", "a JPEG file of more")
    raise unreadable("a JPEG file that is cut short")


def frame(data: bytes) -> tuple[int, int, int]:
    """Width and height in pixels and the number of components, from the frame header.

    Raises:
        InputError: `unreadable_image` (400) if there is none, or one of a kind that no photo has.
    """
    for marker, start, end in _segments(data):
        if marker in _FRAMES and end - start >= 10:
            bits, height, width, components = struct.unpack_from(">BHHB", data, start + 4)
            if marker not in _PHOTOS or bits != _PHOTOS_BITS:
                raise unreadable("a JPEG file of another kind than photos are: lossless, hierarchical or not of 8 bits")
            return width, height, components
        if marker in (_SCAN, _END):
            break
    raise unreadable("a JPEG file without a picture")


def is_one_pass(data: bytes) -> bool:
    """Whether a decoder goes through the file once, row by row, and need not hold the whole picture's coefficients.

    So it is with a sequential frame (SOF0, SOF1) whose first scan has all its components: an ordinary photo.
    """
    components = 0
    for marker, start, end in _segments(data):
        if marker in (0xC0, 0xC1) and end - start >= 10:
            components = data[start + 9]
        elif marker in _FRAMES:
            return False
        elif marker == _SCAN:
            return end - start > 4 and data[start + 4] == components
        elif marker == _END:
            break
    return False


def strip(data: bytes) -> StrippedImage:
    """Leave tables, frame and scans, and what says how the colours are meant; see `rayml.formats.strip`."""
    view = memoryview(data)
    pieces = [view[:2]]
    frames = scans = scans_start = 0
    exif: bytes | None = None
    for marker, start, end in _segments(data):
        body = data[start + 4 : start + 18]
        if marker == _SCAN:
            scans += 1
            scans_start = scans_start or start
            if scans > MAX_SCANS:
                raise too_large(f"at most {MAX_SCANS} scans", "a JPEG file of more")
        elif marker == _END and scans:
            pieces.append(view[scans_start:end])
        elif scans == 0:
            frames += marker in _FRAMES
            if marker == _EXIF and exif is None and body.startswith(b"Exif\0\0"):
                exif = data[start + 4 : end]
            # These two say what the colours mean; too short, the decoders do not take them.
            jfif = marker == _JFIF and body.startswith(b"JFIF\0") and end - start >= 18
            adobe = marker == _ADOBE and body.startswith(b"Adobe") and end - start >= 16
            if marker not in _METADATA or jfif or adobe:
                pieces.append(view[start:end])
    if frames != 1 or scans == 0:
        raise unreadable("a JPEG file without exactly one picture")
    return StrippedImage(b"".join(pieces), exif_orientation(exif or b""))
