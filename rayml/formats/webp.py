"""WebP files: RFC 9649."""

from __future__ import annotations

import struct

from rayml.formats.common import MAX_PARTS, StrippedImage, too_large, unreadable
from rayml.formats.exif import exif_orientation


def size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas in pixels, from the first chunk."""
    kind = data[12:16]
    if len(data) >= 30 and kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if len(data) >= 30 and kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if len(data) >= 25 and kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise unreadable("a WebP file without a whole header")


def strip(data: bytes, max_frames: int) -> StrippedImage:
    """Cut off what follows the picture; the other parts are left in, since libwebp does not look into them."""
    whole = 8 + int.from_bytes(data[4:8], "little")
    if whole > len(data):
        raise unreadable("a WebP file that is cut short")
    orientation = 1
    frames = 0
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > whole:
            break
        kind = data[position : position + 4]
        start = position + 8
        end = start + int.from_bytes(data[position + 4 : start], "little")
        if end > whole:
            raise unreadable("a WebP file that is cut short")
        frames += kind == b"ANMF"
        if kind == b"EXIF":
            orientation = exif_orientation(data[start:end])
        if frames > max_frames:
            raise too_large(f"at most {max_frames} frames", "more")
        position = end + (end - start) % 2
    else:
        raise too_large(f"at most {MAX_PARTS} chunks", "a WebP file of more")
    return StrippedImage(data[:whole], orientation)
