from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayml.check import pictures
from rayml.check.pictures import header_findings, look, look_at_all
from rayml.images import DEFAULT_LIMITS
from tests.hostile.pictures import encoded, exif, noisy, with_exif
from tests.rayml.check.folder import drawn

JPEG = encoded(noisy(120, 100), "JPEG", quality=90)
CASES = {
    "sound.jpg": (JPEG, []),
    "sound.PNG": (encoded(noisy(120, 100), "PNG"), []),
    "empty.jpg": (b"", ["unreadable"]),
    "text.jpg": (b"not a picture at all", ["unsupported_format"]),
    "half.jpg": (JPEG[: len(JPEG) // 2], ["truncated"]),
    "half.png": (encoded(noisy(120, 100), "PNG")[:-400], ["truncated"]),
    "half.webp": (encoded(noisy(120, 100), "WEBP")[:-400], ["truncated"]),
    "gif.jpg": (encoded(noisy(120, 100), "GIF"), ["unsupported_format"]),
    "really.png": (JPEG, ["wrong_extension"]),
    "tiny.png": (encoded(noisy(40, 90), "PNG"), ["tiny"]),
    "long.png": (encoded(noisy(400, 90), "PNG"), ["extreme_aspect"]),
    "blank.png": (encoded(Image.new("RGB", (90, 90), "white"), "PNG"), ["blank"]),
    "ink.jpg": (encoded(noisy(90, 90).convert("CMYK"), "JPEG"), ["cmyk"]),
    "turned.jpg": (with_exif(JPEG, exif(6)), ["rotated_by_exif"]),
    "upright.jpg": (with_exif(JPEG, exif(1)), []),
}
IN_HEADER = {"empty.jpg", "text.jpg", "gif.jpg", "really.png", "tiny.png", "long.png"}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_file(tmp_path: Path, name: str) -> None:
    data, kinds = CASES[name]
    (tmp_path / name).write_bytes(data)
    seen = look(tmp_path, name)
    assert [finding.kind for finding in seen.findings] == kinds
    assert all(finding.paths == (name,) and finding.detail.isprintable() for finding in seen.findings)
    assert len(seen.sha256) == 64
    refused = kinds in (["unreadable"], ["truncated"], ["unsupported_format"])
    assert seen.decoded is not refused
    assert (seen.hash is None) is (refused or kinds == ["blank"])
    assert [finding.kind for finding in header_findings(tmp_path, name)] == (kinds if name in IN_HEADER else [])


def test_a_huge_picture_is_named_and_one_above_the_limit_refused(tmp_path: Path) -> None:
    for name, side in (("huge", 4_500), ("too_large", 7_100)):
        Image.new("1", (side, side)).save(tmp_path / f"{name}.png")
        assert name in [finding.kind for finding in look(tmp_path, f"{name}.png").findings]
        assert [finding.kind for finding in header_findings(tmp_path, f"{name}.png")] == [name]


def test_only_what_takes_much_memory_is_decoded_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG is decoded small, whatever its size; the same pixels as PNG are not."""
    alone: list[str] = []
    monkeypatch.setattr(pictures, "_heavy", contextlib.nullcontext())
    monkeypatch.setattr(contextlib.nullcontext, "__enter__", lambda self: alone.append(name))
    for name in ("photo.jpg", "photo.png"):
        Image.new("L", (3000, 3000)).save(tmp_path / name)
        assert look(tmp_path, name).decoded
    assert alone == ["photo.png"]


def test_a_file_above_the_limit_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)
    seen = look(tmp_path, "sparse.jpg")
    assert [finding.kind for finding in seen.findings] == ["too_large"] and seen.sha256


def test_a_header_behind_much_metadata_is_found(tmp_path: Path) -> None:
    comments = b"".join(b"\xff\xfe\xff\xff" + bytes(65_533) for _ in range(5))
    (tmp_path / "a.jpg").write_bytes(JPEG[:2] + comments + JPEG[2:])
    assert header_findings(tmp_path, "a.jpg") == []


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    seen = look(tmp_path, "gone.jpg")
    assert (seen.sha256, [finding.kind for finding in seen.findings]) == ("", ["unreadable"])
    assert [finding.kind for finding in header_findings(tmp_path, "gone.jpg")] == ["unreadable"]


def test_many_are_looked_at_in_their_order(tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(300)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(JPEG[: len(JPEG) - number])
    told: list[int] = []
    seen = list(look_at_all(tmp_path, names, lambda count=1, note="": told.append(count)))
    assert [one.path for one in seen] == names and len(told) == 300
    assert seen[0].findings == () and len(seen[299].findings) == 1


def test_the_fingerprint_survives_saving_anew_and_tells_others_apart(tmp_path: Path) -> None:
    picture = drawn("hat", 1, size_px=192)
    picture.save(tmp_path / "a.jpg", quality=95)
    picture.resize((120, 120)).save(tmp_path / "b.jpg", quality=50)
    drawn("shoes", 1).save(tmp_path / "c.jpg")
    a, b, c = (look(tmp_path, f"{name}.jpg") for name in "abc")
    assert a.hash is not None and b.hash is not None and c.hash is not None
    assert np.bitwise_count(a.hash ^ b.hash) <= 6 < np.bitwise_count(a.hash ^ c.hash)
