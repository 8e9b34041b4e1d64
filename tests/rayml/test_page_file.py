from __future__ import annotations

import errno
import os
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
