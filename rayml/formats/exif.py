"""EXIF (CIPA DC-008), of which only the orientation counts: tag 0x0112 of the first directory."""

from __future__ import annotations

import struct


def exif_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in an EXIF block with or without its `Exif` prefix; 1 if absent or broken."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for index in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * index)
            if tag == 0x0112 and kind == 3 and count == 1:  # kind 3: SHORT
                return value if 1 <= value <= 8 else 1
    except struct.error:  # An offset beyond the block.
        return 1
    return 1
