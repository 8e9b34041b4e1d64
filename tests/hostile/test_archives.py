"""Zip files made to harm whoever unpacks them: refused, and nothing is written anywhere."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from rayml.archive import ArchiveLimits, unpack
from rayml.errors import DataError

LIMITS = ArchiveLimits(max_entries=1_000, max_bytes=10**6)


def of(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/good.jpg", b"good")
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def stored(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jpg", content)
    return buffer.getvalue()


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def renamed(data: bytes, old: bytes, new: bytes) -> bytes:
    """With another name of the same length in both places, as no honest tool would write it."""
    assert len(old) == len(new) and data.count(old) == 2
    return data.replace(old, new)


def overlapping() -> bytes:
    """Many entries of the directory that all point to one compressed file (Fifield 2019)."""
    data = of(("bomb.jpg", bytes(900_000)))
    at = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", at + 4)
    end = data.index(b"PK\5\6")
    entry = data[second:end]
    copies = b"".join(entry.replace(b"bomb.jpg", f"bom{n}.jpg".encode()) for n in range(8))
    directory = data[at:end] + copies
    return data[:at] + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 10, 10, len(directory), at, 0)


def encrypted() -> bytes:
    data = bytearray(of(("secret.jpg", b"x")))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.rindex(signature) + offset] |= 1
    return bytes(data)


def claiming(size: int) -> bytes:
    """The directory says that the last file is this long."""
    data = bytearray(of(("big.jpg", b"x")))
    struct.pack_into("<I", data, data.rindex(b"PK\1\2") + 24, size)
    return bytes(data)


def with_directory_of(size: int) -> bytes:
    data = bytearray(of())
    struct.pack_into("<I", data, data.rindex(b"PK\5\6") + 12, size)
    return bytes(data)


def directory_said_to_lie(bytes_further: int) -> bytes:
    """Which moves every entry as far to the other side."""
    data = bytearray(of())
    end = data.rindex(b"PK\5\6")
    struct.pack_into("<I", data, end + 16, data.index(b"PK\1\2") + bytes_further)
    return bytes(data)


CASES = {
    "parent": (of(("../out.jpg", b"x")), "leads out of the folder"),
    "parent inside": (of(("train/../../out.jpg", b"x")), "leads out of the folder"),
    "absolute": (of(("/tmp/out.jpg", b"x")), "leads out of the folder"),
    "drive": (of(("C:/out.jpg", b"x")), "leads out of the folder"),
    "back-slash": (renamed(of(("train-a.jpg", b"x")), b"train-a.jpg", b"train\\a.jpg"), "leads out of the folder"),
    "dot": (of(("train/./a.jpg", b"x")), "leads out of the folder"),
    "double slash": (of(("train//a.jpg", b"x")), "leads out of the folder"),
    "nul": (renamed(of(("a.jpg_b.txt", b"x")), b"a.jpg_b.txt", b"a.jpg\0b.txt"), "not plain text"),
    "line break": (of(("train/a\nb.jpg", b"x")), "not plain text"),
    "link": (of((special("train/link", stat.S_IFLNK | 0o777), b"/etc/passwd")), "a link or a device"),
    "device": (of((special("train/dev", stat.S_IFCHR | 0o666), b"")), "a link or a device"),
    "pipe": (of((special("train/pipe", stat.S_IFIFO | 0o666), b"")), "a link or a device"),
    "case": (of(("train/GOOD.jpg", b"x")), "in case alone"),
    "case of a sharp s": (of(("train/ß.jpg", b"x"), ("train/SS.jpg", b"x")), "in case alone"),
    "file and folder": (of(("train/a", b"x"), ("train/A/b.jpg", b"x")), "a file and a folder of one name"),
    "long name": (of(("train/" + "n" * 300, b"x")), "a name of more than 255 characters"),
    "encrypted": (encrypted(), "encrypted"),
    "another compression": (
        of((special("train/good.jpg"[:-1], 0), b"")).replace(b"\x08\0", b"\x0c\0"),
        "method 12|damaged",
    ),
    "many": (of(*((f"train/{n}", b"") for n in range(1_000))), "1001 entries; at most 1000"),
    "too much": (of(("big.jpg", bytes(1_000_001))), "at most 1000000 are"),
    "overlapping": (overlapping(), "bytes when unpacked|its bytes are another's too"),
    "claims less": (claiming(0), "damaged"),
    "claims more": (claiming(900_000), "damaged"),
    "endless directory": (with_directory_of(2**31), "a directory of"),
    "before the first byte": (directory_said_to_lie(10), "a place before the archive's first byte"),
    "behind the first byte": (directory_said_to_lie(-10), "damaged"),
    "no zip": (b"not a zip file", "another kind of file"),
    "nothing": (b"", "another kind of file"),
    "cut short": (of(("a.jpg", b"x"))[:-30], "another kind of file"),
    "flipped": (stored(b"picture").replace(b"picture", b"pictuRe"), "damaged"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_refused_and_nothing_outside(tmp_path: Path, name: str) -> None:
    data, message = CASES[name]
    archive = tmp_path / "a.zip"
    archive.write_bytes(data)
    (tmp_path / "in" / "out").mkdir(parents=True)
    with pytest.raises(DataError, match=message) as raised:
        unpack(archive, tmp_path / "in" / "out", lambda name: name, LIMITS)
    assert raised.value.message.isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]
    left = list((tmp_path / "in" / "out").rglob("*.jpg"))
    assert "damaged" in message or not left  # Only damage is found while unpacking; whoever asked removes the rest.


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_the_same_name_twice(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(of(("train/good.jpg", b"x")))
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="comes twice"):
        unpack(tmp_path / "a.zip", tmp_path / "out", lambda name: name, LIMITS)


def test_an_overlap_within_the_limits_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(overlapping())
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="its bytes are another's too"):
        unpack(tmp_path / "a.zip", tmp_path / "out", lambda name: name)
