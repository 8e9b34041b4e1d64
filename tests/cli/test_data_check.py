"""`rayml data check`: what it prints, writes and ends with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rayml.cli.data import data as command
from rayml.errors import BundleError, DataError, UsageError
from tests.rayml.check.folder import write_sound
from tests.serving.tiny_bundle import write_tiny_bundle


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "photos")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, ["check", *map(str, arguments)])


def test_nothing_is_wrong(photos: Path) -> None:
    done = run(photos)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("44 photos in 2 classes: 0 errors, 0 warnings, 0 notes.\n")
    assert "check: 44/44 photos" in done.stderr


def test_errors_end_with_1_and_warnings_where_asked(photos: Path) -> None:
    (photos / "train/hat/0.jpg").rename(photos / "train/hat/0.png")
    assert run(photos).exit_code == 0
    assert run(photos, "--strict").exit_code == 1
    shutil.copy(photos / "train/hat/1.jpg", photos / "validation/hat/copy.jpg")
    done = run(photos, "--json", "--html", photos / "check.html")
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert (answer["n"], answer["classes"], answer["errors"], answer["warnings"]) == (45, ["hat", "shoes"], 1, 1)
    assert answer["findings"][0] == {
        "kind": "same_in_two_splits",
        "severity": "error",
        "paths": ["train/hat/1.jpg", "validation/hat/copy.jpg"],
        "detail": "the same file in train and validation: what is measured there is too good",
    }
    assert "<figure>" in (photos / "check.html").read_text()


def test_wrong_use(photos: Path, tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "nowhere").exception, DataError)
    assert isinstance(run(photos, "--bundle", photos).exception, BundleError)


@pytest.mark.parametrize("html", [".", "", "/", "none/check.html"])
def test_a_page_that_cannot_be_written_is_refused_before_the_check(photos: Path, html: str) -> None:
    done = run(photos, "--html", html)
    assert isinstance(done.exception, UsageError) and "--html must be a file" in done.exception.message
    assert "photos" not in done.stderr


def test_with_a_bundle(photos: Path, tmp_path: Path) -> None:
    done = run(photos, "--bundle", write_tiny_bundle(tmp_path / "bundle"))
    assert done.exit_code == 0
    assert "the bundle does not know hat, shoes" in done.stdout
