from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayml.bundle_json import MAX_JSON_BYTES
from rayml.errors import BundleError, DataError, UsageError
from rayml.report import write_report
from rayml.report.run import read_run
from tests.rayml.report import made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.finished(tmp_path / "run", made.photos(tmp_path / "photos"))


def test_a_finished_run(run: Path) -> None:
    found = read_run(run)
    assert found.over and found.status == "finished"
    assert [(t.trial_id, t.size_inner, t.learning_rate, t.status, len(t.epochs)) for t in found.trials] == [
        ("00000", 4, 0.001, "finished", 3),
        ("00001", 4, 0.01, "finished", 3),
        ("00002", 8, 0.001, "finished", 3),
        ("00003", 8, 0.01, "stopped", 2),
    ]
    assert [t.reason for t in found.trials] == ["", "", "", made.REASON]
    assert found.leader is found.trials[2]
    assert found.leader.best is not None
    assert (found.leader.best.number, found.leader.best.val_accuracy) == (2, 0.75)
    assert found.bundle is not None and found.predictions is not None


def test_a_run_at_work_is_read_from_what_there_is(tmp_path: Path) -> None:
    run = made.searching(tmp_path / "run", {"00001": (0.4, 0.6), "00002": (0.6,), "00003": ()})
    (run / "ledger.jsonl").write_text('{"trial": "00001", "decision": "stop", "reason": "below"}\n{"trial": "000')
    with (run / "history.csv").open("a") as file:
        file.write("00003,1,1.5,0.3")  # A line that is being written.
    found = read_run(run)
    assert not found.over
    cells = [(t.size_inner, t.learning_rate, t.status, t.reason) for t in found.trials]
    assert cells == [
        (4, 0.001, "waiting", ""),
        (4, 0.01, "stopped", "below"),
        (8, 0.001, "running", ""),
        (8, 0.01, "waiting", ""),
    ]
    assert found.leader is found.trials[1]  # Of two that are equal the first in the grid.


def test_equal_accuracy_is_decided_by_loss_then_by_order(tmp_path: Path) -> None:
    run = made.searching(tmp_path / "run", {})
    rows = ["trial_id,epoch,loss,accuracy,val_loss,val_accuracy,seconds"]
    rows += ["00000,1,1,0.5,0.9,0.5,1", "00001,1,1,0.5,0.8,0.5,1", "00002,1,1,0.5,0.8,0.5,1"]
    (run / "history.csv").write_text("\n".join(rows) + "\n")
    found = read_run(run)
    assert found.leader is not None and found.leader.trial_id == "00001"


def test_an_epoch_done_again_counts_once(tmp_path: Path) -> None:
    run = made.searching(tmp_path / "run", {"00000": (0.4, 0.6)})
    with (run / "history.csv").open("a") as file:
        file.write("00000,2,1,0.5,0.8,0.7,2\n00000,3,1,0.5,0.8,nan,2\n")
    assert [(e.number, e.val_accuracy) for e in read_run(run).trials[0].epochs] == [(1, 0.4), (2, 0.7)]


def test_an_empty_folder_is_a_search_that_has_not_begun(tmp_path: Path) -> None:
    found = read_run(tmp_path)
    assert (found.status, found.over, found.trials, found.leader) == ("starting", False, (), None)


def test_many_files_may_have_been_left_aside(tmp_path: Path) -> None:
    folder = made.searching(tmp_path / "run", {})
    names = [f"train/hat/{number:080}.xmp" for number in range(250_000)]
    record = made.record("searching")
    (folder / "run.json").write_text(json.dumps({**record, "data": {**record["data"], "ignored": names}}, indent=1))
    assert (folder / "run.json").stat().st_size > MAX_JSON_BYTES
    assert read_run(folder).record["data"]["ignored"] == names


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which is not there"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{"),
        ("run.json", "[1]"),
        ("run.json", "[" * 100_000),
        ("history.csv", "trial_id,epoch\n00000,1\n"),
        ("history.csv", "trial_id,epoch,loss,accuracy,val_loss,val_accuracy\n00000,one,1,1,1,1\n"),
        ("trials.csv", "trial_id,size_inner,learning_rate,status\n00000,many,1,finished\n"),
        ("trials.csv", "trial_id\n00000\n"),
        ("trials.csv", "trial_id;size_inner;learning_rate;status\n00000;4;0.01;finished\n"),  # a spreadsheet's
        ("cells.csv", "number\n00000\n"),
        ("predictions.csv", "path\n"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(DataError, match=name) as caught:
        read_run(run)
    assert "\n" not in caught.value.message and len(caught.value.message) < 600


@pytest.mark.parametrize("value", [None, [], "x", 3, True])
@pytest.mark.parametrize("key", ["settings", "versions", "data", "backbone", "features", "timings", "best"])
def test_a_key_of_another_type_is_named(run: Path, key: str, value: object) -> None:
    (run / "run.json").write_text(json.dumps(made.record() | {key: value}))
    with pytest.raises(DataError, match=rf"run\.json must be what a search wrote\. Received: another {key}"):
        read_run(run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("data.counts", counts) for counts in ([], {"train": None}, {"train": {"hat": "4"}}, {"train": {"hat": -1}})),
        *(("settings.epochs", epochs) for epochs in (None, "x", float("nan"), float("inf"))),
        *(("data.ignored", ignored) for ignored in (None, 5)),
        *(("data.unreadable", unreadable) for unreadable in (None, 5)),
        *(("timings.a", seconds) for seconds in (None, "x", True, float("nan"), float("inf"), -1, 1e300)),
    ],
)
def test_what_is_in_a_key_is_looked_at_too(run: Path, key: str, value: object) -> None:
    outer, inner = key.split(".")
    record = made.record()
    (run / "run.json").write_text(json.dumps({**record, outer: {**record[outer], inner: value}}))
    with pytest.raises(DataError, match=rf"Received: another {outer if outer == 'timings' else key}"):
        read_run(run)


@pytest.mark.parametrize("classes", [("dress", "hat", "boots"), ("hat", "dress", "shoes"), ("dress", "hat")])
def test_answers_of_another_search_are_refused(run: Path, tmp_path: Path, classes: tuple[str, ...]) -> None:
    made.predictions(made.photos(tmp_path / "others", classes), classes).write(run / "predictions.csv", 1.5)
    with pytest.raises(DataError, match=rf"predictions\.csv must have the classes .* Received: {', '.join(classes)}$"):
        read_run(run)
    (run / "predictions.csv").unlink()
    write_report(run)


def test_what_else_trials_differ_in(tmp_path: Path) -> None:
    run = made.searching(tmp_path / "run", {"00000": (0.5,)})
    assert [trial.described for trial in read_run(run).trials][:1] == ["size_inner 4, learning rate 0.001"]
    lines = ["trial_id,size_inner,learning_rate,dropout,batch_size,weight_decay,label_smoothing"]
    lines += ["00000,4,0.001,0.0,32,0.0,0.0", "00001,4,0.001,0.5,32,0.0001,0.0"]
    (run / "cells.csv").write_text("\n".join(lines) + "\n")
    assert [trial.described for trial in read_run(run).trials] == [
        "size_inner 4, learning rate 0.001, dropout 0, weight decay 0",
        "size_inner 4, learning rate 0.001, dropout 0.5, weight decay 0.0001",
    ]
    page = write_report(run).read_text()
    assert ">weight decay</th>" in page and ">0.0001</td>" in page and ">batch size<" not in page


def test_a_table_that_a_spreadsheet_has_saved(run: Path) -> None:
    before = read_run(run).trials
    (run / "trials.csv").write_bytes(b"\xef\xbb\xbf" + (run / "trials.csv").read_bytes())
    assert read_run(run).trials == before


def test_a_trial_outside_of_the_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trials\.csv"):
        read_run(made.searching(tmp_path / "run", {"00009": (0.4,)}))


def test_a_damaged_bundle_is_refused(run: Path) -> None:
    (run / "best" / "bundle.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(BundleError, match="format 1 was expected"):
        read_run(run)
