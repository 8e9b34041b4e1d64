"""From photos to a bundle with the whole network in each trial."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.bundle import Bundle
from rayml.data import scan
from rayml.errors import DataError, UsageError
from rayml.evaluation import evaluate
from rayml.predictor import Predictor
from rayml.sample import write_sample
from tests.tune_jobs.small import QUIET, one_at_a_time
from tune_jobs.checkpoints import newest_checkpoint
from tune_jobs.end_to_end import decode
from tune_jobs.run import RunSummary, run_tune

SMALL: dict[str, Any] = {"size_inner": (16,), "learning_rate": (0.01,), "epochs": 3}
TUNING: dict[str, Any] = {
    "mode": "end-to-end",
    "augment": "flip,shift=0.05",
    "dropout": 0.1,
    "unfreeze": 3,
    "fine_tune_epochs": 2,
    "fine_tune_learning_rate": 0.0005,
    **SMALL,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    write_sample(made / "photos", train_per_class=8, validation_per_class=4)
    return made


@pytest.fixture(scope="module")
def tuned(folder: Path, ray_cluster: str) -> RunSummary:
    """Everything at once: changed pictures, dropout, the backbone's top trained after the first epoch."""
    return run_tune(one_at_a_time(folder, out=folder / "tuned", **TUNING), QUIET)


def figures(run: Path) -> list[list[str]]:
    """history.csv without its seconds."""
    with (run / "history.csv").open(newline="") as file:
        return [list(row.values())[:-1] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_frozen_network_gives_the_bundle_of_its_features(folder: Path, ray_cluster: str) -> None:
    cached = run_tune(one_at_a_time(folder, out=folder / "cached", **SMALL), QUIET)
    whole = run_tune(one_at_a_time(folder, out=folder / "whole", mode="end-to-end", **SMALL), QUIET)
    ours, theirs = (np.array(figures(summary.run), float) for summary in (whole, cached))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    one, other = Bundle.open(whole.bundle), Bundle.open(cached.bundle)
    assert (one.record.training.mode, other.record.training.mode) == ("end-to-end", "features")
    assert one.record.weights_sha256 == other.record.weights_sha256
    for name, array in one.read_head().arrays().items():
        np.testing.assert_allclose(array, other.read_head().arrays()[name], rtol=0, atol=1e-4)
    assert one.golden.pictures == other.golden.pictures
    np.testing.assert_allclose(one.golden.logits, other.golden.logits, rtol=0, atol=1e-3)
    assert one.record.metrics["accuracy"] == other.record.metrics["accuracy"] == whole.best.val_accuracy
    # All of the graph but the head's numbers.
    assert abs(len(one.read_model()) - len(other.read_model())) < 100
    assert Predictor(one).check_golden() < 1e-4


def test_a_tuned_network_is_what_is_served(tuned: RunSummary, folder: Path) -> None:
    assert tuned.best.best_epoch > 1, "the first epoch's network is frozen still; the test needs a later one"
    checkpoint, _ = newest_checkpoint(tuned.run / "checkpoints" / tuned.best.trial_id)
    assert checkpoint is not None and len(checkpoint.best.tuned) == 5  # three layers, two of them with a bias
    bundle = Bundle.open(tuned.bundle)
    assert bundle.record.training.mode == "end-to-end"
    frozen = json.loads((tuned.run / "run.json").read_text())["backbone"]
    assert bundle.record.weights_sha256 != frozen["weights_sha256"]
    predictor = Predictor(bundle)
    assert predictor.check_golden() < 1e-4
    found = evaluate(predictor, folder / "photos" / "validation", QUIET)
    assert found["accuracy"] == tuned.best.val_accuracy
    assert found["loss"] == pytest.approx(tuned.best.val_loss, rel=1e-4)
    card = (tuned.bundle / "MODEL_CARD.md").read_text()
    assert "A `tiny` at 64 px" in card and "its last 3 layers trained further" in card
    assert "(flip,shift=0.05)" in card
    assert not list(tuned.run.glob(".tuned-*"))


@pytest.mark.slow
def test_it_goes_on_where_it_was_interrupted(tuned: RunSummary, folder: Path, tmp_path: Path) -> None:
    """As a driver leaves it that was killed in the last epoch, when tuned layers were in the checkpoint."""
    run = Path(shutil.copytree(tuned.run, tmp_path / "run"))
    shutil.rmtree(run / "best")
    (run / "checkpoints" / "00000" / "00003.npz").unlink()
    lines = (run / "history.csv").read_text().splitlines(keepends=True)
    (run / "history.csv").write_text("".join(lines[:3]))
    (run / "ledger.jsonl").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "searching"}))
    again = run_tune(one_at_a_time(folder, out=run, resume=True, **TUNING), QUIET)
    assert figures(again.run) == figures(tuned.run)
    for name in ("model.onnx", "head.npz"):
        assert (again.bundle / name).read_bytes() == (tuned.bundle / name).read_bytes()


def test_more_layers_than_there_are(folder: Path, tmp_path: Path, ray_cluster: str) -> None:
    chosen = one_at_a_time(tmp_path, data=folder / "photos", cache=folder / "cache", **{**TUNING, "unfreeze": 16})
    with pytest.raises(UsageError, match=r"unfreeze must be at most 15, the layers of tiny\. Received: 16"):
        run_tune(chosen, QUIET)
    assert not (tmp_path / "run").exists()


def test_pictures_that_cannot_be_decoded(folder: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(folder / "photos", tmp_path / "photos"))
    (photos / "train" / "hat" / "broken.jpg").write_bytes(b"no picture")
    manifest = scan(photos)
    with pytest.raises(DataError, match=r"1 of 121 pictures cannot be read: train/hat/broken\.jpg") as caught:
        decode(manifest, 32, tmp_path, False, QUIET)
    assert "--skip-unreadable" in caught.value.hint
    data, unreadable = decode(manifest, 32, tmp_path, True, QUIET)
    assert list(unreadable) == ["train/hat/broken.jpg"]
    assert data.train_pixels.shape == (80, 32, 32, 3)
