from __future__ import annotations

import json
from pathlib import Path

import pytest

from tune_jobs.ledger import Decision, Ledger

GO_ON = Decision("00001", 2, 0.8, None, 0, "continue", "epoch 2: 0.8000 the first at its rung: go on")
STOPPED = Decision("00003", 2, 1 / 3, 0.8, 1, "stop", "epoch 2: 0.3333 below 0.8000 of 1 trial: stop")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert not (tmp_path / "ledger.jsonl").exists()
    ledger.write(GO_ON)
    ledger.write(STOPPED)
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "trial": "00003",
        "epoch": 2,
        "value": 1 / 3,
        "cut": 0.8,
        "out_of": 1,
        "decision": "stop",
        "reason": "epoch 2: 0.3333 below 0.8000 of 1 trial: stop",
    }
    again = Ledger(tmp_path / "ledger.jsonl")
    assert again.decisions == ledger.decisions == (GO_ON, STOPPED)
    assert again.at("00003", 2) == STOPPED
    assert again.at("00003", 6) is None
    assert (again.ending("00003"), again.ending("00001")) == (STOPPED, None)
    assert again.unreadable == 0


@pytest.mark.parametrize("rest", ['{"trial": "00004", "ep', "\0\0\0", '{"trial": "00004"}\n', "[]\n", "\ufffd"])
def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).write(GO_ON)
    whole = path.read_text()
    path.write_text(whole + rest)
    ledger = Ledger(path)
    assert (ledger.decisions, ledger.unreadable) == ((GO_ON,), 1)
    assert path.read_text() == whole
    ledger.write(STOPPED)
    assert Ledger(path).decisions == (GO_ON, STOPPED)


def test_a_line_whose_end_was_cut_off_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).write(GO_ON)
    path.write_text(path.read_text().removesuffix("\n"))
    Ledger(path).write(STOPPED)
    assert Ledger(path).decisions == (GO_ON, STOPPED)


def test_a_trial_whose_process_died_may_be_tried_again(tmp_path: Path) -> None:
    """What it does then counts; until then, and for whoever only reads, it has failed."""
    path = tmp_path / "ledger.jsonl"
    died = Decision("00001", 3, None, None, 0, "fail", "epoch 3: its process died", True)
    no_number = Decision("00002", 1, None, None, 0, "fail", "epoch 1: the loss is not a finite number")
    for made in (GO_ON, died, no_number):
        Ledger(path).write(made)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1]["again"] is True and "again" not in lines[0] and "again" not in lines[2]
    assert Ledger(path).ending("00001") == Ledger(path).at("00001", 3) == died
    ledger = Ledger(path)
    ledger.try_again()
    assert (ledger.ending("00001"), ledger.at("00001", 3), ledger.ending("00002")) == (None, None, no_number)
    assert ledger.at("00001", 2) == GO_ON
    assert ledger.decisions == Ledger(path).decisions == (GO_ON, died, no_number)
    finished = Decision("00001", 3, 0.9, None, 0, "finish", "epoch 3: 0.9000 after the last epoch: finished")
    ledger.write(finished)
    for each in (ledger, Ledger(path)):
        assert each.ending("00001") == each.at("00001", 3) == finished
