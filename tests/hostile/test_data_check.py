"""The data doctor on what disks hold: it goes on where a search stops, and names all of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from rayml.check.doctor import check_data
from rayml.check.findings import Report
from rayml.check.page import page
from rayml.progress import Progress
from tests.hostile.pictures import chunk, encoded, jpeg_header, noisy, png_header
from tests.hostile.test_folders import ordinary_user, shared_data

__all__ = ["shared_data"]  # A fixture.

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and permissions of POSIX")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, place in enumerate(("train/hat", "train/shoes", "validation/hat", "validation/shoes")):
        folder = tmp_path / "data" / place
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(encoded(noisy(90, 90, number), "PNG"))
    return tmp_path / "data"


def findings(report: Report) -> set[tuple[str, str]]:
    ignored = {"few_photos", "similar", "similar_in_two_splits", "similar_under_two_labels"}
    return {(one.kind, path) for one in report.findings if one.kind not in ignored for path in one.paths}


def check(data: Path) -> Report:
    report = check_data(data, Progress(quiet=True))
    assert json.loads(json.dumps(report.to_json()))["findings"] is not None
    page(report, data)  # Whatever was found can be shown.
    return report


def test_loops_and_links_to_nothing(data: Path) -> None:
    (data / "train/hat/self").symlink_to("self")
    (data / "train/hat/up").symlink_to(data, target_is_directory=True)
    (data / "train/hat/loop.jpg").symlink_to("loop.jpg")
    (data / "train/hat/gone.jpg").symlink_to("/no/such/file.jpg")
    (data / "train/itself").symlink_to("itself")
    (data / "train/back").symlink_to(data / "train", target_is_directory=True)
    (data / "round").symlink_to(data, target_is_directory=True)
    assert findings(check(data)) == {
        ("broken_link", "train/hat/gone.jpg"),
        ("broken_link", "train/hat/loop.jpg"),
        ("folder_in_class", "train/back/hat"),
        ("folder_in_class", "train/back/shoes"),
        ("link_loop", "round"),
        ("link_loop", "train/back"),
        ("link_loop", "train/back/back"),
        ("link_loop", "train/hat/self"),
        ("link_loop", "train/hat/up"),
        ("link_loop", "train/itself"),
        ("link_loop", "train/back/itself"),
        ("missing_class", "train/back"),
        ("missing_class", "validation/back"),
    }


def test_pipes_and_devices_are_never_opened(data: Path) -> None:
    os.mkfifo(data / "train/hat/pipe.jpg")
    (data / "train/hat/endless.png").symlink_to("/dev/zero")
    assert findings(check(data)) == {("unused_file", "train/hat/pipe.jpg"), ("unused_file", "train/hat/endless.png")}


def test_bombs(data: Path) -> None:
    bombs = {
        "flat.png": png_header(30_000, 30_000, 1, 0) + chunk(b"IDAT", bytes(100)) + chunk(b"IEND", b""),
        "wide.jpg": jpeg_header(65_500, 65_500),
        "long.png": png_header(2_000_000, 1, 8, 0) + chunk(b"IDAT", bytes(100)) + chunk(b"IEND", b""),
    }
    for name, content in bombs.items():
        (data / "train/hat" / name).write_bytes(content)
    assert {path for kind, path in findings(check(data)) if kind == "too_large"} == {
        f"train/hat/{name}" for name in bombs
    }


@pytest.mark.parametrize("name", [b"\xff\xfe.jpg", b"new\nline.jpg", b"-rf.jpg", b"<script>.jpg", b"\x1b[31m.jpg"])
def test_odd_names_of_broken_pictures(data: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(data / "train/hat") + b"/" + name)).write_bytes(b"not a picture at all")
    assert findings(check(data)) == {("unsupported_format", "train/hat/" + os.fsdecode(name))}


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines", b"escape\x1b[31m"])
def test_class_names_that_cannot_be_shown(data: Path, name: bytes) -> None:
    Path(os.fsdecode(os.fsencode(data / "train") + b"/" + name)).mkdir()
    assert findings(check(data)) == {("class_name", "train/" + os.fsdecode(name))}


def test_what_may_not_be_read(shared_data: Path) -> None:
    data = shared_data
    (data / "train/hat/1.jpg").chmod(0)
    (data / "validation/shoes").chmod(0)
    try:
        with ordinary_user():
            found = findings(check(data))
    finally:
        (data / "validation/shoes").chmod(0o755)
    assert {("unreadable", "train/hat/1.jpg"), ("unreadable", "validation/shoes")} <= found
