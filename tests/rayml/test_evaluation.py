from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayml.bundle_writer import write_bundle
from rayml.calibration import fit_temperature
from rayml.data import Manifest, UnreadablePictures, scan_labelled
from rayml.errors import DataError
from rayml.evaluation import BATCH, MAX_MATRIX_CLASSES, evaluate, scores
from rayml.metrics import cross_entropy
from rayml.predictor import Predictor
from rayml.progress import Progress
from tests.rayml import small

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(write_bundle(tmp_path_factory.mktemp("bundle") / "best", small.contents()))


def folder_of(root: Path, count: int) -> Path:
    """Pictures whose names go against their order in the classes; lossless, so that the pixels are known."""
    for number, pixels in enumerate(small.pictures(count)):
        path = root / small.CLASSES[number % 3] / f"{count - number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small.png(pixels))
    return root


def test_the_figures_by_hand() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 4.0]])
    labels = [0, 1, 1, 1]
    found = scores(logits, labels, ("a", "b"), temperature=2.0)
    assert (found["accuracy"], found["n"], found["confusion"]) == (0.75, 4, [[1, 0], [1, 2]])
    assert found["loss"] == cross_entropy(logits, labels)
    assert found["per_class"] == {
        "a": {"precision": 0.5, "recall": 1.0, "n": 1},
        "b": {"precision": 1.0, "recall": 2 / 3, "n": 3},
    }
    assert found["ece"] != found["ece_uncalibrated"]
    assert scores(logits, labels, ("a", "b"), 1.0)["ece"] == found["ece_uncalibrated"]


def test_temperature_changes_calibration_alone() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, 400)
    logits = random.normal(size=(400, 3)) * 6
    logits[np.arange(400), labels] += 4
    plain, calibrated = (scores(logits, labels, "abc", t) for t in (1.0, fit_temperature(logits, labels)))
    assert calibrated["ece"] < plain["ece"]
    for name in ("accuracy", "loss", "confusion"):
        assert plain[name] == calibrated[name]


def test_a_folder_is_scored_as_its_logits_are(predictor: Predictor, tmp_path: Path) -> None:
    count = 2 * BATCH + 5
    figures = evaluate(predictor, folder_of(tmp_path, count), QUIET)
    logits = small.head().logits(small.features_of(small.pictures(count)))
    expected = scores(logits, np.arange(count) % 3, small.CLASSES, predictor.bundle.record.temperature)
    assert figures.pop("images_per_s") > 0
    for name in ("accuracy", "n", "confusion", "per_class"):
        assert figures[name] == expected[name]
    for name in ("loss", "ece", "ece_uncalibrated"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-4)


def test_a_class_without_pictures_counts_as_none(predictor: Predictor, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 6)
    for path in (folder / "hat").iterdir():
        path.unlink()
    figures = evaluate(predictor, folder, QUIET)
    assert (figures["n"], figures["per_class"]["hat"]["n"]) == (4, 0)


def test_every_unreadable_picture_is_named(predictor: Predictor, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BATCH + 3)
    (folder / "hat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "shoes" / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 37 pictures cannot be read: hat/broken\.jpg .*; shoes/empty\.png"):
        evaluate(predictor, folder, QUIET)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "nowhere", "no such folder"),
        (lambda root: root, "photos"),
        (lambda root: (root / "train" / "hat").mkdir(parents=True) or root, "expected folders of the classes dress"),
    ],
    ids=["missing", "empty", "a level too high"],
)
def test_folders_that_cannot_be_scored(predictor: Predictor, tmp_path: Path, make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(DataError, match=words):
        evaluate(predictor, make(tmp_path), QUIET)


def test_a_file_beyond_the_limit_is_not_read_whole(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, 3)
    with (folder / "hat" / "large.png").open("wb") as file:
        file.truncate(predictor.limits.max_bytes + 1)
    decoded: list[int] = []
    decode = predictor.decode
    monkeypatch.setattr(predictor, "decode", lambda data: decoded.append(len(data)) or decode(data))
    with pytest.raises(UnreadablePictures, match=r"hat/large\.png .*at most 20971520 bytes"):
        evaluate(predictor, folder, QUIET)
    assert max(decoded) < 20_000


def test_a_photo_that_is_gone_when_its_turn_comes_is_named(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, 3)
    gone = min(folder.rglob("*.png"))

    def scan(root: Path, classes: tuple[str, ...], progress: Progress) -> Manifest:
        found = scan_labelled(root, classes, progress)
        gone.unlink()
        return found

    monkeypatch.setattr("rayml.evaluation.scan_labelled", scan)
    with pytest.raises(UnreadablePictures, match=rf"1 of 3 pictures cannot be read: .*{gone.name} \(No such file"):
        evaluate(predictor, folder, QUIET)


def test_pictures_of_other_sizes_and_kinds_go_through_the_one_preprocessing(
    predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "hat" / "large.jpg"
    path.parent.mkdir()
    Image.fromarray(small.pictures(1, size_px=300)[0]).save(path)
    figures = evaluate(predictor, tmp_path, QUIET)
    (alone,) = predictor.predict([path.read_bytes()])
    assert figures["accuracy"] == float(alone.label == "hat")


def test_of_many_classes_the_frequent_mistakes_are_told() -> None:
    count = MAX_MATRIX_CLASSES + 1
    logits = np.eye(count)
    logits[3] = logits[4]
    names = [f"class {number}" for number in range(count)]
    found = scores(logits, np.arange(count), names, 1.0)
    assert "confusion" not in found and found["mistaken"] == [["class 3", "class 4", 1]]
    assert found["per_class"]["class 4"] == {"precision": 0.5, "recall": 1.0, "n": 1}
