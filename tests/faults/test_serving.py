"""A server whose versions change, whose replicas die, and to which too many come; each script prints its figures."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from serving.config import ServeSettings
from serving.environment import free_port
from serving.run import running
from tests.faults import config_file, deploy_under_load, kill_replica, overload
from tests.serving.live import read_response
from tests.serving.tiny_bundle import picture, write_tiny_bundle

pytestmark = pytest.mark.slow


def test_no_request_fails_while_versions_change() -> None:
    figures = deploy_under_load.measure(10_000)
    assert figures["requests"] >= 10_000 and figures["deployments"] >= 10, figures
    assert figures["failed"] == 0, figures
    assert len(figures["versions"]) == 2, figures


def test_a_killed_replica_fails_what_it_held_and_a_client_that_retries_sees_nothing() -> None:
    figures = kill_replica.measure()
    assert figures["client_requests"] > 100 and not figures["client_failed"], figures
    # A request of each client can have been on its way to the replica.
    assert all(failed <= figures["clients"] for failed in figures["failed_by_kill"]), figures
    assert not figures["versions"].keys() - {"3"}, figures


def test_ten_times_the_load_is_refused_and_forgotten() -> None:
    figures = overload.measure(10.0)
    assert figures["refused"] > figures["accepted"] > 0, figures
    assert not figures["other"] and not figures["wrong"] and not figures["no_retry_after"], figures
    assert figures["recovered_s"] < 60, figures


def test_a_config_file_changes_the_version_and_not_the_replicas() -> None:
    figures = config_file.measure()
    assert figures["pids"][0] and figures["pids"].count(figures["pids"][0]) == 3, figures
    # The third is not reproduced here: it never answers, and the second goes on.
    assert figures["versions_live"] == [["1"], ["1", "2"], ["1", "2"]], figures
    assert figures["failed"] == 0, figures


def test_a_request_on_its_way_is_answered_before_the_end(tmp_path: Path) -> None:
    bundle, body = write_tiny_bundle(tmp_path / "b"), picture("green")
    settings = ServeSettings(port=free_port(), threads=1)
    with ExitStack() as stack:
        stack.enter_context(running(bundle, settings))
        connection = socket.create_connection((settings.host, settings.port), timeout=60)
        head = f"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:10])
        time.sleep(1)
        ending = threading.Thread(target=stack.close)
        ending.start()
        time.sleep(1)
        connection.sendall(body[10:])
        status, _, answer = read_response(connection)
        connection.close()
        ending.join()
    assert (status, json.loads(answer)["label"]) == (200, "green")
