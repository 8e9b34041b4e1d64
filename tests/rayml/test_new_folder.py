from __future__ import annotations

from pathlib import Path

import pytest

from rayml.errors import UsageError
from rayml.new_folder import PARTIAL, behind_links, drafted, is_new


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_whole_at_the_end_and_not_before(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "new"
    if there:
        folder.mkdir(mode=0o755)
    before = folder.stat().st_ino if there else None
    assert is_new(folder)
    with drafted(folder) as draft:
        (draft / "a").mkdir()
        (draft / "b").write_text("b")
        assert is_new(folder)
    assert names(folder) == ["a", "b"] and names(tmp_path) == ["new"] and not is_new(folder)
    assert before in (None, folder.stat().st_ino)
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("there", [False, True])
def test_nothing_after_an_error(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "new"
    if there:
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt), drafted(folder) as draft:
        (draft / "a").mkdir()
        raise KeyboardInterrupt
    assert names(tmp_path) == ["new"] * there and is_new(folder)


def test_what_comes_between_is_left_alone_and_all_is_taken_back(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="b"), drafted(tmp_path) as draft:
        for name in "abc":
            (draft / name).mkdir()
        (tmp_path / "b").write_text("mine")
    assert names(tmp_path) == ["b"] and (tmp_path / "b").read_text() == "mine"


def test_of_two_at_once_the_second_leaves_the_first_ones_files(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="b"), drafted(tmp_path) as slow:
        with drafted(tmp_path) as fast:
            for name in "bc":
                (fast / name).write_text("first")
        for name in "abc":
            (slow / name).write_text("second")
    assert {name: (tmp_path / name).read_text() for name in names(tmp_path)} == {"b": "first", "c": "first"}


def test_what_is_new(tmp_path: Path) -> None:
    assert is_new(tmp_path) and is_new(tmp_path / "missing")
    (tmp_path / f"{PARTIAL}killed").mkdir()
    assert is_new(tmp_path)
    (tmp_path / "file").write_text("")
    assert not is_new(tmp_path) and not is_new(tmp_path / "file")


def test_links_are_followed_and_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("folder")
    assert behind_links(tmp_path / "link") == (tmp_path / "folder").resolve()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=r"Received: .*loop \(links that lead in a circle\)"):
        behind_links(tmp_path / "loop")
