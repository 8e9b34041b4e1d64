from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from rayml.clothing import CLASSES
from rayml.data import UnreadablePictures, scan
from rayml.errors import DataError, RaymlError
from rayml.images import load_pixels
from rayml.pixels import GatheredPixels, PixelRecipe, gather_pixels
from rayml.sample import write_sample

SIZE = 32


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pixels") / "photos"
    write_sample(folder, train_per_class=7, validation_per_class=2)
    return folder


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "photos"))


def recipe(photos: Path, size: int = SIZE) -> PixelRecipe:
    return PixelRecipe.of(scan(photos), size, photos.parent / "pixels")


def test_both_splits_are_what_serving_would_see(photos: Path) -> None:
    """Seventy pictures to train on: more than are decoded at a time."""
    counted: list[int] = []
    data = gather_pixels(recipe(photos), lambda count=1, note="": counted.append(count))
    manifest = scan(photos)
    for split, pixels, labels in (
        ("train", data.train_pixels, data.train_labels),
        ("validation", data.validation_pixels, data.validation_labels),
    ):
        chosen = manifest.split(split)
        expected = np.stack([load_pixels((photos / photo.path).read_bytes(), SIZE) for photo in chosen])
        np.testing.assert_array_equal(pixels, expected)
        assert isinstance(pixels, np.memmap)
        assert [CLASSES[label] for label in labels] == [photo.label for photo in chosen]
    assert (data.classes, sum(counted), max(counted)) == (CLASSES, 90, 64)
    assert data.recipe.bytes == 90 * SIZE * SIZE * 3


def test_they_travel_as_their_recipe_and_are_decoded_once(photos: Path) -> None:
    data = gather_pixels(recipe(photos))
    travelled = pickle.dumps(data)
    assert len(travelled) < data.recipe.bytes / 10
    files = {path: path.stat().st_mtime_ns for path in (photos.parent / "pixels").rglob("*.npy")}
    shutil.rmtree(photos)  # Nothing is read again.
    again = pickle.loads(travelled)
    assert isinstance(again, GatheredPixels)
    np.testing.assert_array_equal(again.train_pixels, data.train_pixels)
    assert again.digest == data.digest
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_what_decides_the_pixels_decides_their_place(photos: Path) -> None:
    first = recipe(photos)
    assert recipe(photos, 40).digest != first.digest
    picture = next((photos / "train" / "hat").iterdir())
    picture.rename(picture.with_name("zzz.png"))  # Another order, hence other rows.
    assert recipe(photos).digest != first.digest


def test_damaged_files_are_made_again(photos: Path) -> None:
    data = gather_pixels(recipe(photos))
    expected = np.array(data.train_pixels)
    for path in (photos.parent / "pixels").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(gather_pixels(recipe(photos)).train_pixels, expected)


def test_pictures_that_cannot_be_decoded_are_all_named(photos: Path) -> None:
    for name in ("train/hat/a.jpg", "validation/dress/b.png"):
        (photos / name).write_bytes(b"no picture")
    with pytest.raises(UnreadablePictures, match="2 of 92 pictures cannot be read") as caught:
        gather_pixels(recipe(photos))
    assert list(caught.value.reasons) == ["train/hat/a.jpg", "validation/dress/b.png"]
    assert list((photos.parent / "pixels").rglob("*.npy")) == []


def test_a_picture_that_has_changed_is_no_picture_of_the_set(photos: Path) -> None:
    chosen = recipe(photos)
    first, second = sorted((photos / "train" / "hat").iterdir())[:2]
    shutil.copy(first, second)
    with pytest.raises(DataError, match=f"{second.name} must stay as it was"):
        gather_pixels(chosen)
    second.unlink()
    with pytest.raises(DataError, match=f"{second.name} must stay as it was .* No such file"):
        gather_pixels(chosen)


def test_a_full_disk(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RaymlError, match="No space left on device"):
        gather_pixels(recipe(photos))
    assert list((photos.parent / "pixels").rglob("*.npy")) == []
