from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from rayml.check.layout import Place
from rayml.check.suspects import suspect_labels
from rayml.predictor import Predictor
from tests.serving.tiny_bundle import picture, write_tiny_bundle


def test_a_label_that_the_bundle_disputes(tmp_path: Path) -> None:
    predictor = Predictor(write_tiny_bundle(tmp_path / "bundle"))
    unsure = io.BytesIO()
    Image.new("RGB", (64, 64), (140, 120, 120)).save(unsure, "PNG")
    files = {
        "red/right.png": picture("red"),
        "blue/wrong.png": picture("red"),
        "green/unsure.png": unsure.getvalue(),
        "blue/broken.png": b"broken",
        "black/unknown.png": picture("red"),
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    told: list[int] = []
    places = [Place(name, "all", name.split("/")[0]) for name in (*files, "red/gone.png")]
    foreign, suspect = suspect_labels(predictor, tmp_path, places, lambda count=1, note="": told.append(count))
    assert sum(told) == len(places)
    assert (foreign.kind, foreign.detail) == ("unknown_class", "the bundle does not know black; not compared with it")
    assert (suspect.kind, suspect.paths) == ("suspect_label", ("blue/wrong.png",))
    assert suspect.detail.startswith("looks like red (0.9")
