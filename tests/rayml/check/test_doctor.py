from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayml.check import doctor
from rayml.check.doctor import check_data, quick_check
from rayml.data import scan
from rayml.predictor import Predictor
from rayml.progress import Progress
from tests.rayml.check.folder import checked, drawn, found, kinds
from tests.serving.tiny_bundle import write_tiny_bundle


def test_nothing_is_wrong(sound: Path) -> None:
    report = checked(sound)
    assert report.findings == ()
    assert report.n == 44 and report.splits["train"] == {"hat": 20, "shoes": 20}
    assert quick_check(scan(sound)) == ()


def test_what_was_planted_is_found(photos: Path) -> None:
    shutil.copy(photos / "train/hat/0.jpg", photos / "validation/hat/copy.jpg")
    shutil.copy(photos / "train/hat/1.jpg", photos / "train/shoes/copy.jpg")
    drawn("shoes", 3).save(photos / "validation/shoes/again.jpg", quality=60)
    (photos / "train/shoes/half.jpg").write_bytes((photos / "train/shoes/0.jpg").read_bytes()[:900])
    report = checked(photos)
    assert kinds(report) == ["truncated", "same_in_two_splits", "same_under_two_labels", "similar_in_two_splits"]
    assert found(report, "same_in_two_splits")[0].paths == ("train/hat/0.jpg", "validation/hat/copy.jpg")
    assert found(report, "similar_in_two_splits")[0].paths == ("train/shoes/3.jpg", "validation/shoes/again.jpg")
    # The quick part decodes nothing.
    assert [one.kind for one in quick_check(scan(photos))] == ["same_in_two_splits", "same_under_two_labels"]


def test_the_quick_part_says_nothing_of_notes(photos: Path) -> None:
    (photos / "README.md").touch()
    drawn("hat", 0).resize((40, 40)).save(photos / "train/hat/small.png")
    assert [one.kind for one in quick_check(scan(photos))] == ["tiny"]
    assert {"tiny", "unused_file"} <= set(kinds(checked(photos)))


def test_the_quick_part_has_few_photos_in_flight(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Pool(ThreadPoolExecutor):
        def map(self, work: Any, *items: Any, **options: Any) -> Any:
            (given,) = (list(one) for one in items)
            sizes.append(len(given))
            return super().map(work, given, **options)

    monkeypatch.setattr(doctor, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr("rayml.pool._IN_FLIGHT", 10)
    assert quick_check(scan(sound)) == ()
    assert sizes == [10, 10, 10, 10, 4]


def test_the_quick_part_shows_how_far_it_is_where_it_takes_long(
    sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick_check(scan(sound), Progress())
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("rayml.progress.LINE_EVERY_S", 0.0)
    quick_check(scan(sound), Progress())
    assert "reading headers: 44/44 photos" in capsys.readouterr().err


def test_a_bundle_of_other_classes_is_told(sound: Path, tmp_path: Path) -> None:
    predictor = Predictor(write_tiny_bundle(tmp_path / "bundle"))
    assert kinds(check_data(sound, Progress(quiet=True), predictor)) == ["unknown_class"]


def test_the_quick_part_of_a_split_off_validation(photos: Path) -> None:
    shutil.copy(photos / "train/hat/0.jpg", photos / "train/hat/copy.jpg")
    found_there = quick_check(scan(photos / "train", validation_fraction=0.2))
    assert "duplicates" in [one.kind for one in found_there]
    assert not [one for one in found_there if one.severity == "error"]
