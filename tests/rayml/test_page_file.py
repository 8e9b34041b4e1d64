from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from rayml.errors import UsageError
from rayml.page_file import check_page_file, write_page_file


@pytest.mark.parametrize("name", [".", "", "/", "..", "none/page.html", "file/page.html"])
def test_what_can_be_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for refuse in (check_page_file, lambda path, option: write_page_file(path, option, b"")):
        with pytest.raises(UsageError, match=r"--out must be a file that can be written\. Received: ") as caught:
            refuse(Path(name), "--out")
        assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    for text in (b"first", b"second"):
        check_page_file(page, "--out")
        write_page_file(page, "--out", text)
    assert page.read_bytes() == b"second"

    def full(path: Path, target: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match="No space left on device") as caught:
        write_page_file(page, "--out", b"third")
    assert caught.value.exit_code == 1  # A full disk is no wrong usage.
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"second"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no plain file"):
        write_page_file(tmp_path / "pipe", "--out", b"page")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("mode", [0o600, 0o440, 0o666])
def test_a_file_keeps_its_rights(tmp_path: Path, mode: int) -> None:
    page, other = tmp_path / "page.html", tmp_path / "other.html"
    page.touch()
    page.chmod(mode)
    write_page_file(page, "--out", b"page")
    assert (page.read_bytes(), stat.S_IMODE(page.stat().st_mode)) == (b"page", mode)
    write_page_file(other, "--out", b"page")
    (tmp_path / "any").touch()
    assert other.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, content in (("there", b"old"), ("new", None)):
        target, link = tmp_path / "folder" / name, tmp_path / f"{name}.html"
        if content:
            target.write_bytes(content)
        link.symlink_to(target)
        write_page_file(link, "--out", b"page")
        assert link.is_symlink() and target.read_bytes() == b"page"
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["new", "there"]
    (tmp_path / "loop").symlink_to("loop")
    if sys.version_info < (3, 13):  # There the file takes the loop's place.
        with pytest.raises(UsageError, match="--out must be a file that can be written"):
            write_page_file(tmp_path / "loop", "--out", b"page")


def test_a_link_that_is_not_to_be_followed_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "page.html").symlink_to("mine")
    write_page_file(tmp_path / "page.html", "--out", b"page", follow=False)
    assert not (tmp_path / "page.html").is_symlink() and (tmp_path / "page.html").read_bytes() == b"page"
    assert (tmp_path / "mine").read_bytes() == b"mine"
