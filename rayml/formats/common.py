"""What the formats share: what a header tells, what is left of a file, and the two errors."""

from __future__ import annotations

from dataclasses import dataclass

from rayml.errors import InputError

MAX_PARTS = 65_536
"""Chunks or segments of a file; 20 MiB of PNG in the usual pieces of 8 KiB has 2,560. Bounds the time of a walk."""


_PEAK_BYTES_PER_PIXEL = {"JPEG": 9, "PNG": 9, "WEBP": 17}
"""Measured, rounded up. JPEG: all coefficients of a progressive CMYK file; others take far less. PNG: with alpha, two
copies. WebP: two canvases of libwebp's animation decoder, two copies of Pillow's."""


@dataclass(frozen=True)
class ImageHeader:
    """Format and stored size of a picture, before EXIF turns it.

    Arguments:
        format: "JPEG", "PNG" or "WEBP".
        width: in pixels, at least 1.
        height: in pixels, at least 1.
        components: of a JPEG's frame: 1 for grey, 3 for colours, 4 for inks; 0 for other formats.
    """

    format: str
    width: int
    height: int
    components: int = 0

    @property
    def peak_bytes(self) -> int:
        """The most memory that decoding takes beside copies of the file; see `rayml.images.decode_bytes`."""
        return self.width * self.height * _PEAK_BYTES_PER_PIXEL[self.format]


@dataclass(frozen=True)
class StrippedImage:
    """A picture without what does not make pixels.

    Arguments:
        stream: a whole file of the same format.
        orientation: EXIF's, 1 to 8; 1 where EXIF is absent or broken.
    """

    stream: bytes
    orientation: int


def unreadable(received: str) -> InputError:
    """The error for a file that is no whole picture; `received` is shown to strangers."""
    return InputError(
        f"expected a whole JPEG, PNG or WebP picture. Received: {received}",
        status=400,
        code="unreadable_image",
        hint="Open the picture in a viewer and save it anew.",
    )


def too_large(expected: str, received: str) -> InputError:
    """The error for a file beyond a limit; both texts are shown to strangers."""
    return InputError(
        f"expected {expected}. Received: {received}",
        status=413,
        code="image_too_large",
        hint="Send a smaller picture.",
    )
