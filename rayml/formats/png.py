"""PNG files: W3C, "Portable Network Graphics (PNG) Specification (Third Edition)"."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from rayml.formats.common import MAX_PARTS, StrippedImage, too_large, unreadable
from rayml.formats.exif import exif_orientation

MAX_METADATA_BYTES = 8 * 2**20
"""What compressed PNG texts and colour profiles may inflate to together; large printer profiles have 3 MB."""


def size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from IHDR."""
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
        raise unreadable("a PNG file without a whole header")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kind, start and end of each chunk, up to and with IEND."""
    position = 8
    for _ in range(MAX_PARTS):
        if position + 12 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        start, position = position, position + 12 + length
        if position > len(data):
            break
        yield kind, start, position
        if kind == b"IEND":
            return
    else:
        raise too_large(f"at most {MAX_PARTS} chunks", "a PNG file of more")
    raise unreadable("a PNG file that is cut short")


def strip(data: bytes, max_frames: int) -> StrippedImage:
    """Leave IHDR, PLTE, tRNS, IDAT and IEND, their checksums checked; see `rayml.formats.strip`."""
    view = memoryview(data)
    pieces = [view[:8]]
    seen: set[bytes] = set()
    orientation = 1
    inflated = 0
    depth, colour = data[24], data[25]
    for kind, start, end in _chunks(data):
        once = kind in (b"IHDR", b"PLTE", b"tRNS")
        if (once or kind in (b"IDAT", b"IEND")) and zlib.crc32(view[start + 4 : end - 4]) != _u32(data, end - 4):
            raise unreadable("a PNG file with damaged data")
        if once and kind in seen:
            raise unreadable("a PNG file with a repeated part")
        seen.add(kind)
        if kind == b"tRNS" and b"IDAT" not in seen:
            pieces.append(memoryview(_transparency(data[start:end], depth, colour)))
        elif kind in (b"IHDR", b"IDAT", b"IEND") or (kind == b"PLTE" and b"IDAT" not in seen):
            pieces.append(view[start:end])
        elif kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : end - 4])
        elif kind == b"acTL" and end - start >= 20 and _u32(data, start + 8) > max_frames:
            raise too_large(f"at most {max_frames} frames", f"{_u32(data, start + 8)}")
        elif kind in (b"zTXt", b"iTXt", b"iCCP"):
            inflated += _inflated_size(_compressed_part(kind, data[start + 8 : end - 4]), MAX_METADATA_BYTES - inflated)
            if inflated > MAX_METADATA_BYTES:
                raise too_large(f"texts and profiles of at most {MAX_METADATA_BYTES} bytes", "a PNG file with more")
    if b"IDAT" not in seen or (colour == 3 and b"PLTE" not in seen):
        raise unreadable("a PNG file without a whole picture")
    return StrippedImage(b"".join(pieces), orientation)


def _u32(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "big")


def _transparency(chunk: bytes, depth: int, colour: int) -> bytes:
    """The tRNS chunk in the samples that Pillow hands out; b"" where these no longer tell the transparent colour.

    Pillow turns grey of 2 and 4 bits into 8 but not the transparent grey, and drops the low byte of 16 bits.
    """
    if depth == 16 or colour not in (0, 2, 3):
        return b""
    body = chunk[8:-4]
    if colour == 3:
        return chunk if body else b""
    if len(body) != (2 if colour == 0 else 6):
        return b""
    if colour == 0 and depth in (2, 4):
        grey = (int.from_bytes(body, "big") & ((1 << depth) - 1)) * (255 // ((1 << depth) - 1))
        part = b"tRNS" + grey.to_bytes(2, "big")
        return b"\0\0\0\2" + part + zlib.crc32(part).to_bytes(4, "big")
    return chunk


def _compressed_part(kind: bytes, body: bytes) -> bytes:
    rest = body.partition(b"\0")[2]
    if kind != b"iTXt":  # zTXt and iCCP: name, NUL, method, data
        return rest[1:]
    if rest[:1] != b"\1":  # iTXt: name, NUL, whether compressed, method, language, NUL, translated name, NUL, data
        return b""
    return rest[2:].partition(b"\0")[2].partition(b"\0")[2]


def _inflated_size(compressed: bytes, limit: int) -> int:
    """The size of what is compressed, in small pieces that are thrown away; counting stops beyond `limit`."""
    decoder = zlib.decompressobj()
    size = 0
    try:
        while compressed and not decoder.eof and size <= limit:
            size += len(decoder.decompress(compressed, 65_536))
            compressed = decoder.unconsumed_tail
    except zlib.error:  # Broken metadata is ignored.
        pass
    return size
