from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rayml.bundle import Bundle
from rayml.data import VALIDATION, Manifest, Photo
from rayml.evaluation import MAX_MATRIX_CLASSES
from rayml.frozen import FrozenBackbone
from tests.rayml import small
from tests.tune_jobs.small import settings
from tune_jobs.records import TrialRow
from tune_jobs.sealing import seal
from tune_jobs.select import Winner


@pytest.mark.parametrize("classes", [MAX_MATRIX_CLASSES, MAX_MATRIX_CLASSES + 1])
def test_a_large_confusion_is_left_out(tmp_path: Path, classes: int) -> None:
    names = tuple(f"class {number:03}" for number in range(classes))
    photos = tuple(Photo(f"validation/{name}/1.jpg", name, VALIDATION, f"{n:064}") for n, name in enumerate(names))
    made = small.contents()
    head = small.head(classes=classes)
    features = np.random.default_rng(1).random((len(made.golden.pictures), small.FEATURES)).astype(np.float32)
    pictures = {f"{number}.png": data for number, data in enumerate(made.golden.pictures)}
    backbone: Any = SimpleNamespace(
        golden=lambda: (pictures, features),
        graph=lambda: small.backbone().SerializeToString(),
        name=made.backbone_name,
        precision="float32",
        image_size_px=made.image_size_px,
        weights_sha256=made.weights_sha256,
        preprocessing=made.preprocessing,
    )
    row = TrialRow("00000", small.INNER, 0.05, 0.0, "finished", 2, 1, 1.0, 0.1, 1.0)
    logits = np.eye(classes, dtype=np.float32)
    logits[0] = logits[1]
    won = Winner(row, head, logits, 1.0, 1.0)
    (tmp_path / "photos").mkdir()
    manifest = Manifest(tmp_path / "photos", names, photos, ())
    seal(tmp_path, settings(tmp_path), manifest, cast(FrozenBackbone, backbone), won)
    metrics = Bundle.open(tmp_path / "best").record.metrics
    assert ("confusion" in metrics) == (classes <= MAX_MATRIX_CLASSES)
    assert list(metrics["per_class"]) == list(names)
    assert "class 000 for class 001 (1)" in (tmp_path / "best" / "MODEL_CARD.md").read_text()
    assert json.loads((tmp_path / "best/bundle.json").read_bytes())["metrics"] == metrics
