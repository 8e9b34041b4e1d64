from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rayml.bundle import MAX_GOLDEN, Bundle, Golden, read_record
from rayml.bundle_writer import write_bundle
from rayml.errors import BundleError
from tests.rayml import small


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = small.contents()
    written = write_bundle(tmp_path / "best", made)
    read = Bundle.open(tmp_path / "best")
    assert read.record == written.record
    assert read.digest == written.digest
    record = read.record
    assert (record.name, record.version, record.classes) == ("garments", 1, small.CLASSES)
    assert (record.training, record.metrics, record.temperature) == (made.training, made.metrics, 1.5)
    assert (record.size_inner, record.opset, record.image_size_px) == (small.INNER, 17, small.SIZE_PX)
    assert read.golden.pictures == made.golden.pictures
    np.testing.assert_array_equal(read.golden.logits, made.golden.logits)
    head = read.read_head().arrays()
    for name, array in made.head.arrays().items():
        np.testing.assert_array_equal(head[name], array)
    assert read.read_model() == made.model
    assert Bundle.open_with_model(read.path)[1] == made.model
    assert read_record(read.path) == written.record


def test_a_bundle_may_be_moved_and_linked_to(tmp_path: Path) -> None:
    digest = write_bundle(tmp_path / "best", small.contents()).digest
    (tmp_path / "best").rename(tmp_path / "moved")
    (tmp_path / "live").symlink_to("moved", target_is_directory=True)
    assert Bundle.open(tmp_path / "live").digest == digest
    assert Bundle.open(tmp_path / "live").path == (tmp_path / "moved").resolve()


def test_as_many_golden_pictures_as_are_allowed_and_one_more(tmp_path: Path) -> None:
    made = small.contents()

    def golden(count: int) -> Golden:
        return Golden(made.golden.pictures[:1] * count, made.golden.logits[:1].repeat(count, axis=0))

    most = write_bundle(tmp_path / "most", small.contents(golden=golden(MAX_GOLDEN)))
    assert len(Bundle.open(most.path).golden.pictures) == MAX_GOLDEN
    with pytest.raises(BundleError, match=r"golden/index\.json must list"):
        write_bundle(tmp_path / "more", small.contents(golden=golden(MAX_GOLDEN + 1)))


@pytest.mark.parametrize("name", ["bundle.json", "model.onnx", "head.npz"])
def test_no_link_is_followed_where_a_bundle_is_read_again(tmp_path: Path, name: str) -> None:
    opened = write_bundle(tmp_path / "best", small.contents())
    (tmp_path / "best" / name).rename(tmp_path / "outside")
    (tmp_path / "best" / name).symlink_to(tmp_path / "outside")  # The very bytes that were sealed.
    read = {"bundle.json": lambda: read_record(opened.path), "model.onnx": opened.read_model}
    with pytest.raises(BundleError, match=f"{name} must be readable"):
        read.get(name, opened.read_head)()


def test_a_file_that_grows_while_it_is_read_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = write_bundle(tmp_path / "best", small.contents())
    fstat = os.fstat

    def grows(descriptor: int) -> os.stat_result:
        found = fstat(descriptor)
        with (tmp_path / "best" / "model.onnx").open("ab") as file:
            file.write(b"x")
        return found

    monkeypatch.setattr(os, "fstat", grows)
    with pytest.raises(BundleError, match=r"model\.onnx must have sha256"):
        opened.read_model()
