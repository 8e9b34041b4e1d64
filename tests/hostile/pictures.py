"""Pictures made by hand, byte by byte where Pillow would not write them, and a way to measure what decoding takes."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
REPOSITORY = Path(__file__).resolve().parents[2]


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """An image as a file of the format."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noisy(width: int, height: int, seed: int = 1, channels: int = 3) -> Image.Image:
    """Smooth colours with some noise, neither flat nor incompressible; channels: 1 L, 2 LA, 3 RGB, 4 RGBA."""
    generator = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 3, height)[:, None, None], np.linspace(0, 3, width)[None, :, None]
    phase = generator.uniform(0, 6, channels)
    smooth = 128 + 100 * np.sin(rows + phase) * np.cos(columns * phase)
    pixels = np.clip(smooth + generator.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, depth: int, colour: int) -> bytes:
    """Signature and IHDR; colour: 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGB + alpha."""
    return PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes, after: bytes = b"") -> bytes:
    """A PNG of raw samples: `rows` without filter bytes, `before` and `after` as chunks around the picture."""
    stride = len(rows) // height
    raw = b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height))
    picture = chunk(b"IDAT", zlib.compress(raw))
    return png_header(width, height, depth, colour) + b"".join(before) + picture + after + chunk(b"IEND", b"")


def with_png_chunk(data: bytes, part: bytes) -> bytes:
    """A PNG file with one more chunk after IHDR."""
    return data[:33] + part + data[33:]


def segment(marker: int, body: bytes) -> bytes:
    """A JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segment(data: bytes, part: bytes) -> bytes:
    """A JPEG file with one more segment at its front."""
    return data[:2] + part + data[2:]


def jpeg_header(width: int, height: int) -> bytes:
    """The front of a JPEG file, up to and with its frame header (three components)."""
    table = segment(0xDB, b"\0" + b"\1" * 64)
    components = b"\1\x11\0\2\x11\0\3\x11\0"
    return b"\xff\xd8" + table + segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + components)


def coded_jpeg(width: int, height: int, samplings: bytes, marker: int = 0xC0, bits: int = 8) -> bytes:
    """A JPEG file of one scan, whose every difference from one sample (or block) to the next is zero.

    Arguments:
        samplings: of each component, its factors across and down in four bits each.
        marker: of the frame; 0xC3 is lossless.
        bits: of a sample.
    """
    frame = struct.pack(">BHHB", bits, height, width, len(samplings))
    frame += b"".join(bytes([number, sampling, 0]) for number, sampling in enumerate(samplings, 1))
    tables = [segment(0xC4, bytes([table, 1, *bytes(15), 0])) for table in (0x00, 0x10)]  # One code, "0", says zero.
    ends = b"\1\0\0" if marker == 0xC3 else b"\0\x3f\0"
    scan = bytes([len(samplings)]) + b"".join(bytes([number, 0]) for number in range(1, len(samplings) + 1)) + ends
    parts = [segment(0xDB, b"\0" + b"\1" * 64), segment(marker, frame), *tables, segment(0xDA, scan)]
    return b"\xff\xd8" + b"".join(parts) + bytes(width * height * len(samplings)) + b"\xff\xd9"


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a WebP file, padded."""
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_canvas(width: int, height: int, *parts: bytes, flags: int = 0) -> bytes:
    """A WebP file of the extended format."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + riff_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + size) + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def exif(orientation: int, order: str = ">") -> bytes:
    """An EXIF block, without the `Exif` prefix, that says nothing but the orientation."""
    magic = b"MM\0*" if order == ">" else b"II*\0"
    return magic + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def with_exif(data: bytes, block: bytes) -> bytes:
    """A JPEG, PNG or (simple, lossless) WebP file with an EXIF block."""
    if data.startswith(PNG_SIGNATURE):
        return with_png_chunk(data, chunk(b"eXIf", block))
    if data.startswith(b"RIFF"):
        width, height = Image.open(io.BytesIO(data)).size
        return webp_canvas(width, height, data[12:], riff_chunk(b"EXIF", block), flags=0x08)
    return with_segment(data, segment(0xE1, b"Exif\0\0" + block))


MEASURE = """
import resource, sys
from pathlib import Path
from rayml.errors import InputError
from rayml.images import load_pixels
from tests.hostile.pictures import png

def peak_bytes():
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would start with the peak of the process that started this one.
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

load_pixels(png(1, 1, 8, 0, b"x"), 8)  # Loads whatever is loaded on first use.
data = Path(sys.argv[1]).read_bytes()
before = peak_bytes()
try:
    load_pixels(data, 150)
    answer = "pixels"
except InputError as error:
    answer = str(error.status)
print(answer, peak_bytes() - before)
"""


def measured(data: bytes, folder: Path) -> tuple[str, int]:
    """What a fresh process makes of a file: "pixels" or a status, and the bytes of memory it took at its peak."""
    path = folder / "measured.bin"
    path.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    answer, peak_bytes = done.stdout.split()
    return answer, int(peak_bytes)
