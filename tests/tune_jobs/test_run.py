"""From a folder of drawn photos to a sealed bundle, on one Ray."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayml.backbones import backbone_spec
from rayml.bundle import Bundle
from rayml.clothing import CLASSES
from rayml.data import scan
from rayml.errors import DataError, RaymlError, SearchError, UsageError
from rayml.evaluation import evaluate, scores
from rayml.features import FeatureBank
from rayml.frozen import frozen_folder, load_frozen
from rayml.predictions import Predictions
from rayml.predictor import Predictor
from rayml.progress import Progress
from rayml.report import write_report
from rayml.report.run import read_run
from rayml.sample import write_sample
from tests.tune_jobs.small import QUIET, one_at_a_time
from tune_jobs.config import make_settings
from tune_jobs.features import PassResult
from tune_jobs.run import RunSummary, main, plan_tune, run_tune
from tune_jobs.runfolder import locked, order_digest, with_stored, write_record
from tune_jobs.select import Winner, select


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    write_sample(made / "photos", train_per_class=12, validation_per_class=6)
    return made


@pytest.fixture(scope="module")
def summary(folder: Path, ray_cluster: str) -> RunSummary:
    return run_tune(one_at_a_time(folder), QUIET)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_lies_in_run(summary: RunSummary) -> None:
    names = sorted(path.name for path in summary.run.iterdir())
    assert names == [
        *("best", "cells.csv", "checkpoints", "history.csv", "ledger.jsonl", "pictures", "predictions.csv", "ray"),
        *("report.html", "run.json", "tensorboard", "trials.csv"),
    ]
    boards = sorted(path.name for path in (summary.run / "tensorboard").iterdir())
    assert boards == [trial.trial_id for trial in summary.trials]
    trials, history = rows(summary.run / "trials.csv"), rows(summary.run / "history.csv")
    assert len(trials) == len(summary.trials) == 4
    assert len(history) == sum(int(trial["epochs"]) for trial in trials) == 12
    (best,) = [trial for trial in trials if trial["trial_id"] == summary.best.trial_id]
    assert float(best["val_accuracy"]) == summary.best.val_accuracy
    assert summary.largest_class_share == 0.1
    assert (summary.computed, summary.cached) == (180, 0)
    json.dumps(summary.to_json(), allow_nan=False)


def test_what_is_recorded(summary: RunSummary, folder: Path) -> None:
    record = json.loads((summary.run / "run.json").read_text())
    assert (record["status"], record["bundle"]) == ("finished", "best")
    assert record["settings"]["size_inner"] == [4, 8]
    assert record["settings"]["seed"] == 1
    assert record["data"]["digest"] == scan(folder / "photos").digest
    assert record["data"]["order"] == order_digest(scan(folder / "photos"))
    assert record["data"]["counts"]["train"] == dict.fromkeys(CLASSES, 12)
    assert record["backbone"]["name"] == "tiny"
    assert record["features"] == {"computed": 180, "cached": 0, "engine": "openvino"}
    assert record["best"]["trial_id"] == summary.best.trial_id
    assert {"ray", "keras", "python", "openvino"} <= set(record["versions"])
    assert record["keras_backend"] == "tensorflow"
    assert list(record["timings"]) == ["data", "ray", "backbone", "features", "search", "bundle"]
    assert all(seconds >= 0 for seconds in record["timings"].values())


def test_rayml_writes_no_absolute_path(summary: RunSummary, folder: Path) -> None:
    """A run's folder may be moved. Ray's own state in ray/ is Ray's affair."""
    for path in summary.run.rglob("*"):
        if path.is_file() and "ray" not in path.relative_to(summary.run).parts:
            assert str(folder).encode() not in path.read_bytes(), path


def test_the_bundle_scores_exactly_what_the_table_says(summary: RunSummary, folder: Path) -> None:
    bundle = Bundle.open(summary.bundle)
    assert bundle.record.classes == CLASSES
    assert bundle.record.backbone_name == "tiny"
    assert bundle.record.training.learning_rate == summary.best.learning_rate
    assert bundle.record.training.epochs == summary.best.best_epoch
    assert bundle.record.metrics["accuracy"] == summary.best.val_accuracy
    predictor = Predictor(bundle)
    assert predictor.check_golden() < 1e-4
    figures = evaluate(predictor, folder / "photos" / "validation", QUIET)
    assert figures["accuracy"] == summary.best.val_accuracy
    assert figures["loss"] == pytest.approx(summary.best.val_loss, rel=1e-4)
    assert figures["accuracy"] > 0.4  # three epochs on 120 drawings; a trivial rule has 0.1


def test_the_model_card_knows_the_photos(summary: RunSummary) -> None:
    card = (summary.bundle / "MODEL_CARD.md").read_text()
    assert "| all | 120 | 60 |" in card
    assert "Backbone's weights: made for rayml from drawings" in card
    assert "unknown: no licence file lay beside the photos" in card
    assert "Made with python 3." in card


def test_the_report_reads_what_the_search_wrote(summary: RunSummary) -> None:
    found = read_run(summary.run)
    cells = [(trial.trial_id, trial.size_inner, trial.learning_rate, len(trial.epochs)) for trial in found.trials]
    assert cells == [(trial.trial_id, trial.size_inner, trial.learning_rate, trial.epochs) for trial in summary.trials]
    # Before trials.csv is there, a trial's cell is known.
    grid = itertools.product(found.record["settings"]["size_inner"], found.record["settings"]["learning_rate"])
    assert [cell[1:3] for cell in cells] == list(grid)
    kept = rows(summary.run / "cells.csv")
    assert [(int(cell["size_inner"]), float(cell["learning_rate"])) for cell in kept] == [cell[1:3] for cell in cells]
    assert found.leader is not None and found.leader.trial_id == summary.best.trial_id
    text = (summary.run / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") >= 12
    assert f"{summary.best.val_accuracy:.4f}" in text


def test_what_was_answered_on_each_validation_photo(summary: RunSummary, folder: Path) -> None:
    record = Bundle.open(summary.bundle).record
    found = Predictions.read(summary.run / "predictions.csv")
    photos = scan(folder / "photos").split("validation")
    assert (found.classes, found.paths) == (CLASSES, tuple(photo.path for photo in photos))
    assert found.sha256 == tuple(photo.sha256 for photo in photos)
    assert [CLASSES[label] for label in found.labels] == [photo.label for photo in photos]
    assert scores(found.logits, found.labels, CLASSES, record.temperature) == record.metrics


def test_the_backbone_that_made_the_features_is_the_one_that_is_served(summary: RunSummary, folder: Path) -> None:
    frozen = load_frozen(frozen_folder(backbone_spec("tiny"), folder / "cache"))
    assert frozen is not None
    manifest = scan(folder / "photos")
    photos = manifest.split("validation")
    features = FeatureBank.of(frozen, folder / "cache").rows([photo.sha256 for photo in photos])
    predictor = Predictor(summary.bundle)
    pixels = np.stack([predictor.decode((manifest.root / photo.path).read_bytes()) for photo in photos])
    expected = predictor.bundle.read_head().logits(features)
    np.testing.assert_allclose(predictor.predict_pixels(pixels), expected, rtol=0, atol=1e-4)


def test_a_second_run_finds_its_features_and_gives_the_same(summary: RunSummary, folder: Path) -> None:
    again = run_tune(one_at_a_time(folder, out=folder / "again"), QUIET)
    assert (again.computed, again.cached) == (0, 180)

    def figures(run: Path) -> Any:
        return sorted(tuple(row.values())[:-1] for row in rows(run / "history.csv"))

    assert figures(again.run) == figures(summary.run)
    assert again.best.trial_id == summary.best.trial_id
    for name in ("model.onnx", "head.npz"):
        assert (again.bundle / name).read_bytes() == (summary.bundle / name).read_bytes()


def test_a_search_in_int8(summary: RunSummary, folder: Path) -> None:
    """The head learns from what int8 gives, is scored on it and served with it."""
    made = run_tune(one_at_a_time(folder, out=folder / "int8", precision="int8"), QUIET)
    assert (made.computed, made.cached) == (180, 0)  # Other features than those in float32.
    record = json.loads((made.run / "run.json").read_text())
    assert (record["settings"]["precision"], record["backbone"]["precision"]) == ("int8", "int8")
    predictor = Predictor(made.bundle)
    assert predictor.precision == "int8" and predictor.check_golden() < 1e-4
    model, plain = (run.bundle / "model.onnx" for run in (made, summary))
    assert model.stat().st_size < 0.4 * plain.stat().st_size
    figures = evaluate(predictor, folder / "photos" / "validation", QUIET)
    assert figures["accuracy"] == made.best.val_accuracy > 0.4
    assert "quantized to int8 before the head learned from it" in (made.bundle / "MODEL_CARD.md").read_text()
    assert "tiny at 64 px in int8" in (made.run / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="precision int8 where the run has float32"):
        run_tune(one_at_a_time(folder, out=summary.run, resume=True, precision="int8"), QUIET)


def test_int8_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.prechecks.find_spec", lambda name: None if name == "onnxruntime" else name)
    for function in (run_tune, plan_tune):
        with pytest.raises(UsageError, match=r"int8 needs the package onnxruntime, .* Received: it is not ") as caught:
            function(one_at_a_time(tmp_path, precision="int8"), QUIET)
        assert '".[onnxruntime]"' in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_another_machine_finds_the_features_on_the_storage(
    summary: RunSummary,
    folder: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """One machine searches; another one, with an empty cache, goes on with the run and computes nothing again."""
    root = str(tmp_path / "shared") if kind == "folder" else request.getfixturevalue("s3") + "/search"
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(folder / "cache" / "backbones", here / "backbones")  # From where it gets to the storage.
    small: dict[str, Any] = {"size_inner": (4,), "learning_rate": (0.05,), "epochs": 2}
    first = run_tune(one_at_a_time(tmp_path, data=folder / "photos", cache=here, storage_path=root, **small), QUIET)
    assert (first.computed, first.cached) == (180, 0)
    recorded = json.loads((first.run / "run.json").read_text())
    assert recorded["settings"]["storage_path"] == (root if kind == "bucket" else None)

    (first.run / "run.json").write_text(json.dumps({**recorded, "status": "searching"}))
    head = (first.bundle / "head.npz").read_bytes()
    given = {"data": folder / "photos", "out": first.run, "cache": there, "resume": True}
    values = with_stored({**given, **({"storage_path": root} if kind == "folder" else {})})
    assert values["storage_path"] == root
    with monkeypatch.context() as patch:
        patch.setattr("tune_jobs.features._Crew", None)  # Nothing is computed again, and what was is still known.
        again = run_tune(make_settings(values, "options"), QUIET)
    assert (again.computed, again.cached, again.trials) == (180, 0, first.trials)
    assert (again.bundle / "head.npz").read_bytes() == head
    copies = ["training"] if kind == "folder" else ["backbones", "features", "training"]
    assert sorted(path.name for path in there.iterdir()) == copies


def test_a_plan_says_where_features_go(summary: RunSummary, folder: Path, tmp_path: Path) -> None:
    chosen = one_at_a_time(
        folder, out=tmp_path / "run", cache=tmp_path / "cache", storage_path=str(tmp_path / "shared")
    )
    plan = plan_tune(chosen, QUIET)
    assert (plan.to_compute, plan.exact) == (180, False)
    assert any(f"disk for features, in {tmp_path / 'shared'}: " in line for line in plan.lines())
    assert list(tmp_path.iterdir()) == []


def test_a_share_split_off(summary: RunSummary, folder: Path) -> None:
    found = run_tune(
        one_at_a_time(
            folder,
            data=folder / "photos" / "train",
            out=folder / "split",
            validation_fraction=0.25,
            size_inner=(4,),
            learning_rate=(0.01,),
            epochs=1,
            grace_period=1,
        ),
        QUIET,
    )
    assert (found.computed, found.cached) == (0, 120)  # known by content, wherever it lies
    record = json.loads((found.run / "run.json").read_text())
    assert record["data"]["counts"] == {"train": dict.fromkeys(CLASSES, 9), "validation": dict.fromkeys(CLASSES, 3)}


def refused(kind: type[RaymlError], chosen: Any, words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        run_tune(chosen, QUIET)
    assert "\n" not in caught.value.message
    assert not chosen.out.exists()


def test_a_run_that_is_there_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="--out must be a new folder"):
        run_tune(one_at_a_time(tmp_path, data=folder / "photos"), QUIET)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_finished_run_says_what_it_was(summary: RunSummary, folder: Path, tmp_path: Path) -> None:
    """Also where it was moved, and without Ray."""
    moved = Path(shutil.copytree(summary.run, tmp_path / "moved"))
    shutil.rmtree(moved / "ray")
    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    again = run_tune(one_at_a_time(folder, out=moved, resume=True), QUIET)
    assert (again.trials, again.best) == (summary.trials, summary.best)
    assert {**again.timings, "report": summary.timings["report"]} == summary.timings
    assert (again.bundle, again.largest_class_share) == (moved / "best", summary.largest_class_share)
    assert (again.computed, again.cached) == (180, 0)
    assert {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before


def test_a_run_that_was_killed_before_its_report_gets_it(summary: RunSummary, folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(summary.run, tmp_path / "run"))
    (run / "report.html").unlink()
    shutil.rmtree(run / "pictures")
    assert run_tune(one_at_a_time(folder, out=run, resume=True), QUIET).best == summary.best
    assert (run / "report.html").is_file() and (run / "pictures").is_dir()


def test_an_interrupted_run_knows_what_it_has_taken(
    summary: RunSummary, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(summary.run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "searching"}))

    def interrupt(*_: object) -> None:
        time.sleep(0.1)
        raise KeyboardInterrupt

    monkeypatch.setattr("tune_jobs.stages.run_search", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_tune(one_at_a_time(folder, out=run, resume=True), QUIET)
    after = json.loads((run / "run.json").read_text())
    assert after["status"] == "interrupted"
    assert after["timings"]["search"] >= record["timings"]["search"] + 0.1


def test_an_interrupted_run_goes_on_where_it_was(summary: RunSummary, folder: Path, tmp_path: Path) -> None:
    """As a driver leaves it that was killed after trial 2's second epoch: trials 0 and 1 are not run again."""
    run = Path(shutil.copytree(summary.run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "00003")
    (run / "checkpoints" / "00002" / "00003.npz").unlink()
    lines = (run / "history.csv").read_text().splitlines(keepends=True)
    (run / "history.csv").write_text("".join(lines[:9]))
    decisions = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    decided = [line for line in decisions if '"00000"' in line or '"00001"' in line]
    (run / "ledger.jsonl").write_text("".join(decided))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "searching"}))
    untouched = {path: path.stat().st_mtime_ns for path in (run / "checkpoints").glob("0000[01]/*")}

    # Other settings, other photos: refused, and nothing is lost.
    with pytest.raises(UsageError, match=r"Received: epochs 5 where the run has 3"):
        run_tune(one_at_a_time(folder, out=run, resume=True, epochs=5), QUIET)
    other = Path(shutil.copytree(folder / "photos", tmp_path / "photos"))
    shutil.copy(next((other / "train" / "hat").iterdir()), other / "train" / "dress" / "more.jpg")
    with pytest.raises(UsageError, match=r"Received: train/dress: 13 photos where the run had 12"):
        run_tune(one_at_a_time(folder, data=other, out=run, resume=True), QUIET)
    assert (run / "history.csv").read_text() == "".join(lines[:9])

    done = run_tune(one_at_a_time(folder, out=run, resume=True), QUIET)
    assert [(t.trial_id, t.status, t.val_accuracy, t.val_loss) for t in done.trials] == [
        (t.trial_id, t.status, t.val_accuracy, t.val_loss) for t in summary.trials
    ]
    figures = [[list(row.values())[:-1] for row in rows(at / "history.csv")] for at in (run, summary.run)]
    assert figures[0] == figures[1]
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert (done.bundle / "head.npz").read_bytes() == (summary.bundle / "head.npz").read_bytes()
    after = json.loads((run / "run.json").read_text())
    assert after["status"] == "finished"
    assert after["features"] == record["features"] == {"computed": 180, "cached": 0, "engine": "openvino"}
    assert list(after["timings"]) == list(record["timings"])
    assert all(after["timings"][stage] >= seconds for stage, seconds in record["timings"].items())
    assert not (run / ".lock").exists()


def test_what_has_changed_is_refused_when_it_is_known(
    summary: RunSummary, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another backbone before the feature pass, and photos that the pass skips before the trials."""
    run = Path(shutil.copytree(summary.run, tmp_path / "run"))
    record = {**json.loads((run / "run.json").read_text()), "status": "failed"}
    changed = {**record, "backbone": {**record["backbone"], "graph_sha256": "0" * 64}}
    write_record(run, changed)
    skipped = sorted((folder / "photos" / "train" / "hat").iterdir())[0].relative_to(folder / "photos").as_posix()
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="--resume needs the backbone of the run"):
        patch.setattr("tune_jobs.stages.feature_pass", None)
        run_tune(one_at_a_time(folder, out=run, resume=True), QUIET)

    write_record(run, record)
    passed = PassResult(0, 179, {skipped: "cut off"}, 0.0, "")
    monkeypatch.setattr("tune_jobs.stages.feature_pass", lambda *_, **__: passed)
    with pytest.raises(UsageError, match=r"Received: train/hat: 11 photos where the run had 12"):
        run_tune(one_at_a_time(folder, out=run, resume=True, skip_unreadable=True), QUIET)
    assert json.loads((run / "run.json").read_text())["data"] == record["data"]


def test_a_run_goes_on_with_its_own_backend(
    summary: RunSummary, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(summary.run, tmp_path / "run"))
    chosen = one_at_a_time(folder, out=run, resume=True)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(UsageError, match=r"needs Keras on the run's backend, tensorflow\. Received: jax") as caught:
        run_tune(chosen, QUIET)
    assert "KERAS_BACKEND=tensorflow" in caught.value.hint
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "keras_backend": "jax"}))
    assert run_tune(chosen, QUIET).best == summary.best


def test_what_cannot_be_resumed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--resume needs the folder of a run") as caught:
        run_tune(one_at_a_time(folder, out=tmp_path / "nowhere", resume=True), QUIET)
    assert caught.value.hint == "Leave --resume out."
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json must be readable to resume"):
        run_tune(one_at_a_time(folder, out=tmp_path / "run", resume=True), QUIET)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(UsageError, match=r"Received: .*run, which holds no run\.json"):
        run_tune(one_at_a_time(folder, out=tmp_path / "run", resume=True), QUIET)
    write_record(tmp_path / "run", {"settings": {}, "status": "searching"})
    with locked(tmp_path / "run"), pytest.raises(UsageError, match="one search at a time can write"):
        run_tune(one_at_a_time(folder, out=tmp_path / "run", resume=True), QUIET)


def test_a_run_that_was_killed_before_its_first_trial_goes_on_as_was_asked(
    folder: Path,
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed = tmp_path / "killed"

    def kill(job: Any) -> Any:
        shutil.copytree(job.run, killed)
        raise KeyboardInterrupt

    small: dict[str, Any] = {"size_inner": (4,), "learning_rate": (0.05,), "epochs": 1, "grace_period": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tune_jobs.run.run_stages", kill)
        run_tune(one_at_a_time(tmp_path, data=folder / "photos", **small), QUIET)
    assert not (tmp_path / "run").exists()
    assert read_run(killed).status == "searching" and "settings" in write_report(killed).read_text()

    shutil.copytree(killed, tmp_path / "attempt")
    given = {"data": folder / "photos", "cache": folder / "cache", "out": killed, "resume": True}
    done = run_tune(make_settings(with_stored(given), "options"), QUIET)
    assert [(trial.size_inner, trial.learning_rate, trial.epochs) for trial in done.trials] == [(4, 0.05, 1)]

    # A job that is started again by itself does the same, and finds nothing to do where the first attempt had finished.
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**{name: str(given[name]) for name in ("data", "cache")}, "out": "attempt"}))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        capsys.readouterr()
        assert main([str(path), "--or-resume"]) == 0
        (trial,) = json.loads(capsys.readouterr().out)["trials"]
        assert (trial["size_inner"], trial["learning_rate"], trial["epochs"]) == (4, 0.05, 1)
    record = json.loads((killed / "run.json").read_text())
    assert (record["status"], record["data"]["unreadable"]) == ("finished", {})


def test_an_error_before_the_first_epoch_is_said_where_the_folder_cannot_be_removed(
    folder: Path,
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on NFS, which keeps the lock's file while it is open; a job's next attempt begins anew."""

    def fail(job: Any) -> Any:
        raise SearchError("no machine is left for the feature pass")

    def remove(path: Path, ignore_errors: bool = False) -> None:
        rmtree(path, ignore_errors=ignore_errors)
        path.mkdir(exist_ok=True)
        (path / ".nfs0001").touch()
        if not ignore_errors:
            raise OSError(39, "Directory not empty")

    rmtree = shutil.rmtree
    chosen = one_at_a_time(tmp_path, data=folder / "photos", cache=folder / "cache", size_inner=(4,), epochs=1)
    with monkeypatch.context() as patch, pytest.raises(SearchError, match="no machine is left"):
        patch.setattr("tune_jobs.run.run_stages", fail)
        patch.setattr("shutil.rmtree", remove)
        run_tune(chosen, QUIET)
    assert [path.name for path in chosen.out.iterdir()] == [".nfs0001"]

    values = {"data": folder / "photos", "cache": folder / "cache", "out": chosen.out, "backbone": "tiny"}
    small: dict[str, Any] = {"size_inner": 4, "learning_rate": 0.05, "epochs": 1, "grace_period": 1}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**{name: str(value) for name, value in values.items()}, **small}))
    assert main([str(path), "--or-resume"]) == 0, capsys.readouterr().err
    # A folder with anything else in it is not touched.
    other = tmp_path / "other"
    (other / "deep").mkdir(parents=True)
    (other / "deep" / "notes.txt").write_text("mine")
    path.write_text(yaml.safe_dump({"data": "photos", "out": str(other)}))
    assert main([str(path), "--or-resume"]) == 2
    assert "holds no run.json" in capsys.readouterr().err
    assert (other / "deep" / "notes.txt").read_text() == "mine"


def test_a_score_that_rounding_decides_is_said(
    folder: Path,
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def tied(*arguments: Any) -> Winner:
        won = select(*arguments)
        table = replace(won.trial, val_accuracy=won.trial.val_accuracy - 1 / 60)
        return replace(won, trial=table)

    small: dict[str, Any] = {"size_inner": (4,), "learning_rate": (0.05,), "epochs": 1, "grace_period": 1}
    for function, said in ((select, 0), (tied, 1)):
        monkeypatch.setattr("tune_jobs.stages.select", function)
        run_tune(one_at_a_time(folder, out=tmp_path / f"run-{said}", **small), Progress())
        assert capsys.readouterr().err.count("are equal but for rounding") == said


def test_a_plan_writes_nothing(summary: RunSummary, folder: Path, tmp_path: Path) -> None:
    chosen = one_at_a_time(folder, out=tmp_path / "run", scheduler="sync", epochs=6, trial_cpus=1)
    plan = plan_tune(chosen, QUIET)
    assert (plan.trials, plan.rungs, plan.most_epochs) == (4, (2,), 4 * 2 + 1 * 4)
    assert (plan.photos, plan.to_compute, plan.exact, plan.at_once) == (180, 0, True, 2)
    assert all(need.free is not None and need.needed < need.free for need in plan.needs)
    assert not (tmp_path / "run").exists()


def test_a_plan_is_refused_where_the_run_would_be(summary: RunSummary, folder: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "other", train_per_class=2, validation_per_class=1)
    with pytest.raises(UsageError, match="--out must be a new folder"):
        plan_tune(one_at_a_time(folder, out=summary.run), QUIET)
    with pytest.raises(UsageError, match="Received: epochs 5 where the run has 3"):
        plan_tune(one_at_a_time(folder, out=summary.run, resume=True, epochs=5), QUIET)
    with pytest.raises(UsageError, match="--resume needs the photos of the run"):
        plan_tune(one_at_a_time(folder, out=summary.run, resume=True, data=tmp_path / "other"), QUIET)
    assert plan_tune(one_at_a_time(folder, out=summary.run, resume=True), QUIET).trials == 4


def test_a_plan_on_a_cluster_that_has_no_machine_yet(
    folder: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_jobs.cluster.usable_nodes", tuple)
    chosen = one_at_a_time(folder, out=tmp_path / "run", address=ray_cluster, scale_up_timeout_s=900.0)
    with pytest.raises(SearchError, match="Received: a cluster that has none yet") as caught:
        plan_tune(chosen, QUIET)
    assert "would wait up to 900 s" in caught.value.hint


def test_errors_leave_no_run(folder: Path, tmp_path: Path, ray_cluster: str) -> None:
    def chosen(**changes: Any) -> Any:
        return one_at_a_time(tmp_path, **{"data": folder / "photos", **changes})

    refused(DataError, chosen(data=tmp_path / "nowhere"), "no such folder")
    refused(UsageError, chosen(backbone="tinny"), "--backbone must be one of")
    refused(UsageError, chosen(image_size=20), "--image-size for tiny must be 32 to 224 px. Received: 20")
    refused(SearchError, chosen(trial_cpus=64.0), "a trial needs 64 CPUs")
    (tmp_path / "file").write_text("")
    refused(UsageError, chosen(storage_path=str(tmp_path / "file")), "--storage-path must be a folder or a bucket")
    refused(UsageError, chosen(storage_path="s3://no-such-bucket/x"), "--storage-path must name a bucket that is there")
    refused(UsageError, chosen(storage_path="s3://key:secret@bucket/x"), "must be without credentials")

    write_sample(tmp_path / "photos", train_per_class=2, validation_per_class=1)
    broken = tmp_path / "photos" / "train" / "hat" / "broken.jpg"
    broken.write_bytes(b"no picture")
    refused(DataError, one_at_a_time(tmp_path), "1 of 31 pictures cannot be read: train/hat/broken.jpg")
    summary = run_tune(
        one_at_a_time(tmp_path, skip_unreadable=True, size_inner=(4,), learning_rate=(0.01,), epochs=1, grace_period=1),
        QUIET,
    )
    record = json.loads((summary.run / "run.json").read_text())
    assert list(record["data"]["unreadable"]) == ["train/hat/broken.jpg"]
    assert record["data"]["ignored"] == ["train/hat/broken.jpg"]
    assert record["data"]["counts"]["train"]["hat"] == 2


def test_where_no_trial_succeeds_there_is_no_bundle(
    folder: Path, tmp_path: Path, ray_cluster: str, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = one_at_a_time(
        tmp_path, data=folder / "photos", cache=folder / "cache", size_inner=(4,), learning_rate=(1e30,)
    )
    with pytest.raises(SearchError, match="every trial failed"):
        run_tune(chosen, QUIET)
    assert not (chosen.out / "best").exists()
    assert "failed" in (chosen.out / "trials.csv").read_text().splitlines()[1]
    assert json.loads((chosen.out / "run.json").read_text())["status"] == "failed"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_as_a_cluster_job(folder: Path, summary: RunSummary, tmp_path: Path) -> None:
    """The entry point, in a process of its own with a Ray of its own."""
    values = {
        "data": str(folder / "photos"),
        "out": str(tmp_path / "run"),
        "cache": str(folder / "cache"),
        "backbone": "tiny",
        "size_inner": [4],
        "learning_rate": [0.01],
        "epochs": 1,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    job = [sys.executable, "-m", "tune_jobs.run", str(path)]
    done = subprocess.run([*job, "--or-resume"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["computed"], answer["cached"], len(answer["trials"])) == (0, 180, 1)
    assert Bundle.open(tmp_path / "run" / "best").record.backbone_name == "tiny"

    again = subprocess.run(job, capture_output=True, text=True, check=False, timeout=60)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.splitlines()[0].startswith("Error: --out must be a new folder")
    assert len(again.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("backend", "mode", "said"),
    [
        ("torch", "features", "KERAS_BACKEND must be tensorflow or jax. Received: torch"),
        ("jax", "end-to-end", "--mode end-to-end needs Keras on TensorFlow. Received: KERAS_BACKEND=jax"),
    ],
)
def test_backends_that_cannot_be(
    backend: str, mode: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", backend)
    for function in (run_tune, plan_tune):
        with pytest.raises(UsageError) as caught:
            function(one_at_a_time(tmp_path, mode=mode), QUIET)
        assert caught.value.message == said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_search_with_keras_on_jax(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayml", "tune", str(folder / "photos"), "--out", str(tmp_path / "run"), "--json"]
    command += ["--backbone", "tiny", "--size-inner", "16", "--learning-rate", "0.01", "--epochs", "4"]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "RAYML_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["best"]["val_accuracy"] > 3 * answer["largest_class_share"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["keras_backend"] == "jax"


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--or-resume"], ["a", "--resume"]])
def test_how_the_job_is_called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.strip() == "Usage: python -m tune_jobs.run CONFIG.yaml [--or-resume]"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr()
    assert "python -m tune_jobs.run CONFIG.yaml" in printed.out and "--or-resume" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ["Interrupted."]),
        (
            OSError(28, "No space left on device", "/data/run/trials.csv"),
            1,
            ["Error: No space left on device: /data/run/trials.csv", "Mend that and start it again."],
        ),
    ],
)
def test_how_the_job_ends(
    error: BaseException,
    code: int,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(settings: Any, progress: Any) -> Any:
        raise error

    (tmp_path / "c.yaml").write_text("data: photos\nout: run\n")
    monkeypatch.setattr("tune_jobs.run.run_tune", fail)
    assert main([str(tmp_path / "c.yaml")]) == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()) == ("", said)


@pytest.mark.slow
def test_the_lessons_backbone_goes_the_same_way(folder: Path, tmp_path: Path, ray_cluster: str) -> None:
    """Xception at 150 px; its weights are random here, so it learns little, but everything has to agree."""
    chosen = one_at_a_time(
        tmp_path,
        data=folder / "photos",
        backbone="xception",
        weights="none",
        size_inner=(4,),
        learning_rate=(0.01,),
        epochs=2,
    )
    done = run_tune(chosen, QUIET)
    assert (done.computed, done.cached) == (180, 0)
    predictor = Predictor(done.bundle)
    record = predictor.bundle.record
    assert (record.backbone_name, record.image_size_px) == ("xception", 150)
    assert predictor.bundle.read_head().features == 2048
    assert predictor.check_golden() < 1e-4
    assert evaluate(predictor, folder / "photos" / "validation", QUIET)["accuracy"] == done.best.val_accuracy


def test_features_in_half_the_room(summary: RunSummary, folder: Path, tmp_path: Path) -> None:
    chosen = one_at_a_time(
        folder, out=tmp_path / "run", size_inner=(8,), learning_rate=(0.05,), feature_dtype="float16"
    )
    assert plan_tune(chosen, QUIET).to_compute == 180  # A bank of its own.
    found = run_tune(chosen, QUIET)
    (same,) = [t for t in summary.trials if (t.size_inner, t.learning_rate) == (8, 0.05)]
    assert (found.computed, found.cached) == (180, 0)
    assert found.best.val_loss == pytest.approx(same.val_loss, rel=0.02) and found.best.val_loss != same.val_loss
    assert json.loads((found.run / "run.json").read_text())["settings"]["feature_dtype"] == "float16"
    assert Predictor(found.bundle).check_golden() < 1e-4
