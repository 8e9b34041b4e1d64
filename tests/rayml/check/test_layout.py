from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayml.check.layout import FEW_PHOTOS, balance, read_layout
from rayml.data import scan
from rayml.errors import DataError


def fill(root: Path, **counts: int) -> Path:
    """Files named like photos: train__hat=3 puts three into train/hat."""
    for place, count in counts.items():
        folder = root.joinpath(*place.split("__"))
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(place.encode() + bytes([number % 256]))
    return root


def said(root: Path) -> list[tuple[str, tuple[str, ...]]]:
    layout = read_layout(root)
    return [(finding.kind, finding.paths) for finding in (*layout.findings, *balance(layout))]


def test_splits_and_classes_are_counted(tmp_path: Path) -> None:
    root = fill(
        tmp_path, train__hat=25, train__shoes=30, validation__hat=2, validation__shoes=3, test__hat=1, test__shoes=1
    )
    layout = read_layout(root)
    assert layout.classes == ("hat", "shoes")
    assert layout.splits == {"test": {"hat": 1, "shoes": 1}, "train": {"hat": 25, "shoes": 30}} | {
        "validation": {"hat": 2, "shoes": 3}
    }
    assert len(layout.photos) == 62
    assert said(root) == []


def test_class_folders_alone_are_one_split(tmp_path: Path) -> None:
    root = fill(tmp_path, hat=25, test=30)  # A class may be called like a split.
    layout = read_layout(root)
    assert layout.splits == {"all": {"hat": 25, "test": 30}}
    assert layout.photos[0].path == "hat/0.jpg" and layout.photos[0].split == "all"


def test_a_class_that_a_split_lacks(tmp_path: Path) -> None:
    root = fill(tmp_path, train__hat=25, train__shoes=25, validation__hat=2, test__hat=1, validation__skirt=0)
    assert sorted(said(root)) == [
        ("missing_class", ("train/skirt",)),
        ("missing_class", ("validation/shoes",)),
        ("missing_class", ("validation/skirt",)),
        ("missing_in_test", ("test/shoes",)),
        ("missing_in_test", ("test/skirt",)),
    ]


def test_one_class_is_none(tmp_path: Path) -> None:
    assert said(fill(tmp_path, hat=25)) == [("few_classes", ())]
    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty") == [("few_classes", ())]


@pytest.mark.parametrize(
    ("small", "kinds"), [(24, []), (22, ["imbalance"]), (FEW_PHOTOS - 1, ["imbalance", "few_photos"])]
)
def test_numbers_out_of_proportion(tmp_path: Path, small: int, kinds: list[str]) -> None:
    assert [kind for kind, _ in said(fill(tmp_path, hat=240, shoes=small))] == kinds


def test_names_that_differ_in_their_spelling_alone(tmp_path: Path) -> None:
    root = fill(tmp_path, **{"t-shirt": 25, "T_Shirt": 25, "hat": 25})
    (finding,) = balance(read_layout(root))
    assert (finding.kind, finding.detail) == ("similar_class_names", "are these one class? T_Shirt, t-shirt")


def test_names_that_differ_in_their_normalization_alone(tmp_path: Path) -> None:
    names = {"caf\xe9": 25, "Cafe\u0301": 25, "hat": 25, "\uff34\uff0dshirt": 25, "t-shirt": 25, "T-shirt": 25}
    findings = list(balance(read_layout(fill(tmp_path, **names))))
    assert [(finding.kind, finding.detail) for finding in findings] == [
        ("similar_class_names", "are these one class? Cafe\u0301, caf\xe9"),
        ("similar_class_names", r"are these one class? 'T-shirt', t-shirt, '\uff34\uff0dshirt'"),
    ]
    two = fill(tmp_path / "two", **{"train__caf\xe9": 25, "train__hat": 25, "validation__cafe\u0301": 1})
    (finding,) = (one for one in balance(read_layout(two)) if one.kind == "similar_class_names")
    assert finding.detail == r"are these one class? 'cafe\u0301', 'caf\xe9'"


@pytest.mark.parametrize("prefix", ["", "train__"])
def test_too_few_different_photos_to_split(tmp_path: Path, prefix: str) -> None:
    root = fill(tmp_path, **{f"{prefix}hat": 25, f"{prefix}one": 1, f"{prefix}same": 25, f"{prefix}two": 2})
    folder = root / prefix.replace("__", "")
    for photo in (folder / "same").iterdir():
        photo.write_bytes(b"equal")
    found = [finding for finding in balance(read_layout(root)) if finding.kind == "too_few_to_split"]
    assert [root / finding.paths[0] for finding in found] == [folder / "one", folder / "same"]
    assert {finding.severity for finding in found} == {"error"}
    with pytest.raises(DataError, match="expected at least two different photos to split"):
        scan(root, 0.5)
    (folder / "same" / "0.jpg").write_bytes(b"another")
    shutil.copytree(folder / "two", folder / "one", dirs_exist_ok=True)
    assert "too_few_to_split" not in [kind for kind, _ in said(root)]


def test_a_validation_folder_needs_no_split(tmp_path: Path) -> None:
    root = fill(tmp_path, train__hat=1, train__shoes=1, validation__hat=1, validation__shoes=1)
    assert [kind for kind, _ in said(root)] == ["few_photos", "few_photos"]


def test_what_lies_there_unused(tmp_path: Path) -> None:
    root = fill(tmp_path, train__hat=25, train__shoes=25, train__hat__more=2, validation__hat=1, validation__shoes=1)
    for name in (
        ".DS_Store",
        "README.md",
        "train/stray.png",
        "train/hat/a.gif",
        "train/hat/notes.txt",
        "train/hat/._0.jpg",
    ):
        (root / name).write_text("x")
    (root / "__MACOSX").mkdir()
    assert sorted(said(root)) == [
        ("folder_in_class", ("train/hat/more",)),
        ("hidden", (".DS_Store",)),
        ("hidden", ("__MACOSX",)),
        ("hidden", ("train/hat/._0.jpg",)),
        ("unused_file", ("README.md",)),
        ("unused_file", ("train/hat/notes.txt",)),
        ("unused_picture", ("train/hat/a.gif",)),
        ("unused_picture", ("train/stray.png",)),
    ]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Received: no such folder"):
        read_layout(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Received: a file"):
        read_layout(tmp_path / "file")
