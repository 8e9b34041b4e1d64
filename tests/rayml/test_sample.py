from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayml import sample
from rayml.clothing import CLASSES
from rayml.errors import RaymlError, UsageError
from rayml.sample import draw, sample_seed, write_sample

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

# Mean brightness of each quarter of draw(label, 7), row by row. A picture drawn with other random numbers is far from
# it; the last bit of a sine, which may differ between platforms, moves it by much less than the tolerance.
QUARTERS = {
    "dress": [88.5, 54.6, 128.6, 93.2],
    "hat": [121.9, 102.9, 92.2, 78.1],
    "longsleeve": [188.6, 191.1, 134.4, 132.7],
    "outwear": [118.2, 106.1, 137.1, 120.2],
    "pants": [157.5, 168.8, 154.5, 171.3],
    "shirt": [96.1, 88.7, 85.4, 85.2],
    "shoes": [105.0, 88.9, 101.1, 85.2],
    "shorts": [116.2, 99.2, 120.2, 105.1],
    "skirt": [119.7, 128.2, 135.3, 142.2],
    "t-shirt": [58.7, 56.4, 68.7, 59.5],
}
QUARTERS_TOLERANCE = 0.5


def pixels(label: str, seed: int, size_px: int = 96) -> Pixels:
    return np.asarray(draw(label, seed, size_px))


def quarters(picture: Pixels) -> list[float]:
    half = len(picture) // 2
    return [round(float(value), 1) for value in picture.reshape(2, half, 2, half, 3).mean(axis=(1, 3, 4)).ravel()]


def test_the_classes_are_the_ten_of_the_clothing_data_in_order() -> None:
    assert len(CLASSES) == 10
    assert list(CLASSES) == sorted(CLASSES)


@pytest.mark.parametrize("label", CLASSES)
def test_a_drawing_is_what_its_seed_says_on_every_platform(label: str) -> None:
    assert quarters(pixels(label, 7)) == pytest.approx(QUARTERS[label], abs=QUARTERS_TOLERANCE)


@pytest.mark.parametrize("label", CLASSES)
def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(label: str) -> None:
    assert np.array_equal(pixels(label, 3), pixels(label, 3))
    assert not np.array_equal(pixels(label, 3), pixels(label, 4))


def test_the_hundred_first_drawings_of_a_class_all_differ() -> None:
    digests = {hashlib.sha256(draw("hat", seed, 32).tobytes()).digest() for seed in range(100)}
    assert len(digests) == 100


def test_classes_do_not_share_their_random_numbers() -> None:
    # Shirt and longsleeve are drawn alike: with one generator for both they would have the same colours.
    corners = np.array([[pixels(label, seed)[:8, :8].mean() for seed in range(5)] for label in ("shirt", "longsleeve")])
    assert np.abs(corners[0] - corners[1]).max() > 10


@pytest.mark.parametrize("size_px", [16, 33, 96, 150])
def test_a_drawing_has_the_size_asked_for(size_px: int) -> None:
    picture = draw("dress", 1, size_px)
    assert (picture.size, picture.mode) == ((size_px, size_px), "RGB")


def test_sizes_show_the_same_scene() -> None:
    small = np.asarray(draw("pants", 5, 48), np.float32)
    large = np.asarray(draw("pants", 5, 96).resize((48, 48), Image.Resampling.BOX), np.float32)
    other = np.asarray(draw("pants", 6, 48), np.float32)
    assert np.abs(small - large).mean() < 0.5 * np.abs(small - other).mean()


@pytest.mark.parametrize(("label", "seed", "size_px"), [("sock", 1, 96), ("hat", -1, 96), ("hat", 1, 15)])
def test_draw_refuses_what_it_cannot_draw(label: str, seed: int, size_px: int) -> None:
    with pytest.raises(UsageError, match="Received"):
        draw(label, seed, size_px)


def test_write_sample_writes_both_splits_of_every_class(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "sample"
    assert write_sample(folder, train_per_class=2, validation_per_class=1) == 30
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}
    assert names == {f"train/{c}/{c}-000{n}.jpg" for c in CLASSES for n in (1, 2)} | {
        f"validation/{c}/{c}-0001.jpg" for c in CLASSES
    }
    with Image.open(folder / "validation/hat/hat-0001.jpg") as picture:
        assert picture.format == "JPEG"
        written = np.asarray(picture, np.float32)
    drawn = pixels("hat", sample_seed(sample.SAMPLE_SEED, "validation", 0)).astype(np.float32)
    assert np.abs(written - drawn).mean() < 8
    assert [path.name for path in folder.parent.iterdir()] == ["sample"]


def test_write_sample_is_the_same_twice_and_differs_by_seed(tmp_path: Path) -> None:
    def digests(name: str, seed: int) -> set[str]:
        write_sample(tmp_path / name, train_per_class=1, validation_per_class=1, seed=seed)
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).rglob("*.jpg")}

    first = digests("a", 1)
    assert len(first) == 20
    assert digests("b", 1) == first
    assert not digests("c", 2) & first


def test_write_sample_fills_an_empty_folder(tmp_path: Path) -> None:
    write_sample(tmp_path / "empty", train_per_class=1, validation_per_class=1)
    (tmp_path / "there").mkdir()
    write_sample(tmp_path / "there", train_per_class=1, validation_per_class=1)
    assert len(list((tmp_path / "there").rglob("*.jpg"))) == 20


def test_write_sample_into_the_folder_of_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_sample(Path(), train_per_class=1, validation_per_class=1)
    assert sorted(path.name for path in Path().iterdir()) == ["train", "validation"]
    assert len(list(Path().rglob("*.jpg"))) == 20


def test_write_sample_leaves_a_folder_that_holds_something_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="empty folder"):
        write_sample(tmp_path)
    with pytest.raises(UsageError, match="empty folder"):
        write_sample(tmp_path / "photo.jpg")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("photo.jpg", b"mine")]


def test_write_sample_refuses_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="lead in a circle"):
        write_sample(tmp_path / "loop")


@pytest.mark.parametrize(
    "numbers",
    [
        {"train_per_class": 0},
        {"validation_per_class": 0},
        {"train_per_class": 2**20 + 1},
        {"seed": -1},
        {"seed": 2**19},
    ],
)
def test_write_sample_refuses_numbers_out_of_range(tmp_path: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="Received"):
        write_sample(tmp_path / "sample", **numbers)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = 0

    def interrupted(label: str, seed: int) -> Image.Image:
        nonlocal drawn
        drawn += 1
        if drawn == 7:
            raise KeyboardInterrupt
        return draw(label, seed)

    monkeypatch.setattr(sample, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "sample", train_per_class=1, validation_per_class=1)
    assert drawn == 7
    assert list(tmp_path.iterdir()) == []


def test_the_sample_has_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "any").mkdir()
    write_sample(tmp_path / "sample", train_per_class=1, validation_per_class=1)
    assert (tmp_path / "sample").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RaymlError, match="cannot be written"):
        write_sample(tmp_path / "file" / "sample", train_per_class=1, validation_per_class=1)


def test_splits_and_samples_never_share_a_seed() -> None:
    last = sample.SEEDS_PER_SPLIT - 1
    assert sample_seed(1, "train", last) < sample_seed(1, "validation", 0)
    assert sample_seed(1, "validation", last) < sample_seed(2, "train", 0)
    assert sample_seed(2**19 - 1, "validation", last) < sample.SAMPLE_SEEDS_END
