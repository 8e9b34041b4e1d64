from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from rayml.progress import Progress

CODE = (
    "from rayml.progress import Progress\nprogress = Progress()\nprogress.say('one [red]line[/red]')\n"
    "with progress.bar('features', 30, 'photos') as advance:\n"
    "    for _ in range(3):\n        advance(10, 'best 0.5')\n"
    "progress.say('the end')"
)


def test_plain_lines_where_there_is_no_terminal() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    first, work, last = done.stderr.splitlines()
    assert (first, last) == ("one [red]line[/red]", "the end")
    assert work.startswith("features: 30/30 photos, ")
    assert work.endswith("photos/s, best 0.5")


def test_a_bar_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=theirs, env=environment, stdin=subprocess.DEVNULL
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux's way of saying that the other end was closed.
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.communicate(timeout=60)[0] == b""
    assert b"30/30" in shown
    assert b"photos/s" in shown
    assert b"best 0.5" in shown


def test_long_lines_stay_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().say("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    progress.say("something")
    with progress.bar("features", 1, "photos") as advance:
        advance()
    assert capsys.readouterr() == ("", "")


def test_a_piece_of_work_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().bar("features", 0, "photos"):
        pass
    assert capsys.readouterr().out == ""


def test_work_whose_pieces_take_unequal_times_is_not_reckoned_by_them(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().bar("trials", 3, "trials", even=False) as advance:
        advance(1, "at most 9 s left")
        advance(2, "none left")
    assert capsys.readouterr().err.splitlines() == ["trials: 3/3 trials, none left"]


def test_work_that_need_not_be_remembered_is_seen_only_where_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress().bar("reading train", 2, "photos", lasting=False) as advance:
        advance(2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("rayml.progress.LINE_EVERY_S", 0.0)
    with Progress().bar("reading train", 2, "photos", lasting=False) as advance:
        advance(1)
    assert capsys.readouterr().err.startswith("reading train: 1/2 photos, ")
