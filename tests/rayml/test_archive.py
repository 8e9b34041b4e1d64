from __future__ import annotations

import errno
import zipfile
from pathlib import Path
from typing import NoReturn

import pytest

from rayml.archive import ArchiveLimits, unpack
from rayml.errors import DataError, RaymlError


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def test_what_is_wanted_is_written(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", top__a__1=b"one", top__b=b"two" * 100_000, top__c=b"three")
    (tmp_path / "out").mkdir()
    told: list[int] = []
    names = {"top/a/1": "a/1", "top/b": "b"}
    assert unpack(archive, tmp_path / "out", names.get, advance=told.append) == 2
    assert (tmp_path / "out/a/1").read_bytes() == b"one" and (tmp_path / "out/b").stat().st_size == 300_000
    assert not (tmp_path / "out/c").exists() and sum(told) == 3


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ArchiveLimits(max_entries=2), "3 entries; at most 2"),
        (ArchiveLimits(max_bytes=5), "6 bytes when unpacked; at most 5"),
        (ArchiveLimits(max_name=4), "a name of more than 4 characters"),
    ],
)
def test_limits(tmp_path: Path, limits: ArchiveLimits, message: str) -> None:
    archive = zipped(tmp_path / "a.zip", one=b"12", two=b"34", three=b"56")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=message):
        unpack(archive, tmp_path / "out", lambda name: name, limits)
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", one=b"12")
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(RaymlError, match="cannot be written"):
        unpack(archive, tmp_path / "out", lambda name: name)


def test_an_archive_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the disk that is written to that is to blame."""
    archive = zipped(tmp_path / "a.zip", one=b"12")
    (tmp_path / "out").mkdir()

    def broken(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", broken)
    with pytest.raises(RaymlError, match=r"a\.zip cannot be read \(Input/output error\)") as raised:
        unpack(archive, tmp_path / "out", lambda name: name)
    assert raised.value.exit_code == 1
    with pytest.raises(RaymlError, match=r"out cannot be read \(Is a directory\)"):
        unpack(tmp_path / "out", tmp_path / "out", lambda name: name)
