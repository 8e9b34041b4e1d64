"""What is started in the background is batch work, and what answers is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from serving.scheduling import in_background, in_foreground

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="batch work is Linux's")


def _of_a_child() -> int:
    code = "import os; print(os.sched_getscheduler(0))"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def _of_a_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
    thread.start()
    thread.join()
    return found[0]


def test_what_is_started_in_the_background_stays_there() -> None:
    with in_background():
        assert (_of_a_child(), _of_a_thread()) == (os.SCHED_BATCH, os.SCHED_BATCH)
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert (_of_a_child(), _of_a_thread()) == (os.SCHED_OTHER, os.SCHED_OTHER)


def test_a_failure_in_the_background_does_not_leave_this_thread_there() -> None:
    with pytest.raises(ValueError, match="an error"), in_background():
        raise ValueError("an error")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_the_foreground_is_left_and_entered_by_single_threads() -> None:
    found: list[int] = []

    def work() -> None:
        in_foreground()
        found.extend([os.sched_getscheduler(0), _of_a_child(), _of_a_thread()])

    with in_background():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert found == [os.SCHED_OTHER] * 3


def test_a_policy_that_somebody_else_chose_stays() -> None:
    code = (
        "import os; from serving.scheduling import in_foreground; os.sched_setscheduler(0, os.SCHED_IDLE, "
        "os.sched_param(0)); in_foreground(); print(os.sched_getscheduler(0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) == os.SCHED_IDLE


def test_where_it_is_forbidden_all_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with in_background():
        in_foreground()
