from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rayml.errors import ServerError
from serving import environment
from serving.config import ServeSettings
from serving.limits import RequestLimits


def test_a_free_port_is_one_that_no_connection_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(environment, "_is_free", lambda port: asked.append(port) or len(asked) == 3)
    assert environment.free_port() == asked[2]
    assert len(set(asked)) == 3 and min(asked) > 29_999 and max(asked) < 32_768
    monkeypatch.setattr(environment, "_is_free", lambda port: False)
    with pytest.raises(ServerError, match="must be free"):
        environment.free_port()


def test_ports_that_are_chosen_before_ray_listens_there_are_given_to_no_connection(tmp_path: Path) -> None:
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen = environment.variables(tmp_path, ServeSettings())
    names = [name for name in chosen if name.endswith("_PORT")]
    ports = [int(chosen[name]) for name in names]
    assert len(ports) == 4
    assert min(ports) > 19_999 and max(ports) < ephemeral, dict(zip(names, ports, strict=True))
    fixed = {int(chosen["DASHBOARD_METRIC_PORT"]), int(chosen["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"])}
    first, last = (int(chosen[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX"))
    assert len(fixed) == 2 and not fixed & set(range(first, last + 1))


def test_a_block_whose_last_ports_are_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PORT_BLOCKS", 2)
    monkeypatch.setattr(environment, "_FIRST_BLOCK", 30_000)  # Where no server of another test takes ports.
    with socket.socket() as used, socket.socket() as too:
        for listener, block in ((used, 0), (too, 1)):
            port = environment._FIRST_BLOCK + environment._BLOCK_SIZE * (block + 1) - 1 - block
            listener.bind(("127.0.0.1", port))
            listener.listen()
            if not block:
                assert {environment._port_block()[0] for _ in range(20)} == {
                    environment._FIRST_BLOCK + environment._BLOCK_SIZE
                }
        with pytest.raises(ServerError, match="ports from 30000 on that are free"):
            environment._port_block()


def test_what_a_killed_replica_leaves_goes_with_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import tempfile; print(tempfile.mkdtemp())"]
    variables = {**os.environ, **environment.variables(tmp_path, ServeSettings())}
    left = subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout.strip()
    assert Path(left).parent == tmp_path


def test_the_proxy_waits_longer_for_a_client_than_the_deadline(tmp_path: Path) -> None:
    environment.variables(tmp_path, ServeSettings(limits=RequestLimits(deadline_s=120.5)))
    assert json.loads((tmp_path / "proxy.json").read_text())["silent_client_s"] == 150
