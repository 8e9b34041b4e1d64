from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from rayml import images
from rayml.errors import InputError, UsageError
from rayml.images import (
    DEFAULT_LIMITS,
    ImageHeader,
    ImageLimits,
    check_header,
    decode_bytes,
    load_pixels,
    preprocessing_id,
)
from tests.hostile.pictures import chunk, coded_jpeg, encoded, exif, noisy, png, segment, with_exif, with_segment

WHITE = [255, 255, 255]


def flat(data: bytes) -> list[int]:
    """The one colour of a picture that has only one."""
    pixels = load_pixels(data, 4).reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return [int(value) for value in pixels[0]]


def row(data: bytes, width: int) -> list[list[int]]:
    """The first row of a square picture of `width`, which no resizing touches."""
    return [[int(value) for value in pixel] for pixel in load_pixels(data, width)[0]]


def smooth(width: int, height: int) -> Image.Image:
    """A picture that looks the same at any size."""
    rows, columns = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)[None, :]
    channels = [128 + 100 * np.sin(rows + phase) * np.cos(columns * phase) for phase in (0.5, 1.0, 1.5)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def test_result_is_contiguous_uint8_rgb() -> None:
    for image_format in ("JPEG", "PNG", "WEBP"):
        pixels = load_pixels(encoded(noisy(50, 20), image_format), 33)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (33, 33, 3)
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable


def test_preprocessing_names_itself() -> None:
    assert preprocessing_id(150) == "decode(eighths)|exif|rgb(white)|resize(150,150,bilinear)"


def test_default_limits() -> None:
    assert ImageLimits(max_bytes=20 * 2**20, max_pixels=50_000_000) == DEFAULT_LIMITS


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_frames"])
def test_limits_refuse_nonsense(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.*Received: 0"):
        ImageLimits(**{name: 0})


def test_size_zero_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="Received: 0"):
        load_pixels(encoded(noisy(4, 4), "PNG"), 0)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
@pytest.mark.parametrize("size", [(64, 64), (200, 31), (7, 90), (1, 1), (1, 10_000)])
def test_lossless_picture_is_pillows_bilinear_resize(image_format: str, size: tuple[int, int]) -> None:
    image = noisy(*size)
    expected = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(load_pixels(encoded(image, image_format, lossless=True), 24), expected)


def test_small_jpeg_is_pillows_bilinear_resize() -> None:
    data = encoded(noisy(299, 170), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).resize((150, 150), Image.Resampling.BILINEAR))
    assert np.array_equal(load_pixels(data, 150), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("width", "reduced"), [(300, 150), (600, 150), (1200, 150)])
def test_halves_of_a_jpeg_are_pillows(mode: str, width: int, reduced: int) -> None:
    data = encoded(noisy(width, width).convert(mode), "JPEG")
    drafted = Image.open(io.BytesIO(data))
    drafted.draft(mode, (150, 150))
    assert drafted.size == (reduced, reduced)
    expected = drafted.convert("RGB").resize((150, 150), Image.Resampling.BILINEAR)
    assert np.array_equal(load_pixels(data, 150), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("eighths", range(1, 9))
def test_jpeg_is_decoded_at_the_fewest_eighths_of_the_wanted_size(
    mode: str, eighths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, decode = [], simplejpeg.decode_jpeg

    def decode_jpeg(*arguments: Any, **options: Any) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = decode(*arguments, **options)
        shapes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    data = encoded(smooth(800, 1000).convert(mode), "JPEG", quality=95)
    wanted = 100 * eighths
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((wanted, wanted), Image.Resampling.BILINEAR))
    assert np.abs(load_pixels(data, wanted).astype(int) - whole).max() <= 3
    load_pixels(data, wanted - 99)
    assert shapes == [(125 * eighths, wanted, 3)] * 2


@pytest.mark.parametrize("size", [(1, 1), (60, 500), (500, 60), (99, 3000)])
def test_jpeg_of_less_than_the_wanted_size_is_decoded_whole(size: tuple[int, int]) -> None:
    data = encoded(noisy(*size), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).resize((100, 100), Image.Resampling.BILINEAR))
    assert np.array_equal(load_pixels(data, 100), expected)


def test_slips_of_a_jpeg_are_passed_over_as_pillow_does() -> None:
    data = bytearray(encoded(noisy(64, 64), "JPEG"))
    middle = data.index(b"\xff\xda") + 400
    data[middle : middle + 6] = b"\x12\x34\x56\x78\x9a\xbc"
    with pytest.raises(ValueError, match="Corrupt"):
        simplejpeg.decode_jpeg(bytes(data), "RGB")
    expected = np.asarray(Image.open(io.BytesIO(data)).resize((60, 60), Image.Resampling.BILINEAR))
    assert np.array_equal(load_pixels(bytes(data), 60), expected)


# What each mode means


def test_mode_1() -> None:
    assert row(png(8, 8, 1, 0, b"\x0f" * 8), 8) == [[0, 0, 0]] * 4 + [WHITE] * 4


def test_mode_1_is_averaged_not_sampled() -> None:
    grey = load_pixels(png(8, 8, 1, 0, b"\x55" * 8), 4)  # Black and white in turn.
    assert grey.min() > 100
    assert grey.max() < 155


@pytest.mark.parametrize(("depth", "samples", "expected"), [(2, b"\x1b", [0, 85, 170, 255]), (4, b"\x05\xaf", None)])
def test_grey_of_few_bits_is_spread_to_eight(depth: int, samples: bytes, expected: list[int] | None) -> None:
    expected = expected or [0, 85, 170, 255]
    assert row(png(4, 4, depth, 0, samples * 4), 4) == [[value] * 3 for value in expected]


def test_mode_l() -> None:
    assert row(png(2, 2, 8, 0, b"\x07\xf0" * 2), 2) == [[7] * 3, [240] * 3]
    assert flat(encoded(Image.new("L", (16, 16), 77), "JPEG")) == [77] * 3


def test_alpha_lies_on_white() -> None:
    colours = [(200, 100, 0, alpha) for alpha in (255, 128, 51, 0)]
    image = Image.new("RGBA", (4, 1))
    image.putdata(colours)
    expected = [[round(255 + (value - 255) * colour[3] / 255) for value in colour[:3]] for colour in colours]
    found = np.array(row(encoded(image.resize((4, 4)), "PNG"), 4))
    assert np.abs(found - expected).max() <= 1
    assert found[0].tolist() == [200, 100, 0]
    assert found[3].tolist() == WHITE
    assert row(encoded(image.resize((4, 4)), "WEBP", lossless=True, exact=True), 4) == found.tolist()


def test_mode_la() -> None:
    found = row(png(4, 4, 8, 4, b"\x10\xff\x10\x80\x10\x33\x10\x00" * 4), 4)
    assert found == [[value] * 3 for value in (16, 135, 207, 255)]


def test_colour_of_transparent_pixels_does_not_shine_through() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    pixels = load_pixels(encoded(image, "PNG"), 9)
    assert pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[0, 8].tolist() == WHITE
    red, green, _ = pixels[0, 4].tolist()  # Half blue, half white: no red in it.
    assert red == green


def test_mode_p_with_and_without_transparency() -> None:
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    assert row(png(2, 2, 8, 3, b"\0\1" * 2, palette), 2) == [[10, 20, 30], [40, 50, 60]]
    clear = png(2, 2, 8, 3, b"\0\1" * 2, palette, chunk(b"tRNS", b"\0"))
    assert row(clear, 2) == [WHITE, [40, 50, 60]]
    half = png(2, 2, 8, 3, b"\0\1" * 2, palette, chunk(b"tRNS", b"\xff\x80"))
    assert row(half, 2) == [[10, 20, 30], [147, 152, 157]]


@pytest.mark.parametrize(
    ("depth", "colour", "samples", "key", "expected"),
    [
        (1, 0, b"\x40", b"\0\0", [WHITE, WHITE]),
        (4, 0, b"\x56", b"\0\5", [WHITE, [102, 102, 102]]),
        (8, 0, b"\5\6", b"\0\5", [WHITE, [6, 6, 6]]),
        (8, 2, b"\1\2\3\1\2\4", b"\0\1\0\2\0\3", [WHITE, [1, 2, 4]]),
        (16, 0, b"\5\0\6\0", b"\5\0", [[5, 5, 5], [6, 6, 6]]),  # Not with 16 bits: the key's low byte is lost.
    ],
)
def test_transparent_colour_of_png(
    depth: int, colour: int, samples: bytes, key: bytes, expected: list[list[int]]
) -> None:
    assert row(png(2, 2, depth, colour, samples * 2, chunk(b"tRNS", key)), 2) == expected


@pytest.mark.parametrize(
    ("colour", "sample", "expected"),
    [
        (0, b"\x80\xff", [128, 128, 128]),
        (2, b"\x80\xff\x01\x02\xff\xff", [128, 1, 255]),
        (4, b"\x80\xff\xff\xff", [128, 128, 128]),
        (6, b"\x80\xff\x01\x02\xff\xff\x00\x00", WHITE),
    ],
)
def test_16_bits_keep_their_high_byte(colour: int, sample: bytes, expected: list[int]) -> None:
    assert flat(png(4, 4, 16, colour, sample * 16)) == expected


def cmyk_jpeg(ink: tuple[int, int, int, int]) -> bytes:
    """A CMYK file as Pillow and Photoshop write it: with an Adobe marker, and inverted."""
    return encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)


def without_adobe(data: bytes) -> bytes:
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 16 :]


INK = (200, 40, 0, 51)
ON_PAPER = [round((255 - ink) * (255 - INK[3]) / 255) for ink in INK[:3]]


def test_cmyk_with_adobe_marker_is_inverted() -> None:
    assert np.abs(np.array(flat(cmyk_jpeg(INK))) - ON_PAPER).max() <= 2


def test_cmyk_without_adobe_marker_is_not_inverted() -> None:
    cyan, magenta, yellow, key = (255 - ink for ink in INK)
    plain = without_adobe(cmyk_jpeg((cyan, magenta, yellow, key)))
    assert np.abs(np.array(flat(plain)) - ON_PAPER).max() <= 2


def test_ycck() -> None:
    luma, blue, red = Image.new("RGB", (1, 1), INK[:3]).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
    data = bytearray(cmyk_jpeg((255 - luma, 255 - blue, 255 - red, INK[3])))
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    data[adobe + 11] = 2  # The first three components are YCbCr.
    assert np.abs(np.array(flat(bytes(data))) - ON_PAPER).max() <= 3


def test_adobe_rgb_without_conversion() -> None:
    data = encoded(Image.new("RGB", (16, 16), (10, 200, 90)), "JPEG", quality=100, keep_rgb=True)
    assert np.abs(np.array(flat(data)) - [10, 200, 90]).max() <= 2


# Ways of coding


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"restart_marker_blocks": 1}, {"optimize": True}, {"progressive": True, "quality": 100}],
)
def test_ways_of_jpeg_coding_give_the_same_pixels(options: dict[str, int]) -> None:
    image = noisy(61, 47)
    quality = {"quality": options.get("quality", 75)}
    assert np.array_equal(
        load_pixels(encoded(image, "JPEG", **options), 20), load_pixels(encoded(image, "JPEG", **quality), 20)
    )


@pytest.mark.parametrize("luma", [0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x42, 0x24])
def test_any_sampling_of_colours(luma: int) -> None:
    """4:1:0 (0x42) and 1 x 4 are among those that simplejpeg has no name for; Pillow reads them."""
    data = coded_jpeg(60, 44, bytes([luma, 0x11, 0x11]))
    assert flat(data) == [128, 128, 128]
    assert decode_bytes(data, 24) == decode_bytes(coded_jpeg(60, 44, b"\x11\x11\x11"), 24)


def test_arithmetic_coding() -> None:
    table = segment(0xDB, b"\0" + b"\1" * 64)
    frame = segment(0xC9, b"\x08\0\x10\0\x10\1\1\x11\0")
    scan = segment(0xDA, b"\1\1\0\0\x3f\0")  # No coded bytes: the decoder reads zeros, which say "near mid-grey".
    grey = load_pixels(b"\xff\xd8" + table + frame + scan + b"\xff\xd9", 16)
    assert np.abs(grey.astype(int) - 128).max() <= 8


def test_interlaced_png() -> None:
    plain = png(1, 1, 8, 0, b"\x2a")
    header = bytearray(plain[16:29])
    header[12] = 1
    interlaced = plain[:8] + chunk(b"IHDR", bytes(header)) + plain[33:]
    assert flat(interlaced) == [42] * 3


def test_animation_is_its_first_frame() -> None:
    first, *others = (Image.new("RGB", (16, 16), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
    for image_format in ("PNG", "WEBP"):
        data = encoded(first, image_format, save_all=True, append_images=others, lossless=True)
        with Image.open(io.BytesIO(data)) as opened:
            assert getattr(opened, "n_frames", 0) == 3
        assert flat(data) == [200, 0, 0]


# EXIF

INVERSE: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
"""How a camera that writes this orientation has stored the scene."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_exif_orientations_give_equal_pixels(image_format: str, order: str, orientation: int) -> None:
    scene = noisy(40, 25)
    stored = encoded(INVERSE[orientation](scene), image_format, lossless=True)
    upright = load_pixels(encoded(scene, image_format, lossless=True), 16)
    assert np.array_equal(load_pixels(with_exif(stored, exif(orientation, order)), 16), upright)
    if orientation > 1:
        assert not np.array_equal(load_pixels(stored, 16), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_of_jpeg(orientation: int) -> None:
    scene = noisy(640, 320)  # Decoded at a quarter of its size.
    stored = encoded(INVERSE[orientation](scene), "JPEG", quality=98, subsampling=0)
    upright = load_pixels(encoded(scene, "JPEG", quality=98, subsampling=0), 64).astype(int)
    assert np.abs(load_pixels(with_exif(stored, exif(orientation)), 64) - upright).max() <= 3


def test_exif_agrees_with_pillow() -> None:
    block = Image.Exif()
    block[0x0112] = 6
    block[0x010E] = "a description before the orientation"
    data = encoded(noisy(30, 20), "JPEG", exif=block)
    turned = encoded(Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270), "PNG")
    assert np.array_equal(load_pixels(data, 20), load_pixels(turned, 20))


def test_profiles_and_texts_change_nothing() -> None:
    image = noisy(20, 20)
    for image_format in ("JPEG", "PNG", "WEBP"):
        plain = encoded(image, image_format)
        profiled = encoded(image, image_format, icc_profile=b"not a profile" * 20)
        assert len(profiled) > len(plain)
        assert np.array_equal(load_pixels(profiled, 10), load_pixels(plain, 10))
    commented = with_segment(encoded(image, "JPEG"), segment(0xFE, b"a comment"))
    assert np.array_equal(load_pixels(commented, 10), load_pixels(encoded(image, "JPEG"), 10))


# The header and the limits


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_header(image_format: str, options: dict[str, object]) -> None:
    data = encoded(noisy(300, 7), image_format, **options)
    assert check_header(data) == ImageHeader(image_format, 300, 7, components=3 if image_format == "JPEG" else 0)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_size_that_the_decoder_reads_otherwise_is_refused(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noisy(300, 200), image_format)
    header = check_header(data)
    monkeypatch.setattr(images, "check_header", lambda data, limits: dataclasses.replace(header, width=30))
    with pytest.raises(InputError, match="contradicts its header"):
        load_pixels(data, 8)


def test_header_is_the_stored_size() -> None:
    assert check_header(with_exif(encoded(noisy(8, 4), "JPEG"), exif(6))) == ImageHeader("JPEG", 8, 4, components=3)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_at_the_limits_and_one_above(image_format: str) -> None:
    data = encoded(noisy(40, 25), image_format)
    load_pixels(data, 8, ImageLimits(max_bytes=len(data), max_pixels=1000))
    for limits in (ImageLimits(max_bytes=len(data) - 1), ImageLimits(max_pixels=999)):
        for function in (lambda limits: check_header(data, limits), lambda limits: load_pixels(data, 8, limits)):
            with pytest.raises(InputError) as raised:
                function(limits)
            assert (raised.value.status, raised.value.code) == (413, "image_too_large")


def test_at_the_default_pixel_limit_and_one_row_above() -> None:
    row_bytes = b"\xff" * (10_000 // 8)
    assert flat(png(10_000, 5_000, 1, 0, row_bytes * 5_000)) == WHITE
    with pytest.raises(InputError, match=r"at most 50000000 pixels\. Received: 10000 x 5001 pixels"):
        load_pixels(png(10_000, 5_001, 1, 0, row_bytes * 5_001), 4)


def test_very_long_side_is_refused() -> None:
    with pytest.raises(InputError, match="sides of at most 1000000 pixels") as raised:
        load_pixels(png(1_000_001, 1, 8, 0, b"\0" * 1_000_001), 4)
    assert raised.value.status == 413


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(2**40)  # More than memory.
    with pytest.raises(InputError, match=r"at most 20971520 bytes\. Received: 1099511627776 bytes"):
        images.read_picture(tmp_path / "huge.jpg")
    (tmp_path / "small.jpg").write_bytes(b"12345")
    assert images.read_picture(tmp_path / "small.jpg", 5) == b"12345"
    assert len(images.read_picture(Path("/dev/zero"), 5)) == 6
