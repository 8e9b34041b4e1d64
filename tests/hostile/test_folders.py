"""Folders as disks have them: links that go round, pipes, files that cannot be read, odd names."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayml.data import scan, scan_labelled
from rayml.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and permissions of POSIX")


NOBODY = 65_534


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fill(tmp_path / "data")


def fill(root: Path) -> Path:
    for split in ("train", "validation"):
        for label in ("hat", "shoes"):
            folder = root / split / label
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_text(f"{split} {label}")
    return root


@pytest.fixture
def shared_data() -> Iterator[Path]:
    """The same where other users of the machine may look; pytest's own folders and $TMPDIR may forbid it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield fill(Path(folder) / "data")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Permissions do not count for root: be nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_linked_files_and_folders_are_followed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.bin").write_text("a photo")
    (data / "train/hat/link.jpg").symlink_to(tmp_path / "elsewhere.bin")
    (data / "train/hats").symlink_to(data / "train/hat", target_is_directory=True)
    (data / "validation/hats").symlink_to(data / "validation/hat", target_is_directory=True)
    manifest = scan(data)
    assert manifest.classes == ("hat", "hats", "shoes")
    assert manifest.counts()["train"] == {"hat": 2, "hats": 2, "shoes": 1}


def test_loops_do_not_hang(data: Path) -> None:
    (data / "train/hat/self").symlink_to("self")
    (data / "train/hat/up").symlink_to(data, target_is_directory=True)
    (data / "train/itself").symlink_to("itself")
    (data / "round").symlink_to(data, target_is_directory=True)
    manifest = scan(data)
    assert manifest.ignored == ("round/", "train/hat/self", "train/hat/up/", "train/itself")
    assert len(manifest.photos) == 4


def test_class_folder_that_leads_back_is_an_empty_class(data: Path) -> None:
    (data / "train/back").symlink_to(data / "train", target_is_directory=True)
    with pytest.raises(DataError, match=r"train/back: expected photos .*Received: an empty class folder"):
        scan(data)


def test_photo_that_links_to_itself_is_named(data: Path) -> None:
    (data / "train/hat/loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(DataError, match=r"train/hat/loop\.jpg: expected something readable"):
        scan(data)


def test_photo_that_links_nowhere_is_named(data: Path) -> None:
    (data / "train/hat/gone.jpg").symlink_to("/no/such/file.jpg")
    with pytest.raises(DataError, match=r"train/hat/gone\.jpg: expected something readable"):
        scan(data)


def test_root_that_links_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"loop: expected a folder of photos"):
        scan(tmp_path / "loop")


def test_unreadable_photo_is_named(shared_data: Path) -> None:
    (shared_data / "train/hat/1.jpg").chmod(0)
    message = r"hat/1\.jpg: expected something readable\. Received: Permission denied"
    with ordinary_user(), pytest.raises(DataError, match=message) as raised:
        scan(shared_data)
    assert raised.value.hint == "Allow reading it, or move it away."
    with ordinary_user(), pytest.raises(DataError, match=message):
        scan_labelled(shared_data / "train", ("hat", "shoes"))


@pytest.mark.parametrize("place", ["", "train", "train/hat"])
@pytest.mark.parametrize("mode", [0o000, 0o444])  # The second: names can be listed, but nothing behind them.
def test_unreadable_folder_is_named(shared_data: Path, place: str, mode: int) -> None:
    folder = shared_data / place
    folder.chmod(mode)
    try:
        message = f"{folder}.*: expected something readable. Received: Permission denied"
        with ordinary_user(), pytest.raises(DataError, match=message):
            scan(shared_data)
    finally:
        folder.chmod(0o755)


def test_pipes_and_devices_are_never_opened(data: Path) -> None:
    os.mkfifo(data / "train/hat/pipe.jpg")  # Opening it would wait for a writer for ever.
    (data / "train/hat/endless.png").symlink_to("/dev/zero")
    assert scan(data).ignored == ("train/hat/endless.png", "train/hat/pipe.jpg")


def test_odd_file_names(data: Path) -> None:
    names = [
        b"\xff\xfe.jpg",
        b"new\nline.jpg",
        b"-rf.jpg",
        b"$(echo).jpg",
        "Größe 😀.jpg".encode(),
        b"n" * 251 + b".jpg",
    ]
    for number, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(data / "train/hat") + b"/" + name)).write_text(str(number))
    manifest = scan(data)
    assert manifest.counts()["train"]["hat"] == 1 + len(names)
    assert json.loads(json.dumps([photo.path for photo in manifest.photos])) == [
        photo.path for photo in manifest.photos
    ]
    assert all((data / photo.path).is_file() for photo in manifest.photos)
    assert len(manifest.digest) == 64


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines", b"escape\x1b[31m", b"x" * 201])
def test_class_names_that_cannot_be_shown_are_refused(data: Path, name: bytes) -> None:
    folder = Path(os.fsdecode(os.fsencode(data / "train") + b"/" + name))
    folder.mkdir()
    (folder / "1.jpg").write_text("x")
    with pytest.raises(DataError, match=r"class name of at most 200 printable characters\. Received: '") as raised:
        scan(data)
    assert raised.value.message.isprintable()


def test_the_same_picture_in_two_splits_is_found(data: Path) -> None:
    (data / "validation/hat/2.jpg").write_text("train hat")
    (group,) = scan(data).straddling()
    assert [photo.path for photo in group] == ["train/hat/1.jpg", "validation/hat/2.jpg"]
