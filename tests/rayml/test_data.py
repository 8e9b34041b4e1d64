from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from rayml.data import Manifest, Photo, UnreadablePictures, scan, scan_labelled
from rayml.errors import DataError, UsageError
from rayml.progress import Progress


def put(root: Path, *names: str, content: str | None = None) -> Path:
    """Files below a folder; the manifest looks at bytes only, so that a name will do as a content."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name if content is None else content)
    return root


def two_folders(root: Path) -> Path:
    return put(
        root,
        "train/hat/b.jpg",
        "train/hat/a.PNG",
        "train/shoes/c.jpeg",
        "validation/hat/d.webp",
        "validation/shoes/e.JPG",
    )


def one_folder(root: Path, per_class: int = 10, prefix: str = "") -> Path:
    names = [f"{prefix}{label}/{number}.jpg" for label in ("hat", "pants", "shoes") for number in range(per_class)]
    return put(root, *names)


def by_content(manifest: Manifest) -> dict[tuple[str, str], str]:
    return {(photo.label, photo.sha256): photo.split for photo in manifest.photos}


# Two folders


def test_two_folders(tmp_path: Path) -> None:
    manifest = scan(two_folders(tmp_path))
    assert manifest.root == tmp_path
    assert manifest.classes == ("hat", "shoes")
    assert [photo.path for photo in manifest.photos] == [
        "train/hat/a.PNG",
        "train/hat/b.jpg",
        "train/shoes/c.jpeg",
        "validation/hat/d.webp",
        "validation/shoes/e.JPG",
    ]
    assert manifest.ignored == ()
    assert manifest.counts() == {"train": {"hat": 2, "shoes": 1}, "validation": {"hat": 1, "shoes": 1}}
    assert manifest.split("validation") == manifest.photos[3:]
    content = hashlib.sha256(b"train/hat/a.PNG").hexdigest()
    assert manifest.photos[0] == Photo("train/hat/a.PNG", "hat", "train", content)


def test_root_may_be_text_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_folders(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert scan("data") == scan(tmp_path / "data")


def test_classes_are_what_the_folders_say(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{label}/1.jpg" for split in ("train", "validation") for label in ("Zoë", "b c", "10")))
    assert scan(tmp_path).classes == ("10", "Zoë", "b c")


def test_what_is_not_used_is_listed(tmp_path: Path) -> None:
    put(two_folders(tmp_path), "README.md", "test/hat/x.jpg", "train/list.csv", "train/hat/notes.txt")
    put(tmp_path, "train/hat/more/deep.jpg", "train/shoes/archive.jpg/x", "validation/hat/noending")
    manifest = scan(tmp_path)
    assert manifest.ignored == (
        "README.md",
        "test/",
        "train/hat/more/",
        "train/hat/notes.txt",
        "train/list.csv",
        "train/shoes/archive.jpg/",
        "validation/hat/noending",
    )
    assert len(manifest.photos) == 5


def test_hidden_files_are_passed_over_in_silence(tmp_path: Path) -> None:
    hidden = [".DS_Store", "train/.DS_Store", "train/hat/._a.jpg", "train/.cache/x.jpg", "train/__MACOSX/hat/._a.jpg"]
    hidden += ["lost+found/x.jpg", "train/lost+found/x.jpg"]  # What ext4 puts into a new volume.
    manifest = scan(put(two_folders(tmp_path), *hidden))
    assert manifest.ignored == ()
    assert len(manifest.photos) == 5


def test_large_photo_is_hashed_whole(tmp_path: Path) -> None:
    two_folders(tmp_path)
    content = bytes(range(256)) * 10_000  # More than two blocks.
    (tmp_path / "train/hat/a.PNG").write_bytes(content)
    assert scan(tmp_path).photos[0].sha256 == hashlib.sha256(content).hexdigest()


def test_reading_many_photos_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_folder(tmp_path, per_class=3, prefix="train/")
    put(tmp_path, *(f"validation/{label}/0.jpg" for label in ("hat", "pants", "shoes")))
    monkeypatch.setattr("rayml.pool._IN_FLIGHT", 4)
    monkeypatch.setattr("rayml.progress.LINE_EVERY_S", 0.0)
    manifest = scan(tmp_path, progress=Progress())
    assert [photo.sha256 for photo in manifest.photos] == [
        hashlib.sha256(photo.path.encode()).hexdigest() for photo in manifest.photos
    ]
    said = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        *(f"reading train: {number}/9 photos" for number in range(1, 10)),
        *(f"reading validation: {number}/3 photos" for number in range(1, 4)),
    ]


# The manifest


def test_digest_is_of_split_label_and_content(tmp_path: Path) -> None:
    first = scan(two_folders(tmp_path / "first"))
    second_root = two_folders(tmp_path / "second")
    (second_root / "train/hat/a.PNG").rename(second_root / "train/hat/z.jpg")
    assert len(first.digest) == 64
    assert scan(second_root).digest == first.digest
    (second_root / "train/hat/z.jpg").rename(second_root / "train/shoes/z.jpg")
    relabelled = scan(second_root).digest
    (second_root / "train/shoes/z.jpg").rename(second_root / "validation/hat/z.jpg")
    moved = scan(second_root).digest
    (second_root / "validation/hat/z.jpg").write_text("something else")
    assert len({first.digest, relabelled, moved, scan(second_root).digest}) == 4


def test_digest_is_a_known_one() -> None:
    photos = (Photo("b", "hat", "train", "f" * 64), Photo("a", "hat", "train", "0" * 64))
    text = f'[["train", "hat", "{"0" * 64}"], ["train", "hat", "{"f" * 64}"]]'
    assert Manifest(Path(), ("hat",), photos, ()).digest == hashlib.sha256(text.encode()).hexdigest()


def test_without(tmp_path: Path) -> None:
    manifest = scan(put(two_folders(tmp_path), "README.md"))
    left = manifest.without(["train/hat/b.jpg"])
    assert [photo.path for photo in left.photos] == [
        photo.path for photo in manifest.photos if photo.path != "train/hat/b.jpg"
    ]
    assert left.ignored == ("README.md", "train/hat/b.jpg")
    assert left.digest != manifest.digest
    assert manifest.without([]) == manifest


def test_without_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Received: train/hat/x\.jpg"):
        scan(two_folders(tmp_path)).without(["train/hat/x.jpg"])


def test_without_refuses_to_empty_a_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"each class for validation\. Received: none of hat"):
        scan(two_folders(tmp_path)).without({"validation/hat/d.webp"})


def test_straddling(tmp_path: Path) -> None:
    two_folders(tmp_path)
    assert scan(tmp_path).straddling() == ()
    put(tmp_path, "train/hat/x.jpg", "train/hat/y.jpg", "validation/shoes/z.jpg", content="same")
    put(tmp_path, "train/hat/v.jpg", "train/hat/w.jpg", content="only in train")
    assert [[photo.path for photo in group] for group in scan(tmp_path).straddling()] == [
        ["train/hat/x.jpg", "train/hat/y.jpg", "validation/shoes/z.jpg"]
    ]


# A fraction


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_fraction_is_taken_of_each_class(tmp_path: Path, prefix: str) -> None:
    manifest = scan(one_folder(tmp_path, prefix=prefix), validation_fraction=0.2)
    assert manifest.classes == ("hat", "pants", "shoes")
    assert manifest.counts() == {
        "train": {"hat": 8, "pants": 8, "shoes": 8},
        "validation": {"hat": 2, "pants": 2, "shoes": 2},
    }
    assert all(photo.path.startswith(prefix) for photo in manifest.photos)


@pytest.mark.parametrize(("fraction", "validation"), [(0.001, 1), (0.25, 2), (0.5, 5), (0.74, 7), (0.999, 9)])
def test_each_split_has_something_of_each_class(tmp_path: Path, fraction: float, validation: int) -> None:
    counts = scan(one_folder(tmp_path), fraction).counts()
    assert set(counts["validation"].values()) == {validation}
    assert set(counts["train"].values()) == {10 - validation}


def test_split_is_seeded(tmp_path: Path) -> None:
    one_folder(tmp_path, per_class=30)
    assert scan(tmp_path, 0.3, seed=7) == scan(tmp_path, 0.3, seed=7)
    splits = {tuple(photo.path for photo in scan(tmp_path, 0.3, seed=seed).split("validation")) for seed in range(5)}
    assert len(splits) == 5


def test_split_does_not_change_between_versions(tmp_path: Path) -> None:
    """Who runs a newer rayml on the same data gets the same validation pictures."""
    validation = scan(one_folder(tmp_path), 0.2, seed=1).split("validation")
    ranks = {
        photo.path: hashlib.sha256(f"1:{photo.sha256}".encode()).hexdigest() for photo in scan(tmp_path, 0.2).photos
    }
    for label in ("hat", "pants", "shoes"):
        lowest = sorted((path for path in ranks if path.startswith(label)), key=ranks.__getitem__)[:2]
        assert sorted(lowest) == [photo.path for photo in validation if photo.label == label]


def test_split_looks_at_content_not_at_names(tmp_path: Path) -> None:
    one_folder(tmp_path / "a", per_class=20)
    before = by_content(scan(tmp_path / "a", 0.3))
    for number, path in enumerate(sorted((tmp_path / "a").rglob("*.jpg"), reverse=True)):
        path.rename(path.with_name(f"renamed{number:03d}.jpeg"))
    assert by_content(scan(tmp_path / "a", 0.3)) == before


def test_copies_never_straddle_the_split(tmp_path: Path) -> None:
    one_folder(tmp_path, per_class=6)
    for number in range(6):
        put(tmp_path, f"hat/copy{number}.jpg", f"hat/again{number}.jpg", content=f"hat/{number}.jpg")
        put(tmp_path, f"shoes/mislabelled{number}.jpg", content=f"pants/{number}.jpg")
    for seed in range(10):
        manifest = scan(tmp_path, 0.5, seed)
        assert manifest.straddling() == ()
        assert manifest.counts()["validation"]["hat"] == 9


def test_other_folders_beside_train_are_ignored(tmp_path: Path) -> None:
    manifest = scan(put(one_folder(tmp_path, prefix="train/"), "test/hat/1.jpg", "README"), 0.2)
    assert manifest.classes == ("hat", "pants", "shoes")
    assert manifest.ignored == ("README", "test/")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    names = [f"{label}/{number}.jpg" for label in ("car", "train") for number in range(4)]
    assert scan(put(tmp_path, *names), 0.5).classes == ("car", "train")


# What cannot be learned from


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing: expected a folder of photos\. Received: no such folder") as raised:
        scan(tmp_path / "missing")
    assert "DATA/train/<class>" in raised.value.hint


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    put(tmp_path, "photos.zip")
    with pytest.raises(DataError, match=r"photos\.zip: expected a folder of photos\. Received: a file"):
        scan(tmp_path / "photos.zip")


def test_neither_train_nor_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the folders train and validation\. Received: nothing"):
        scan(tmp_path)
    put(tmp_path, "hat/1.jpg", "readme.txt", *(f"x{number}" for number in range(20)))
    with pytest.raises(DataError, match=r"Received: hat/, readme.txt, x0, x1.* and 14 more") as raised:
        scan(tmp_path)
    assert "--validation-fraction" in raised.value.hint


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_photos_without_class_folders(tmp_path: Path, prefix: str) -> None:
    put(tmp_path, "1.jpg", f"{prefix}2.jpg", "validation/hat/1.jpg" if prefix else "3.jpg")
    with pytest.raises(DataError, match=r"Received: .*2.jpg"):
        scan(tmp_path, None if prefix else 0.2)


def test_train_without_validation(tmp_path: Path) -> None:
    put(tmp_path, "train/hat/1.jpg", "train/shoes/1.jpg")
    with pytest.raises(DataError, match=r"expected a validation folder beside train\. Received: none") as raised:
        scan(tmp_path)
    assert "--validation-fraction 0.2" in raised.value.hint


def test_validation_folder_and_fraction(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Received: .*validation and 0\.2") as raised:
        scan(two_folders(tmp_path), validation_fraction=0.2)
    assert "--validation-fraction" in raised.value.hint


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, 20, float("nan"), float("inf")])
def test_fraction_out_of_range(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(UsageError, match=r"between 0 and 1. Received: "):
        scan(one_folder(tmp_path), fraction)


@pytest.mark.parametrize("place", ["train/empty", "validation/empty"])
def test_empty_class_folder_is_named(tmp_path: Path, place: str) -> None:
    put(two_folders(tmp_path), f"{place}/notes.txt")
    with pytest.raises(DataError, match=f"{place}: expected photos .*Received: an empty class folder"):
        scan(tmp_path)


def test_empty_class_folder_with_a_fraction(tmp_path: Path) -> None:
    (one_folder(tmp_path) / "skirt").mkdir()
    with pytest.raises(DataError, match=r"skirt: expected photos"):
        scan(tmp_path, 0.2)


@pytest.mark.parametrize("fraction", [None, 0.5])
def test_one_class_only(tmp_path: Path, fraction: float | None) -> None:
    splits = [""] if fraction else ["train/", "validation/"]
    put(tmp_path, *(f"{split}hat/{number}.jpg" for split in splits for number in range(3)))
    with pytest.raises(DataError, match=r"at least two classes\. Received: only hat"):
        scan(tmp_path, fraction)


@pytest.mark.parametrize(("split", "other"), [("train", "validation"), ("validation", "train")])
def test_class_missing_in_one_split(tmp_path: Path, split: str, other: str) -> None:
    put(two_folders(tmp_path), f"{other}/pants/1.jpg")
    with pytest.raises(DataError, match=f"{split}: expected the classes of {other}. Received: no folder for pants"):
        scan(tmp_path)


def test_one_class_in_two_normalizations(tmp_path: Path) -> None:
    """Their names cannot be told apart on a screen."""
    put(two_folders(tmp_path), "train/caf\xe9/1.jpg", "validation/cafe\u0301/1.jpg")
    with pytest.raises(DataError, match=r"Received: no folder for 'caf\\xe9'$") as raised:
        scan(tmp_path)
    assert raised.value.hint.startswith(r"validation has 'cafe\u0301', which is written in the same way")


def test_too_few_to_split(tmp_path: Path) -> None:
    put(one_folder(tmp_path), "skirt/1.jpg")
    with pytest.raises(DataError, match=r"skirt: expected at least two different photos to split\. Received: 1"):
        scan(tmp_path, 0.2)
    put(tmp_path, "skirt/2.jpg", content="skirt/1.jpg")  # A copy does not help.
    with pytest.raises(DataError, match=r"skirt: expected at least two different photos to split\. Received: 1"):
        scan(tmp_path, 0.2)
    put(tmp_path, "skirt/3.jpg")
    assert scan(tmp_path, 0.2).counts()["validation"]["skirt"] in (1, 2)


def test_too_few_of_its_own_to_split(tmp_path: Path) -> None:
    put(tmp_path, "hat/1.jpg", "hat/2.jpg")
    for number in (1, 2):
        put(tmp_path, f"shoes/{number}.jpg", content=f"hat/{number}.jpg")
    with pytest.raises(DataError, match=r"shoes: expected at least two different photos to split\. Received: 0"):
        scan(tmp_path, 0.5)


# To evaluate


def test_labelled(tmp_path: Path) -> None:
    put(tmp_path, "shoes/1.jpg", "hat/2.png", "hat/notes.txt", "README", ".git/config")
    manifest = scan_labelled(tmp_path, ["shoes", "pants", "hat"])
    assert manifest.classes == ("shoes", "pants", "hat")
    assert [(photo.path, photo.label, photo.split) for photo in manifest.photos] == [
        ("hat/2.png", "hat", "evaluation"),
        ("shoes/1.jpg", "shoes", "evaluation"),
    ]
    assert manifest.ignored == ("README", "hat/notes.txt")
    assert manifest.counts() == {"evaluation": {"shoes": 1, "pants": 0, "hat": 1}}
    assert len(manifest.without(["hat/2.png"]).photos) == 1


def test_labelled_with_an_unknown_class(tmp_path: Path) -> None:
    put(tmp_path, "shoes/1.jpg", "gloves/1.jpg")
    with pytest.raises(DataError, match=r"expected folders of the classes hat, shoes\. Received: gloves"):
        scan_labelled(tmp_path, ("hat", "shoes"))


def test_labelled_in_another_normalization(tmp_path: Path) -> None:
    put(tmp_path, "caf\xe9/1.jpg", "gloves/1.jpg")
    words = r"the classes 'cafe\\u0301', hat\. Received: 'caf\\xe9', gloves"
    with pytest.raises(DataError, match=words):
        scan_labelled(tmp_path, ("cafe\u0301", "hat"))


def test_labelled_one_level_too_high(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Received: train, validation") as raised:
        scan_labelled(two_folders(tmp_path), ("hat", "shoes"))
    assert str(tmp_path / "validation") in raised.value.hint


def test_labelled_without_photos(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected photos .*Received: none"):
        scan_labelled(tmp_path, ("hat", "shoes"))
    (tmp_path / "hat").mkdir()
    with pytest.raises(DataError, match=r"expected photos .*Received: none"):
        scan_labelled(tmp_path, ("hat", "shoes"))
    manifest = scan_labelled(put(tmp_path, "shoes/1.jpg"), ("hat", "shoes"))
    with pytest.raises(DataError, match=r"Received: none"):
        manifest.without(["shoes/1.jpg"])


def test_labelled_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder"):
        scan_labelled(tmp_path / "missing", ("hat", "shoes"))


def test_pictures_that_cannot_be_read_are_said_in_one_line_and_travel() -> None:
    few, many = ({f"hat/{number}.jpg": "cut off" for number in range(count)} for count in (2, 7))
    error = UnreadablePictures(few, 9)
    assert error.message == "2 of 9 pictures cannot be read: hat/0.jpg (cut off); hat/1.jpg (cut off)"
    assert "--skip-unreadable" in error.hint
    error = UnreadablePictures(many, 9, "Mend them.")
    assert error.message.endswith("hat/4.jpg (cut off); and 2 more")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reasons, again.total, again.hint) == (error.message, many, 9, "Mend them.")
