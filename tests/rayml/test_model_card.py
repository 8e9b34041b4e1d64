from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.bundle_json import Record
from rayml.bundle_writer import write_bundle
from rayml.evaluation import scores
from rayml.model_card import CardNotes, data_licence, model_card
from tests.rayml import small

NOTES = CardNotes(
    counts={"train": {"dress": 20, "hat": 30, "shoes": 40}, "validation": {"dress": 4, "hat": 30, "shoes": 6}},
    weights="imagenet",
    data_licence="LICENSE (CC0 1.0 Universal)",
    versions={"rayml": "0.1.0", "ray": "2.60.0"},
)


def record(tmp_path: Path, **changes: Any) -> Record:
    return write_bundle(tmp_path / "best", small.contents(**changes)).record


def test_everything_that_is_known_is_said(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [4, 30, 6])
    logits = np.eye(3, dtype=np.float32)[labels] * 2
    logits[:3] = [0, 2, 1]  # three dresses taken for hats
    metrics = scores(logits, labels, small.CLASSES, 1.5)
    card = model_card(record(tmp_path, metrics=metrics), NOTES)
    for words in (
        "| class | train | validation |",
        "| hat | 30 | 30 |",
        "| all | 90 | 40 |",
        "95 % interval of the accuracy, for 40 photos: 0.801 to 0.974",
        "| dress | 1.0000 | 0.2500 | 4 |",
        "Mistaken most often: dress for hat (3).",
        "is {ece:.4f}; without the temperature it would be {ece_uncalibrated:.4f}.".format(**metrics),
        "under 20 validation photos say little: dress (4), shoes (6).",
        "those that Keras publishes, learned from ImageNet",
        "the folder of photos holds LICENSE (CC0 1.0 Universal).",
        "Made with rayml 0.1.0, ray 2.60.0.",
        "uint8 (N, 24, 24, 3)",
        'Predictor("BUNDLE")',
        "curl --data-binary",
    ):
        assert words in card, words


def test_mistakes_without_a_matrix(tmp_path: Path) -> None:
    """As a search of many classes seals them."""
    mistaken = [["dress", "h*t", 3], ["hat", "dress", 1]]
    card = model_card(record(tmp_path, metrics={"per_class": {}, "mistaken": mistaken}))
    assert "Mistaken most often: dress for h\\*t (3); hat for dress (1)." in card


def test_what_is_unknown_is_said_to_be(tmp_path: Path) -> None:
    card = model_card(record(tmp_path, metrics={}))
    assert "How many of each class is not recorded." in card
    assert "Backbone's weights: unknown." in card
    assert "Photos: unknown: no licence file lay beside the photos." in card
    assert "Made with" not in card and "### By class" not in card


@pytest.mark.parametrize(
    ("weights", "words"),
    [("none", "random numbers"), ("my.weights.h5", "unknown: they were read from a file"), ("", "unknown.")],
)
def test_the_licence_of_the_weights(tmp_path: Path, weights: str, words: str) -> None:
    assert f"Backbone's weights: {words}" in model_card(record(tmp_path), CardNotes(weights=weights))


def test_names_stay_text(tmp_path: Path) -> None:
    names = ("a|b", "<script>", "[x](y)")
    notes = CardNotes(counts={"train": dict.fromkeys(names, 1)}, weights="`<b>`", data_licence="LICENSE (# <i>)")
    card = model_card(record(tmp_path, classes=names, metrics={}), notes)
    for words in ("<script>", "[x](y)", "| a|b", "`<b>", "(# <i>)"):
        assert words not in card
    assert "| a\\|b | 1 |" in card and "`'<b>'`" in card


def test_the_card_in_the_bundle_has_the_notes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "best", small.contents(notes=NOTES))
    assert (bundle.path / "MODEL_CARD.md").read_text() == model_card(bundle.record, NOTES)


def test_the_licence_beside_the_photos(tmp_path: Path) -> None:
    assert data_licence(tmp_path) == ""
    assert data_licence(tmp_path / "nowhere") == ""
    (tmp_path / "README.md").write_text("Free for all")
    (tmp_path / "LICENSE.txt").write_bytes(b"\n  CC0  1.0\x07 \xff\n\n" + b"long " * 100 + b"\nmore")
    assert (
        data_licence(tmp_path) == ("LICENSE.txt (CC0 1.0 \ufffd: " + "long " * 100)[: len("LICENSE.txt (") + 160] + ")"
    )
    (tmp_path / "LICENSE.txt").write_text("")
    assert data_licence(tmp_path) == "LICENSE.txt"


def test_names_of_files_that_are_no_text(tmp_path: Path) -> None:
    """A byte that is no UTF-8 could not be written, and a line break would begin a line of the card."""
    (tmp_path / "COPYING.x\n\n# injected\udcff").write_text("CC0")
    notes = CardNotes(weights="my\n# \udcfe.weights.h5", data_licence=data_licence(tmp_path))
    assert notes.data_licence == "COPYING.x\\n\\n# injected\\udcff (CC0)"
    write_bundle(tmp_path / "best", small.contents(notes=notes))
    card = (tmp_path / "best" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "\n# injected" not in card and r"`my\n# \udcfe.weights.h5`" in card
