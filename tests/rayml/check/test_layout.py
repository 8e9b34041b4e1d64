from __future__ import annotations

from pathlib import Path

import pytest

from rayml.check.layout import FEW_PHOTOS, balance, read_layout
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
