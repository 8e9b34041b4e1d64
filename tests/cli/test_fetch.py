"""`rayml data fetch clothing`, from a server on loopback."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rayml import clothing
from rayml.cli import download, fetch
from rayml.cli.data import data as command
from rayml.errors import DataError, RaymlError, UsageError
from tests.cli.file_server import Served, serving

FILES = {f"{split}/{label}/{n}.jpg": f"{split} {label} {n}" for split in clothing.TREES for label in "ab" for n in "12"}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Other photos than the real ones, and their trees in the place of the real ones'."""
    for name, content in FILES.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(
        clothing, "TREES", {split: clothing.git_tree(tmp_path / "source" / split) for split in clothing.TREES}
    )
    return packed(FILES)


def packed(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("clothing-dataset-small-1/", "")
        for name, content in {**files, "LICENSE": "CC0", ".hidden": "x"}.items():
            opened.writestr(f"clothing-dataset-small-1/{name}", content)
    return buffer.getvalue()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, ["fetch", "clothing", *map(str, arguments)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetched_checked_and_put_in_place(archive: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "photos"
    with serving(Served(archive, cuts=[300])) as served:
        done = run(folder, "--url", served.url)
        assert done.exit_code == 0, done.output
        assert {name: (folder / name).read_text() for name in FILES} == FILES
        assert names(folder) == ["LICENSE", "test", "train", "validation"] and names(folder.parent) == ["photos"]
        again = run(folder, "--url", served.url, "--json")
        assert json.loads(again.stdout)["fetched"] is False and len(served.asked) == 2


def test_a_downloaded_archive(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(archive)
    assert run(tmp_path / "photos", "--archive", tmp_path / "a.zip").exit_code == 0
    assert (tmp_path / "a.zip").exists()


def test_an_empty_folder_stays_the_one_it_is(archive: bytes, tmp_path: Path) -> None:
    """Where a volume is mounted there is no other, and a shell that works in it would lose it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    before = folder.stat().st_ino
    with serving(Served(archive, cuts=[300])) as served:
        assert run(folder, "--url", served.url).exit_code == 0
    assert folder.stat().st_ino == before
    assert names(folder) == ["LICENSE", "test", "train", "validation"] and names(tmp_path) == ["photos", "source"]


def test_a_download_into_an_empty_folder_goes_on(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / ".rayml-partial-killed").mkdir()
    fetched: list[Path] = []

    def broken(url: str, path: Path, *others: object) -> None:
        fetched.append(path)
        path.write_bytes(b"first")
        raise RaymlError("the connection broke off")

    monkeypatch.setattr(fetch, "download", broken)
    assert run(tmp_path / "photos").exit_code == run(tmp_path / "photos").exit_code == 1
    assert fetched[0] == fetched[1] and names(tmp_path / "photos") == [".rayml-partial-killed", ".rayml-partial-zip"]


@pytest.mark.parametrize(
    "change", [{"train/a/1.jpg": "changed"}, {"test/a/3.jpg": "added"}, {"validation/a/1.jpg": None}]
)
def test_other_photos_are_refused(archive: bytes, tmp_path: Path, change: dict[str, Any]) -> None:
    files = {name: content for name, content in {**FILES, **change}.items() if content is not None}
    with serving(Served(packed(files))) as served:
        done = run(tmp_path / "to" / "photos", "--url", served.url)
    split = next(iter(change)).split("/")[0]
    assert isinstance(done.exception, DataError)
    assert done.exception.message.startswith(f"{split}: expected the {split} photos with the git tree")
    assert names(tmp_path / "to") == []


def test_a_folder_with_something_else_is_left_alone(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").touch()
    done = run(tmp_path / "photos", "--url", "https://127.0.0.1:9/x.zip")
    assert isinstance(done.exception, UsageError) and names(tmp_path / "photos") == ["mine.txt"]


def test_without_a_network(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(clothing, "URL", "http://127.0.0.1:9/x.zip")
    done = run(tmp_path / "to" / "photos")
    assert isinstance(done.exception, RaymlError)
    assert done.exception.message == "http://127.0.0.1:9/x.zip cannot be fetched: no connection"
    assert "--archive FILE.zip" in done.exception.hint and names(tmp_path / "to") == []


def test_wrong_use(tmp_path: Path) -> None:
    assert run(tmp_path / "x", "--url", "https://a/", "--archive", "b.zip").exit_code == 2
    done = run(tmp_path / "x", "--archive", tmp_path / "gone.zip")
    assert isinstance(done.exception, UsageError) and "--archive must be a file" in done.exception.message
    (tmp_path / "loop").symlink_to("loop")
    done = run(tmp_path / "loop", "--url", "https://127.0.0.1:9/x.zip")
    assert isinstance(done.exception, UsageError) and "lead in a circle" in done.exception.message
