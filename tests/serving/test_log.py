"""Log lines: one whole JSON object each, through a pipe that never makes a request wait."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest

from serving.log import LogReader, RequestLog


class _Output(io.StringIO):
    def __init__(self, lines: int) -> None:
        super().__init__()
        self.full = threading.Event()
        self._lines = lines

    def flush(self) -> None:
        if self.getvalue().count("\n") >= self._lines:
            self.full.set()


def test_lines_arrive_whole_through_the_pipe(tmp_path: Path) -> None:
    output = _Output(lines=3)
    LogReader(tmp_path / "log", output)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600
    log = RequestLog(tmp_path / "log", every_request=True)
    log.write("info", {"path": 'a"\n\ud800', "status": 200})
    log.write("error", {"path": "/b", "status": 500})
    log.write("error", {"trace": "x" * 100_000, "status": 500})
    assert output.full.wait(10)
    first, second, third = (json.loads(line) for line in output.getvalue().splitlines())
    assert (first["level"], first["path"], first["status"]) == ("info", 'a"\n\ud800', 200)
    assert second["level"] == "error" and second["time"].endswith("Z")
    assert third["status"] == 500 and set(third["trace"]) == {"x"}


def test_a_pipe_that_nobody_empties_does_not_hold_anybody_up(tmp_path: Path) -> None:
    class Stuck(io.StringIO):
        def write(self, _text: str) -> int:
            time.sleep(5)
            return 0

    LogReader(tmp_path / "log", Stuck())
    log = RequestLog(tmp_path / "log", every_request=True)
    began = time.monotonic()
    for _ in range(2_000):
        log.write("info", {"path": "x" * 200})
    assert time.monotonic() - began < 4.0


def test_without_a_pipe_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    RequestLog(None, every_request=False).write("error", {"status": 500})
    assert json.loads(capsys.readouterr().err)["status"] == 500
