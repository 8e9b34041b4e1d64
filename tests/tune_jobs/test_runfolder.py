from __future__ import annotations

import dataclasses
import fcntl
import json
import multiprocessing
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from rayml.data import Manifest, Photo
from rayml.errors import UsageError
from tests.conftest import ROOT
from tests.tune_jobs.small import settings
from tune_jobs.config import make_settings
from tune_jobs.runfolder import (
    check_same_backbone,
    check_same_data,
    check_same_search,
    locked,
    order_digest,
    read_record,
    remove_unbegun,
    set_status,
    with_stored,
    write_record,
)


def refused(words: str, hint: str = "") -> Any:
    return _Refused(words, hint)


class _Refused:
    """One line that says so, and what to do."""

    def __init__(self, words: str, hint: str) -> None:
        self._words, self._hint = words, hint

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        assert isinstance(error, UsageError), error
        assert self._words in error.message and "\n" not in error.message, error.message
        assert self._hint in error.hint
        return True


# --- the lock


def test_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        with refused(f"beside process {os.getpid()} on ", "Wait until it ends"), locked(tmp_path):
            pytest.fail("two held it")
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def _hold(folder: str, ready: Any) -> None:
    lock = locked(Path(folder))
    lock.__enter__()
    ready.set()
    time.sleep(600)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(120)
    with refused(f"beside process {holder.pid} on "), locked(tmp_path):
        pytest.fail("two held it")
    holder.kill()
    holder.join()
    with locked(tmp_path):
        pass


def test_a_lock_that_its_holder_removes_in_that_moment_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third process would make a new one, and two would write."""
    holder, flock = locked(tmp_path), fcntl.flock
    holder.__enter__()

    def ends_before(file: Any, how: int) -> None:
        holder.__exit__(None, None, None)
        flock(file, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", ends_before)
        with refused("one search at a time can write"), locked(tmp_path):
            pytest.fail("it held a file that nobody else sees")
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with refused("--out must be a folder that can be written"), locked(tmp_path / "nowhere"):
        pytest.fail("it held nothing")


# --- the record


def test_what_is_no_run(tmp_path: Path) -> None:
    with refused("--resume needs the folder of a run", "Leave --resume out"):
        read_record(tmp_path / "nowhere")
    with refused("which holds no run.json", "leave --resume out"):
        read_record(tmp_path)
    for text in ("", "{", "[]", "{}", '{"settings": 3}'):
        (tmp_path / "run.json").write_text(text)
        with refused("must be readable to resume"):
            read_record(tmp_path)


def test_the_status_is_noted_where_it_can_be(tmp_path: Path) -> None:
    set_status(tmp_path, "failed", {})
    assert list(tmp_path.iterdir()) == []
    write_record(tmp_path, {"settings": {"epochs": 3}, "status": "searching"})
    set_status(tmp_path, "interrupted", {"data": 1.5})
    assert read_record(tmp_path) == {"settings": {"epochs": 3}, "status": "interrupted", "timings": {"data": 1.5}}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_who_reads_the_record_while_it_is_written_reads_the_old_one(tmp_path: Path) -> None:
    write_record(tmp_path, {"settings": {}, "status": "searching"})
    with (tmp_path / "run.json").open() as reading:
        write_record(tmp_path, {"settings": {}, "status": "finished"})
        assert json.load(reading)["status"] == "searching"
    assert read_record(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("name", ["run.json", "notes.txt", "checkpoints/00000/00001.npz"])
def test_what_is_left_of_a_run_that_never_began_is_removed_and_nothing_else(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    remove_unbegun(run)
    for stays in (False, True):
        (run / "checkpoints" / "00000").mkdir(parents=True)
        for left in (".lock", "run.json.tmp", ".nfs0001"):
            (run / left).touch()
        if stays:
            (run / name).write_text("mine")
        before = sorted(run.rglob("*"))
        remove_unbegun(run)
        assert (sorted(run.rglob("*")) if stays else run.exists()) == (before if stays else False)


def test_what_begins_while_it_is_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def begins_before(file: Any, how: int) -> None:
        write_record(tmp_path, {"settings": {}})
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", begins_before)
    remove_unbegun(tmp_path)
    assert read_record(tmp_path) == {"settings": {}}


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_weights_that_are_no_file_are_those_of_the_run(weights: str, tmp_path: Path) -> None:
    asked = settings(tmp_path, backbone="mobilenet_v2", weights=weights)
    asked.out.mkdir()
    write_record(asked.out, {"settings": asked.to_json()})
    again = make_settings(with_stored({"data": asked.data, "out": asked.out, "resume": True}), "options")
    assert again.weights == weights
    check_same_search(again, record(asked))


def test_settings_left_out_are_those_of_the_run(tmp_path: Path) -> None:
    asked = settings(tmp_path, weights="/elsewhere/a.weights.h5", epochs=5, scheduler="sync")
    asked.out.mkdir()
    write_record(asked.out, {"settings": asked.to_json(), "status": "interrupted"})
    given = {"data": "photos", "out": asked.out, "resume": True, "epochs": 7}
    completed = with_stored(given)
    assert {**completed, **given} == completed
    assert (completed["scheduler"], completed["size_inner"]) == ("sync", [4, 8])
    assert not {"weights", "cache", "address"} & set(completed)
    made = make_settings(completed, "options")
    assert (made.learning_rate, made.epochs, made.backbone) == (asked.learning_rate, 7, "tiny")
    assert with_stored({"out": asked.out, "epochs": 7}) == {"out": asked.out, "epochs": 7}
    assert with_stored({"out": 2024, "resume": True}) == {"out": 2024, "resume": True}  # Refused later, by its kind.


@pytest.mark.parametrize(("scheduler", "stored"), [("sync", 2.0), ("asha", None)])
def test_processors_of_a_trial_are_the_runs_where_they_decide(
    scheduler: str, stored: float | None, tmp_path: Path
) -> None:
    asked = settings(tmp_path, scheduler=scheduler, trial_cpus=2.0, grace_period=1)
    asked.out.mkdir()
    write_record(asked.out, {"settings": asked.to_json(), "status": "interrupted"})
    again = make_settings(with_stored({"data": asked.data, "out": asked.out, "resume": True}), "options")
    assert again.trial_cpus == stored
    check_same_search(again, record(asked))


# --- whether it is the same search


def record(asked: Any) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(json.dumps({"settings": asked.to_json()}))
    return stored


def test_other_settings_are_named(tmp_path: Path) -> None:
    asked = settings(tmp_path)
    check_same_search(asked, record(asked))
    elsewhere = dataclasses.replace(
        asked,
        data=tmp_path / "moved",
        out=tmp_path / "too",
        address="auto",
        max_concurrent=1,
        trial_cpus=2.0,
        storage_path="s3://other/bucket",
        feature_gpus=0.5,
    )
    check_same_search(dataclasses.replace(elsewhere, resume=True, skip_unreadable=True), record(asked))
    with refused("Received: size_inner [4] where the run has [4, 8]; seed 2 where the run has 1", "name another --out"):
        check_same_search(dataclasses.replace(asked, size_inner=(4,), seed=2), record(asked))
    # In sync mode the number of threads decides the last digits.
    sync = dataclasses.replace(asked, scheduler="sync", grace_period=1)
    with refused("Received: trial_cpus 2.0 where the run has None"):
        check_same_search(dataclasses.replace(sync, trial_cpus=2.0), record(sync))


def test_what_may_be_another_is_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"\nWhat says where it runs (.*?)\n\n", page, re.DOTALL)
    free = {"data", "out", *(name.replace("-", "_") for name in re.findall(r"`(?:--)?([a-z_-]+)`", told))}
    asked = settings(tmp_path)
    stored = record(asked)["settings"]
    for name in stored:
        changed = {"settings": {**stored, name: "another"}}
        if name in free:
            check_same_search(asked, changed)
        else:
            with refused(f"Received: {name} ", "Leave them out"):
                check_same_search(asked, changed)
    assert not {"cache", "mlflow", "resume"} & stored.keys()  # An address may hold a password.
    check_same_search(dataclasses.replace(asked, mlflow="http://tracker"), record(asked))


def manifest(*paths: str) -> Manifest:
    photos = []
    for path in paths:
        split, label, name = path.split("/")
        photos.append(Photo(path=path, label=label, split=split, sha256=f"{name:0>64}"))  # type: ignore[arg-type]
    return Manifest(root=Path("photos"), classes=("a", "b"), photos=tuple(photos), ignored=())


WHOLE = ("train/a/1", "train/a/2", "train/b/3", "validation/a/4", "validation/b/5")


def test_other_photos_are_named() -> None:
    before = manifest(*WHOLE)
    stored = {"data": {"digest": before.digest, "counts": before.counts(), "unreadable": {}}}
    assert check_same_data(before, stored) == before
    assert check_same_data(before, {}) == before
    with refused("Received: train/a: 3 photos where the run had 2; validation/b: 2 photos where the run had 1"):
        check_same_data(manifest(*WHOLE, "train/a/6", "validation/b/7"), stored)
    with refused("Received: as many of each class, but others"):
        check_same_data(manifest("train/a/9", *WHOLE[1:]), stored)
    # What the run could not read is left out again, also where it has been removed since.
    stored["data"]["unreadable"] = {"train/a/8": "no picture", "train/b/9": "no picture"}
    assert check_same_data(manifest(*WHOLE, "train/a/8"), stored).digest == before.digest


def test_the_same_photos_in_another_order_are_other_ones_in_sync() -> None:
    """Names decide the order, and the order what is learned."""
    before, renamed = manifest(*WHOLE), manifest(WHOLE[1], WHOLE[0], *WHOLE[2:])
    assert renamed.digest == before.digest
    data = {"digest": before.digest, "order": order_digest(before), "counts": before.counts(), "unreadable": {}}
    stored: dict[str, Any] = {"settings": {"scheduler": "sync"}, "data": data}
    assert check_same_data(before, stored) == before
    with refused("Received: the same photos in another order", "Name the folder as it was"):
        check_same_data(renamed, stored)
    assert check_same_data(renamed, {**stored, "settings": {"scheduler": "asha"}}) == renamed
    del data["order"]  # Of a run before it was recorded.
    assert check_same_data(renamed, stored) == renamed


def test_another_backbone() -> None:
    check_same_backbone("a" * 64, {})
    check_same_backbone("a" * 64, {"backbone": {"graph_sha256": "a" * 64}})
    with refused("graph sha256 bbbbbbbbbbbb. Received: aaaaaaaaaaaa"):
        check_same_backbone("a" * 64, {"backbone": {"graph_sha256": "b" * 64}})
