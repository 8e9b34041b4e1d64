from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rayml.clothing import TREES, git_tree, verify, wanted
from rayml.errors import DataError


def test_where_a_file_goes() -> None:
    assert wanted("clothing-dataset-small-1196151/train/hat/1.jpg") == "train/hat/1.jpg"
    assert wanted("train/hat/1.jpg") == "train/hat/1.jpg"  # Packed without a folder around it.
    assert wanted("x/LICENSE") == "LICENSE"
    assert wanted("x/.github/workflows/a.yml") is None
    assert wanted("x/") is None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_tree_is_the_one_that_git_computes(tmp_path: Path) -> None:
    for name in ("a.txt", "a/1.jpg", "a-b/2.jpg", "Größe.jpg"):  # "a-b" sorts before "a/".
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text(name)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    assert git_tree(tmp_path / "x") == git("write-tree", "--prefix=x/")


def test_a_link_is_no_photo(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="a link or a device"):
        git_tree(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train: expected the train photos with the git tree cc90b85.*Received: nothing"
    ):
        verify(tmp_path)


def test_the_real_photos(clothing_data: Path) -> None:
    for split in ("train", "validation"):
        assert git_tree(clothing_data / split) == TREES[split]
