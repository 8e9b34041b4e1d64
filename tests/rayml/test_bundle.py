from __future__ import annotations

from pathlib import Path

import numpy as np

from rayml.bundle import Bundle, read_record
from rayml.bundle_writer import write_bundle
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
