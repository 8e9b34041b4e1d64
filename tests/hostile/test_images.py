"""Pictures that the internet sends: cut short, inflating, mislabelled, doubled, damaged. All are made here."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from rayml.errors import InputError
from rayml.formats.common import MAX_PARTS
from rayml.formats.jpeg import MAX_SCANS
from rayml.images import ImageLimits, check_header, decode_bytes, fit_bytes, load_pixels
from tests.hostile.pictures import (
    PNG_SIGNATURE,
    REPOSITORY,
    chunk,
    coded_jpeg,
    encoded,
    exif,
    jpeg_header,
    measured,
    noisy,
    png,
    png_header,
    riff_chunk,
    segment,
    webp_canvas,
    with_exif,
    with_png_chunk,
    with_segment,
)

MIB = 2**20
SMALL = 24 * MIB
"""What may be taken to refuse a bomb: a copy or two of files of a few MiB, nothing of what they would become."""


def refused(data: bytes, limits: ImageLimits | None = None) -> InputError:
    with pytest.raises(InputError) as raised:
        load_pixels(data, 16, limits or ImageLimits())
    check_words(raised.value)
    return raised.value


def check_words(error: InputError) -> None:
    """What strangers read says nothing of the inside."""
    for word in ("/", "\\", "PIL", "Error", "object", "<", "0x", "Traceback", "\n"):
        assert word not in error.message + error.hint
    assert "Received: " in error.message


SEEDS: dict[str, bytes] = {
    "jpeg": encoded(noisy(24, 20), "JPEG"),
    "jpeg-progressive": encoded(noisy(24, 20), "JPEG", progressive=True),
    "jpeg-restart": encoded(noisy(24, 20), "JPEG", restart_marker_blocks=1),
    "jpeg-444": encoded(noisy(24, 20), "JPEG", subsampling=0, quality=95),
    "jpeg-grey": encoded(noisy(24, 20, channels=1), "JPEG"),
    "jpeg-cmyk": encoded(noisy(24, 20).convert("CMYK"), "JPEG"),
    "jpeg-exif": with_exif(encoded(noisy(24, 20), "JPEG"), exif(6)),
    "jpeg-large": encoded(noisy(90, 70), "JPEG"),
    "png": encoded(noisy(24, 20), "PNG"),
    "png-1": encoded(noisy(24, 20, channels=1).convert("1"), "PNG"),
    "png-la": encoded(noisy(24, 20, channels=2), "PNG"),
    "png-palette": encoded(noisy(24, 20).quantize(16), "PNG", transparency=3),
    "png-rgba": encoded(noisy(24, 20, channels=4), "PNG"),
    "png-16": png(24, 20, 16, 0, noisy(48, 20, channels=1).tobytes()),
    "png-animated": encoded(noisy(24, 20), "PNG", save_all=True, append_images=[noisy(24, 20, 2)]),
    "png-exif": with_exif(encoded(noisy(24, 20), "PNG"), exif(5)),
    "webp": encoded(noisy(24, 20), "WEBP"),
    "webp-lossless": encoded(noisy(24, 20), "WEBP", lossless=True),
    "webp-alpha": encoded(noisy(24, 20, channels=4), "WEBP"),
    "webp-animated": encoded(noisy(24, 20), "WEBP", save_all=True, append_images=[noisy(24, 20, 2)]),
}


# Cut short


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_sound(name: str) -> None:
    assert load_pixels(SEEDS[name], 16).shape == (16, 16, 3)


@pytest.mark.parametrize("name", SEEDS)
def test_cut_at_every_percent_is_unreadable(name: str) -> None:
    data = SEEDS[name]
    for percent in range(1, 100):
        error = refused(data[: len(data) * percent // 100])
        assert (error.status, error.code) == (400, "unreadable_image"), percent


@pytest.mark.parametrize("name", ["jpeg", "jpeg-progressive", "png", "webp", "webp-lossless", "webp-animated"])
def test_cut_by_any_byte_of_the_end_is_unreadable(name: str) -> None:
    data = SEEDS[name]
    for missing in range(1, 33):
        error = refused(data[:-missing])
        assert error.code == "unreadable_image"
        assert error.message.endswith("that is cut short")


def test_empty() -> None:
    error = refused(b"")
    assert (error.status, error.code) == (400, "empty_image")


@pytest.mark.parametrize("data", [b"\0", b"\xff", b"\x89", b"R", b"\xff\xd8", b"\x89PNG", b"RIFF\4\0\0\0WEB", b"hello"])
def test_too_short_to_tell(data: bytes) -> None:
    error = refused(data)
    assert (error.status, error.code) == (400, "unreadable_image")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xd9" + bytes(20),
        b"\xff\xd8\xff" + bytes(100),
        PNG_SIGNATURE + bytes(100),
        b"RIFF\x64\0\0\0WEBP" + bytes(100),
        png_header(4, 4, 8, 0) + chunk(b"IEND", b""),
        png(2, 2, 8, 3, b"\0\1\0\1"),  # Palette colours without a palette.
        png_header(0, 4, 8, 0) + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        png_header(4, 4, 7, 9) + chunk(b"IDAT", b"x") + chunk(b"IEND", b""),
        jpeg_header(8, 8) + b"\xff\xd9",
        jpeg_header(8, 0) + segment(0xDA, b"\1\1\0\0\x3f\0") + b"\xff\xd9",
        webp_canvas(8, 8),
    ],
)
def test_frames_without_a_picture_are_unreadable(data: bytes) -> None:
    error = refused(data)
    assert (error.status, error.code) == (400, "unreadable_image")


# Other formats, and files that are two things


@pytest.mark.parametrize("image_format", ["GIF", "TIFF", "ICO", "BMP", "PDF", "EPS", "AVIF", "PPM", "TGA", "JPEG2000"])
def test_other_formats_of_pillow_are_unsupported(image_format: str) -> None:
    data = encoded(noisy(32, 32), image_format)
    error = refused(data)
    assert (error.status, error.code) == (415, "unsupported_image")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"GIF89a" + bytes(20), "GIF"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "XML"),
        (b"\n<svg width='9' height='9'></svg>", "SVG"),
        (b"%PDF-1.7\n" + bytes(20), "PDF"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"8BPS\0\1" + bytes(20), "PSD"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "HEIC"),
        (b"RIFF\4\0\0\0WAVEfmt ", "another kind of file"),
        (b"this is not a picture", "another kind of file"),
        (bytes(5000), "another kind of file"),
        (random.Random(1).randbytes(5000), "another kind of file"),
    ],
)
def test_other_files_are_unsupported_and_named(data: bytes, name: str) -> None:
    error = refused(data)
    assert (error.status, error.code) == (415, "unsupported_image")
    assert error.message.endswith(f"Received: {name}")


@pytest.mark.parametrize("name", ["jpeg", "jpeg-progressive", "png", "png-animated", "webp", "webp-animated"])
def test_polyglot_is_its_first_picture(name: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("a.txt", "a")
    expected = load_pixels(SEEDS[name], 16)
    for tail in (archive.getvalue(), b"<html><script>alert(1)</script></html>", SEEDS["jpeg-grey"], b"\0" * 70_000):
        assert np.array_equal(load_pixels(SEEDS[name] + tail, 16), expected)


def test_archive_before_a_picture_is_unsupported() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("a.jpg", SEEDS["jpeg"])
    assert refused(archive.getvalue()).status == 415


def test_multi_picture_jpeg_is_its_first() -> None:
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(load_pixels(data, 16), load_pixels(encoded(first, "JPEG"), 16))


def test_second_header_does_not_count() -> None:
    """A small header for the limits and a large one for the decoder."""
    header = png_header(30_000, 30_000, 1, 0)[8:]
    assert "repeated part" in refused(with_png_chunk(SEEDS["png"], header)).message
    large = jpeg_header(60_000, 60_000)
    assert refused(with_segment(SEEDS["jpeg"], large[2:])).status == 413
    start = SEEDS["jpeg"].index(b"\xff\xda")
    assert "exactly one picture" in refused(SEEDS["jpeg"][:start] + large[2:] + SEEDS["jpeg"][start:]).message
    lossless = SEEDS["webp-lossless"]
    assert refused(webp_canvas(4, 4, lossless[12:])).status == 400
    assert refused(webp_canvas(9_000, 9_000, lossless[12:])).status == 413


# Bombs


def zeros(size: int) -> bytes:
    """Zlib data that inflates to so many zeros, a thousand times its size."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(min(MIB, size - done))) for done in range(0, size, MIB)) + packer.flush()


def one_bit_bomb() -> bytes:
    rows = zeros(30_000 * (1 + 30_000 // 8))
    return png_header(30_000, 30_000, 1, 0) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animation(frames: int) -> bytes:
    """A WebP animation of so many frames of one pixel."""
    pixel = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    frame = riff_chunk(b"ANMF", bytes(15) + b"\0" + pixel)
    return webp_canvas(1, 1, riff_chunk(b"ANIM", bytes(6)), *([frame] * frames), flags=0x02)


def animated_png(frames: int) -> bytes:
    return with_png_chunk(SEEDS["png"], chunk(b"acTL", struct.pack(">II", frames, 0)))


BOMBS = {
    "one bit, 30,000 x 30,000": one_bit_bomb(),
    "PNG header, 2^31 - 1 square": png_header(2**31 - 1, 2**31 - 1, 16, 6) + bytes(100),
    "JPEG header, 65,500 x 65,500": jpeg_header(65_500, 65_500),
    "WebP canvas, 2^24 square": webp_canvas(2**24, 2**24),
    "WebP canvas, 16,383 square": webp_canvas(16_383, 16_383, SEEDS["webp-lossless"][12:]),
    "compressed text": with_png_chunk(SEEDS["png"], chunk(b"zTXt", b"a\0\0" + zeros(400 * MIB))),
    "compressed international text": with_png_chunk(SEEDS["png"], chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(400 * MIB))),
    "colour profile": with_png_chunk(SEEDS["png"], chunk(b"iCCP", b"a\0\0" + zeros(400 * MIB))),
    "many compressed texts": with_png_chunk(SEEDS["png"], chunk(b"zTXt", b"a\0\0" + zeros(MIB - 1)) * 400),
    "10,000 frames, WebP": animation(10_000),
    "10,000 frames, PNG": animated_png(10_000),
    "a million chunks": with_png_chunk(SEEDS["png"], chunk(b"prVt", b"") * 10**6),
    "a million segments": with_segment(SEEDS["jpeg"], segment(0xFE, b"") * 10**6),
    "a million scans": SEEDS["jpeg-progressive"][:-2] + segment(0xDA, b"\1\1\0\1\1\0") * 10**6 + b"\xff\xd9",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_memory_is_taken(name: str, tmp_path: Path) -> None:
    answer, peak_bytes = measured(BOMBS[name], tmp_path)
    assert answer == "413"
    assert peak_bytes < SMALL


def one_scan_a_component(width: int, height: int) -> bytes:
    """A sequential JPEG file that is written as a progressive one is, each of three components in a scan of its own."""
    grey = encoded(noisy(width, height, channels=1), "JPEG")
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    tables, coded = grey[frame + 13 : scan], grey[scan + 10 : -2]
    scans = [segment(0xDA, bytes([1, n, 0, 0, 63, 0])) + coded for n in (1, 2, 3)]
    components = b"\1\x11\0\2\x11\0\3\x11\0"
    size = struct.pack(">BHHB", 8, height, width, 3)
    return grey[:frame] + segment(0xC0, size + components) + tables + b"".join(scans) + b"\xff\xd9"


HEAVY: dict[str, Callable[[], bytes]] = {
    "photo": lambda: encoded(noisy(4000, 3000), "JPEG"),
    "progressive": lambda: encoded(noisy(4000, 3000), "JPEG", progressive=True),
    "scans": lambda: one_scan_a_component(4000, 3000),
    "thin": lambda: with_exif(encoded(noisy(60_000, 200).convert("CMYK"), "JPEG"), exif(6)),
    "png": lambda: encoded(noisy(2000, 1500, channels=4), "PNG", compress_level=1),
    "webp": lambda: encoded(noisy(2000, 1500, channels=4), "WEBP", lossless=True, quality=0),
}


@pytest.mark.parametrize("name", HEAVY)
def test_decoding_takes_no_more_memory_than_was_said(name: str, tmp_path: Path) -> None:
    data = HEAVY[name]()
    answer, peak_bytes = measured(data, tmp_path)
    assert answer == "pixels"
    assert peak_bytes < decode_bytes(data, 150) + 2 * MIB
    # An ordinary photo takes little beside its file, whatever its size: many are decoded side by side.
    assert (decode_bytes(data, 150) - 3 * len(data) < 4 * MIB) == (name == "photo")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("height", "width"), [(1, 1_000_000), (1_000_000, 1), (1_000_000, 40), (40, 1_000_000)])
def test_resizing_takes_no_more_memory_than_was_said(height: int, width: int) -> None:
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from rayml.images import fit_pixels\n"
        "def peak_bytes():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(1024 * int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "fit_pixels(np.zeros((9, 9, 3), np.uint8), 150)\n"  # Loads whatever is loaded on first use.
        "pixels = np.ones((int(sys.argv[1]), int(sys.argv[2]), 3), np.uint8)\n"
        "before = peak_bytes()\n"
        "fit_pixels(pixels, 150)\n"
        "print(peak_bytes() - before)\n"
    )
    command = [sys.executable, "-c", code, str(height), str(width)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    wanted = fit_bytes(height, width, 150)
    assert wanted / 2 < int(done.stdout) < wanted + 2 * MIB


@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF])
def test_jpeg_of_another_kind_than_photos_is_refused_unread(marker: int, components: int, tmp_path: Path) -> None:
    """In a process of its own: libjpeg-turbo wrote a lossless one whole where memory was for a fraction."""
    answer, peak_bytes = measured(coded_jpeg(2000, 2000, b"\x11" * components, marker), tmp_path)
    assert answer == "400"
    assert peak_bytes < SMALL
    assert measured(coded_jpeg(400, 400, b"\x11" * components), tmp_path)[0] == "pixels"


@pytest.mark.parametrize("bits", [1, 2, 7, 9, 12, 16, 255])
def test_jpeg_of_more_or_fewer_bits_is_refused(bits: int) -> None:
    assert refused(coded_jpeg(40, 40, b"\x11\x11\x11", bits=bits)).status == 400
    assert refused(coded_jpeg(40, 40, b"\x11\x11\x11", 0xC1, bits=bits)).status == 400


def test_texts_after_the_picture_count_too() -> None:
    text = chunk(b"zTXt", b"a\0\0" + zeros(9 * MIB))
    assert refused(png(2, 2, 8, 0, b"abcd", after=text)).status == 413


def test_large_but_honest_metadata_is_fine() -> None:
    parts = chunk(b"iCCP", b"a\0\0" + zeros(4 * MIB)), chunk(b"zTXt", b"a\0\0" + zeros(4 * MIB))
    data = with_png_chunk(SEEDS["png"], b"".join(parts))
    assert np.array_equal(load_pixels(data, 16), load_pixels(SEEDS["png"], 16))


def test_counts_at_their_limits_and_one_above() -> None:
    assert load_pixels(animation(5), 4, ImageLimits(max_frames=5)).shape == (4, 4, 3)
    assert refused(animation(6), ImageLimits(max_frames=5)).status == 413
    assert load_pixels(animated_png(5), 4, ImageLimits(max_frames=5)).shape == (4, 4, 3)
    assert refused(animated_png(6), ImageLimits(max_frames=5)).status == 413
    chunks = SEEDS["png"].count(b"IDAT") + 2  # Its own: IHDR, IDAT, IEND.
    private = chunk(b"prVt", b"")
    assert load_pixels(with_png_chunk(SEEDS["png"], private * (MAX_PARTS - chunks)), 4).shape == (4, 4, 3)
    assert refused(with_png_chunk(SEEDS["png"], private * (MAX_PARTS - chunks + 1))).status == 413


def test_scans_at_their_limit_and_one_above() -> None:
    data = SEEDS["jpeg-progressive"]
    own = data.count(b"\xff\xda")
    assert 2 < own < 20
    refinement = data[data.rindex(b"\xff\xda") : -2]  # The last scan, once more: libjpeg warns and goes on.
    most = data[:-2] + refinement * (MAX_SCANS - own) + b"\xff\xd9"
    assert load_pixels(most, 16).shape == (16, 16, 3)
    assert refused(data[:-2] + refinement * (MAX_SCANS - own + 1) + b"\xff\xd9").status == 413


def solid_webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour, whose few bytes stand for any size."""
    data = bytearray(encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 100)), "WEBP", lossless=True, exact=True))
    start = data.index(b"VP8L") + 9
    (bits,) = struct.unpack_from("<I", data, start)
    struct.pack_into("<I", data, start, bits & ~0xFFFFFFF | (width - 1) | (height - 1) << 14)
    return bytes(data)


def blank_png(colour: int, depth: int, *parts: bytes) -> bytes:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = zeros(2_500 * (1 + (4_000 * channels * depth + 7) // 8))
    return png_header(4_000, 2_500, depth, colour) + b"".join(parts) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


TURNED = chunk(b"eXIf", exif(6))
PALETTE = chunk(b"PLTE", b"abc") + chunk(b"tRNS", b"\0")


@pytest.mark.parametrize(
    ("kind", "bytes_per_pixel"),
    [("1", 3), ("16", 7), ("RGB", 5), ("RGB key", 9), ("P", 9), ("LA", 9), ("RGBA", 9), ("WebP", 17), ("JPEG", 1)],
)
def test_peak_memory_of_ten_megapixels(kind: str, bytes_per_pixel: int, tmp_path: Path) -> None:
    data = {
        "1": lambda: blank_png(0, 1),
        "16": lambda: blank_png(0, 16),
        "RGB": lambda: blank_png(2, 8),
        "RGB key": lambda: blank_png(2, 8, TURNED, chunk(b"tRNS", bytes(6))),
        "P": lambda: blank_png(3, 8, TURNED, PALETTE),
        "LA": lambda: blank_png(4, 8, TURNED),
        "RGBA": lambda: blank_png(6, 16, TURNED),
        "WebP": lambda: with_exif(solid_webp(4_000, 2_500), exif(6)),
        "JPEG": lambda: with_exif(encoded(Image.new("RGB", (4_000, 2_500)), "JPEG"), exif(6)),
    }[kind]()
    answer, peak_bytes = measured(data, tmp_path)
    assert answer == "pixels"
    assert peak_bytes < bytes_per_pixel * 10**7 + 4 * MIB
    assert bytes_per_pixel * 10**7 <= check_header(data).peak_bytes


def test_peak_memory_of_the_most_demanding_jpeg(tmp_path: Path) -> None:
    data = encoded(Image.new("CMYK", (2_000, 2_500)), "JPEG", progressive=True)
    answer, peak_bytes = measured(data, tmp_path)
    assert answer == "pixels"
    assert peak_bytes < check_header(data).peak_bytes + 4 * MIB


@pytest.mark.parametrize("name", ["jpeg", "png"])
def test_pillows_own_limit_never_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Warnings are errors here.
    assert load_pixels(SEEDS[name], 16).shape == (16, 16, 3)


@pytest.mark.skipif(int(PIL.__version__.partition(".")[0]) < 13, reason="Pillow 12 has no such limit")
def test_pillows_own_limit_for_webp_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    error = refused(SEEDS["webp"])
    assert (error.status, error.code) == (413, "image_too_large")


# Damage


BROKEN_EXIF = [
    b"",
    b"MM",
    b"MM\0*\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08",
    b"MM\0*\0\0\0\x08\xff\xff" + bytes(40),
    exif(0),
    exif(9),
    exif(65_535),
    exif(6)[:19],
    exif(6).replace(b"\x01\x12\0\3", b"\x01\x12\0\2"),  # A text instead of a number.
    b"II*\0" + exif(6)[4:],  # The other order of bytes.
    bytes(range(256)) * 20,
]


@pytest.mark.parametrize("block", BROKEN_EXIF)
@pytest.mark.parametrize("name", ["jpeg", "png", "webp-lossless"])
def test_broken_exif_is_ignored(name: str, block: bytes) -> None:
    assert np.array_equal(load_pixels(with_exif(SEEDS[name], block), 16), load_pixels(SEEDS[name], 16))


JPEG_METADATA = [
    segment(0xE0, b"JFIF\0"),
    segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<not xml" + bytes(50)),
    segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(10)),
    segment(0xE2, b"ICC_PROFILE\0"),
    segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed" + b"\xff" * 12),
    segment(0xEE, b"Adobe"),
    segment(0xFE, b"\xff\xd9\xff\xda\xff\xd8"),
]
PNG_METADATA = [
    chunk(b"iCCP", b"a\0\0not zlib"),
    chunk(b"iCCP", b""),
    chunk(b"iTXt", b"a\0\1\0"),
    chunk(b"zTXt", b"XML:com.adobe.xmp\0\0\x78\x9c\xff"),
    chunk(b"gAMA", b"\0"),
    chunk(b"pHYs", b""),
    chunk(b"acTL", b"\0"),
    chunk(b"acTL", bytes(8)),
    chunk(b"fcTL", b"\0\0"),
    chunk(b"tEXt", b"a\0b")[:-4] + b"oops",  # A wrong checksum.
]


@pytest.mark.parametrize("part", JPEG_METADATA)
def test_broken_metadata_of_jpeg_is_ignored(part: bytes) -> None:
    assert np.array_equal(load_pixels(with_segment(SEEDS["jpeg"], part), 16), load_pixels(SEEDS["jpeg"], 16))


@pytest.mark.parametrize("part", PNG_METADATA)
def test_broken_metadata_of_png_is_ignored(part: bytes) -> None:
    assert np.array_equal(load_pixels(with_png_chunk(SEEDS["png"], part), 16), load_pixels(SEEDS["png"], 16))


@pytest.mark.parametrize("key", [b"ICCP", b"XMP "])
def test_broken_metadata_of_webp_is_ignored(key: bytes) -> None:
    flag = {b"ICCP": 0x20, b"XMP ": 0x04}[key]
    picture = SEEDS["webp-lossless"][12:]
    parts = [riff_chunk(key, b"\xff" * 9), picture] if key == b"ICCP" else [picture, riff_chunk(key, b"<\xff")]
    assert np.array_equal(
        load_pixels(webp_canvas(24, 20, *parts, flags=flag), 16), load_pixels(SEEDS["webp-lossless"], 16)
    )


def test_damaged_png_data_is_unreadable() -> None:
    data = bytearray(SEEDS["png"])
    data[data.index(b"IDAT") + 30] ^= 1
    assert refused(bytes(data)).code == "unreadable_image"


def test_damaged_palette_is_unreadable() -> None:
    data = bytearray(SEEDS["png-palette"])
    data[data.index(b"PLTE") + 5] ^= 1
    assert refused(bytes(data)).message.endswith("a PNG file with damaged data")


def repaired(data: bytes) -> bytes:
    """A damaged PNG with its checksums put right, so that the damage reaches the decoder."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        end = position + 12 + struct.unpack_from(">I", data, position)[0]
        if end > len(data):
            break
        parts.append(chunk(data[position + 4 : position + 8], data[position + 8 : end - 4]))
        position = end
    return b"".join(parts) + data[position:]


@pytest.mark.parametrize("name", SEEDS)
def test_byte_flips_give_a_picture_or_an_answer(name: str) -> None:
    """500 for each of the 20 seeds."""
    generator = random.Random(name)
    limits = ImageLimits(max_pixels=10**6)
    statuses = set()
    for turn in range(500):
        data = bytearray(SEEDS[name])
        data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        damaged = repaired(bytes(data)) if name.startswith("png") and turn % 2 else bytes(data)
        try:
            pixels = load_pixels(damaged, 16, limits)
            assert pixels.shape == (16, 16, 3)
            assert pixels.dtype == np.uint8
            statuses.add(200)
        except InputError as error:
            check_words(error)
            statuses.add(error.status)
    assert statuses <= {200, 400, 413, 415}
    assert {200, 400} <= statuses
