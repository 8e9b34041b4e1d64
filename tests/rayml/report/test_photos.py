from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from rayml.errors import DataError
from rayml.report import photos
from rayml.report.run import read_run
from tests.rayml.report import made


def test_pictures_come_from_the_data_and_stay_with_the_run(tmp_path: Path) -> None:
    data = made.photos(tmp_path / "photos")
    run = read_run(made.finished(tmp_path / "run", data))
    assert photos.find_pictures(run, None) == {}
    found = photos.find_pictures(run, data)
    mistakes, unsure = photos.shown_photos(run)
    assert set(found) == {photo.sha256 for photo in (*mistakes, *unsure)}
    assert all(Image.open(io.BytesIO(picture)).format == "JPEG" for picture in found.values())
    photos.keep_pictures(run, found)
    moved = read_run((tmp_path / "run").rename(tmp_path / "moved"))
    assert photos.find_pictures(moved, None) == found


def test_a_photo_that_changed_is_not_shown_for_the_old_one(tmp_path: Path) -> None:
    data = made.photos(tmp_path / "photos")
    run = read_run(made.finished(tmp_path / "run", data))
    whole = photos.find_pictures(run, data)
    (data / "validation/0/3.png").write_bytes((data / "validation/1/3.png").read_bytes())
    (data / "validation/2/3.png").unlink()
    assert len(photos.find_pictures(run, data)) == len(whole) - 2
    assert photos.find_pictures(run, tmp_path / "nowhere") == {}


def test_nothing_outside_of_the_run_is_shown(tmp_path: Path) -> None:
    """A run from elsewhere may say what it likes of its photos."""
    folder = made.finished(tmp_path / "run", made.photos(tmp_path / "photos"))
    (folder / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    lines = (folder / "predictions.csv").read_text().splitlines()
    path, _, rest = lines[1].split(",", 2)
    (folder / "predictions.csv").write_text("\n".join([lines[0], f"{path},../../secret,{rest}", *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"predictions\.csv must hold .* Received: '\.\./\.\./secret' as sha256"):
        photos.find_pictures(read_run(folder), None)


def test_what_lies_among_the_pictures_and_is_none_is_left_out(tmp_path: Path) -> None:
    data = made.photos(tmp_path / "photos")
    run = read_run(made.finished(tmp_path / "run", data))
    found = photos.find_pictures(run, data)
    photos.keep_pictures(run, found)
    first, second, third = sorted(found)[:3]
    (run.folder / "pictures" / f"{first}.jpg").write_bytes(b"\xff\xd8<script>")
    (run.folder / "pictures" / f"{second}.jpg").write_bytes((data / "validation/0/0.png").read_bytes())
    (run.folder / "pictures" / f"{third}.jpg").write_bytes(found[third] + bytes(300_000))
    assert set(photos.find_pictures(run, None)) == set(found) - {first, second, third}
