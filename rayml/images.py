"""The one preprocessing: an encoded picture in, uint8 pixels out, the same for training, evaluation and serving.

What each kind of picture means is defined here: JPEG is decoded at the fewest eighths of its size (of inks: at a half,
a quarter or an eighth) that are at least the wanted size; alpha and transparent colours lie on white; 16-bit samples
keep their high byte; CMYK is inverted if and only if an Adobe marker says so; EXIF turns the picture; profiles are
ignored; of an animation the first frame counts; the square result does not keep the aspect. `preprocessing_id` names
all this in a bundle.

What decoding takes of memory is bounded by `decode_bytes`: at the default limits 450 MB, for WebP 850 MB; an ordinary
(baseline) JPEG needs a few MB.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from rayml.errors import InputError, UsageError
from rayml.formats import ImageHeader, StrippedImage, is_one_pass, read_header, strip, too_large, unreadable

__all__ = [
    "DEFAULT_LIMITS",
    "MAX_SIDE_PX",
    "ImageHeader",
    "ImageLimits",
    "check_header",
    "decode_bytes",
    "fit_bytes",
    "fit_pixels",
    "load_pixels",
    "preprocessing_id",
    "read_picture",
    "stack_pixels",
]

# Decoded by libjpeg-turbo through simplejpeg, which takes less time than through Pillow and knows all its scales.
_TURBO_COMPONENTS = (1, 3)

MAX_SIDE_PX = 1_000_000
"""libpng's own limit of width and height; Pillow's resize takes 16 bytes for each pixel of a side."""

_FILE_COPIES = 3
"""Of what is decoded: without metadata, and for libwebp Pillow's and its own."""

_JPEG_ROWS_BYTES_PER_PIXEL = 256
"""Of a picture's width: what libjpeg holds of one row of blocks, at most."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (CIPA DC-008, tag 0x0112)."""


@dataclass(frozen=True)
class ImageLimits:
    """How large a picture may be; all are checked before anything is decoded.

    Arguments:
        max_bytes: of the encoded file; 20 MiB holds the largest photos of today's cameras.
        max_pixels: width times height; 50 million is what those cameras take.
        max_frames: of an animation, of which only the first counts.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_frames: int = 1_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1. Received: {value}")


DEFAULT_LIMITS = ImageLimits()


def preprocessing_id(image_size_px: int) -> str:
    """The name of what `load_pixels` does, which travels with features and bundles."""
    return f"decode(eighths)|exif|rgb(white)|resize({image_size_px},{image_size_px},bilinear)"


def read_picture(path: Path, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """An encoded picture's bytes; of a larger file none is read.

    Arguments:
        path: of the file.
        max_bytes: as in `ImageLimits`.

    Raises:
        InputError: `image_too_large` (413).
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise too_large(f"at most {max_bytes} bytes", f"{size} bytes")
        return file.read(max_bytes + 1)  # What has no length, such as a pipe, is no larger than one byte too many.


def check_header(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Hold a file against the limits by its length and its header; nothing is decoded.

    Raises:
        InputError: `empty_image` or `unreadable_image` (400), `image_too_large` (413), `unsupported_image` (415).
    """
    if len(data) > limits.max_bytes:
        raise too_large(f"at most {limits.max_bytes} bytes", f"{len(data)} bytes")
    header = read_header(data)
    received = f"{header.width} x {header.height} pixels"
    if header.width * header.height > limits.max_pixels:
        raise too_large(f"at most {limits.max_pixels} pixels", received)
    if max(header.width, header.height) > MAX_SIDE_PX:
        raise too_large(f"sides of at most {MAX_SIDE_PX} pixels", received)
    return header


def decode_bytes(data: bytes, image_size_px: int, limits: ImageLimits = DEFAULT_LIMITS) -> int:
    """The most memory that `load_pixels` takes beside `data`, for a server that decodes several at a time.

    Raises:
        InputError: as `check_header`.
    """
    header = check_header(data, limits)
    copies = _FILE_COPIES * len(data)
    if header.format != "JPEG" or not is_one_pass(data):
        return header.peak_bytes + copies
    # In eighths of the shorter side, at most as many as `Image.draft` chooses: 1, 2, 4 or 8.
    shorter = min(header.width, header.height)
    eighths = 1 << (-(-8 * min(image_size_px, shorter) // shorter) - 1).bit_length()
    return header.peak_bytes * eighths**2 // 64 + _JPEG_ROWS_BYTES_PER_PIXEL * header.width + copies


def fit_bytes(height: int, width: int, image_size_px: int) -> int:
    """The most memory that `fit_pixels` takes beside the pixels, as `decode_bytes` for `load_pixels`.

    Measured with Pillow 13: its own copy at 4 bytes a pixel with a pointer for each row, 16 bytes for each pixel of the
    longer side, what lies between the two directions of a resize, and the result.
    """
    if (height, width) == (image_size_px, image_size_px):
        return 0
    between = 4 * image_size_px * min(height, width)
    return 4 * height * width + 8 * height + 16 * max(height, width) + between + 10 * image_size_px**2


def load_pixels(data: bytes, image_size_px: int, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Turn an encoded picture into pixels.

    Arguments:
        data: a whole JPEG, PNG or WebP file; anything may follow it.
        image_size_px: height and width of the result, at least 1.
        limits: what is refused unread.

    Returns:
        uint8 (H, W, 3), RGB, C-contiguous, H = W = `image_size_px`.

    Raises:
        InputError: `empty_image` or `unreadable_image` (400), `image_too_large` (413), `unsupported_image` (415).
    """
    if image_size_px < 1:
        raise UsageError(f"image_size_px must be at least 1. Received: {image_size_px}")
    header = check_header(data, limits)
    stripped = strip(data, header, limits.max_frames)
    try:
        return _decode(stripped, header, image_size_px)
    except InputError:
        raise
    except (MemoryError, Image.DecompressionBombError):
        raise too_large("a picture that fits into memory", f"{header.width} x {header.height} pixels") from None
    except Exception:  # Damaged bytes make Pillow raise nearly anything; what it was does not help whoever sent them.
        raise unreadable(f"a {header.format} file whose picture cannot be decoded") from None


def stack_pixels(pictures: Iterable[bytes], image_size_px: int) -> NDArray[np.uint8]:
    """Several pictures by `load_pixels`, one behind the other: uint8 (N, H, W, 3), with H = W = `image_size_px`."""
    return np.stack([load_pixels(data, image_size_px) for data in pictures])


def fit_pixels(pixels: NDArray[np.uint8], image_size_px: int) -> NDArray[np.uint8]:
    """Pixels that somebody else decoded, brought to the wanted size by the resize of `load_pixels`.

    Arguments:
        pixels: uint8 (H, W, 3), RGB, H and W at least 1.
        image_size_px: height and width of the result, at least 1.

    Returns:
        uint8 (H, W, 3), C-contiguous; `pixels` itself where it has that size already.

    Raises:
        InputError: `wrong_pixels` (400) for another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InputError(
            f"pixels must be uint8 (H, W, 3), H and W at least 1. Received: {pixels.dtype} {pixels.shape}",
            code="wrong_pixels",
        )
    if pixels.shape[:2] == (image_size_px, image_size_px):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((image_size_px, image_size_px), Image.Resampling.BILINEAR))


def _decode(stripped: StrippedImage, header: ImageHeader, image_size_px: int) -> NDArray[np.uint8]:
    """`load_pixels` without the checks. `image` is bound anew at each step so that only two copies live at a time."""
    size = (image_size_px, image_size_px)
    image = _turbo(stripped.stream, header, image_size_px) if header.components in _TURBO_COMPONENTS else None
    if image is None:
        image = _open(header.format, io.BytesIO(stripped.stream))
        _check_size(image.size, header)
        image.draft("RGB", size)
        image.load()
    if "transparency" in image.info:  # PNG's transparent colours: a table for P, one colour for 1, L and RGB.
        image = image.convert("RGBA")
    if image.mode == "CMYK":
        image = _plain_cmyk(image).convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "RGBA":
        image = image.convert("RGBa")  # Colours times alpha: only these may be averaged.
    elif image.mode == "LA":
        image = image.convert("La")
    if stripped.orientation != 1:
        image = image.transpose(_TURNS[stripped.orientation])
    return _rgb_on_white(image.resize(size, Image.Resampling.BILINEAR))


def _open(image_format: str, stream: io.BytesIO) -> ImageFile:
    """A picture of a format by Pillow's plugin for it, not decoded yet.

    By its plugin and not by `Image.open`: no other format can be reached, a multi-picture JPEG stays its first picture,
    and no warning about large pictures is raised beside the limits kept here. Imported when the first of its kind
    comes: a server of ordinary photos holds 2 MB less.
    """
    if image_format == "PNG":
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile(stream)
    if image_format == "WEBP":
        from PIL.WebPImagePlugin import WebPImageFile

        return WebPImageFile(stream)
    from PIL.JpegImagePlugin import JpegImageFile

    return JpegImageFile(stream)


def _check_size(decoders: tuple[int, int], header: ImageHeader) -> None:
    """A decoder must read the width and height that the limits were held against, before it takes memory for them."""
    if decoders != (header.width, header.height):
        raise unreadable(f"a {header.format} file that contradicts its header")


def _turbo(stream: bytes, header: ImageHeader, image_size_px: int) -> Image.Image | None:
    """A grey or coloured JPEG in RGB, or nothing where simplejpeg does not know the sampling of its colours.

    Slips that a decoder can pass over are passed over, as Pillow does.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(stream, strict=False)
    except (ValueError, KeyError):  # Also for broken headers, for which Pillow has no answer either.
        return None
    _check_size((width, height), header)
    least = {"min_height": image_size_px, "min_width": image_size_px}
    return Image.fromarray(simplejpeg.decode_jpeg(stream, "RGB", strict=False, **least))


def _plain_cmyk(image: Image.Image) -> Image.Image:
    """CMYK in which 255 is full ink. Pillow inverts every CMYK JPEG, but only those with an Adobe marker need it."""
    return image if "adobe" in image.info else image.point([255 - value for value in range(256)] * 4)


def _rgb_on_white(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of an image in mode L, RGB, La or RGBa."""
    if image.mode == "L":
        image = image.convert("RGB")
    if image.mode == "RGB":
        return np.array(image)
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    return np.ascontiguousarray(np.broadcast_to(colour + (255 - alpha), (*pixels.shape[:2], 3)))
