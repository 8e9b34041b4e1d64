"""What a JPEG, PNG or WebP file says before any pixel is decoded, read from its bytes alone.

`read_header` tells format and size, so that limits hold before memory is taken, and `is_one_pass` whether a JPEG can
do with little of it. `strip` leaves only what makes pixels, so that no comment, profile, thumbnail, later frame or
appended file ever reaches the decoder, and refuses files that are cut short. Used by `rayml.images` only.
"""

from __future__ import annotations

from rayml.errors import InputError
from rayml.formats import jpeg, png, webp
from rayml.formats.common import ImageHeader, StrippedImage, too_large, unreadable
from rayml.formats.jpeg import is_one_pass

__all__ = ["ImageHeader", "StrippedImage", "is_one_pass", "read_header", "strip", "too_large", "unreadable"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_SHORTEST_TELLING = 12  # RIFF, four bytes of length, WEBP: with fewer bytes nobody can say what a file is.
_FORMATS_HINT = "Send the picture as JPEG, PNG or WebP."

_OTHER_FORMATS = (
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"BM", "BMP"),
    (b"\0\0\1\0", "ICO"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"8BPS", "PSD"),
    (b"SIMPLE  =", "FITS"),
    (b"PK\3\4", "ZIP"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML"),
    (b"<!DOCTYPE", "HTML"),
)
_HEIF_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC"}


def read_header(data: bytes) -> ImageHeader:
    """Read format and size from the first bytes of a file.

    Raises:
        InputError: `empty_image` or `unreadable_image` (400), `unsupported_image` (415).
    """
    if not data:
        raise InputError("expected a picture. Received: no bytes", status=400, code="empty_image", hint=_FORMATS_HINT)
    if data.startswith(_JPEG_SIGNATURE):
        header = ImageHeader("JPEG", *jpeg.frame(data))
    elif data.startswith(_PNG_SIGNATURE):
        header = ImageHeader("PNG", *png.size(data))
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = ImageHeader("WEBP", *webp.size(data))
    elif len(data) < _SHORTEST_TELLING:
        raise unreadable(f"{len(data)} bytes, too few for a picture")
    else:
        raise InputError(
            f"expected a JPEG, PNG or WebP picture. Received: {_other_format(data)}",
            status=415,
            code="unsupported_image",
            hint=_FORMATS_HINT,
        )
    if header.width < 1 or header.height < 1:
        raise unreadable(f"a {header.format} file of {header.width} x {header.height} pixels")
    return header


def strip(data: bytes, header: ImageHeader, max_frames: int) -> StrippedImage:
    """Leave of a file only what makes the pixels of its first picture, and check that this is all there.

    Raises:
        InputError: `unreadable_image` (400) if the file is cut short or its structure broken; `image_too_large` (413)
            if it has more than `max_frames` frames or more parts than any encoder writes.
    """
    if header.format == "JPEG":
        return jpeg.strip(data)
    if header.format == "PNG":
        return png.strip(data, max_frames)
    return webp.strip(data, max_frames)


def _other_format(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return _HEIF_BRANDS[data[8:12]]
    start = data.lstrip()[:16]
    return next((name for magic, name in _OTHER_FORMATS if start.startswith(magic)), "another kind of file")
