from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

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


def test_rays_ports_are_for_who_has_the_run_s_secret(tmp_path: Path) -> None:
    """Whoever reaches a Ray without one runs code there (CVE-2023-48022)."""
    found: list[str] = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        chosen = environment.variables(tmp_path / name, ServeSettings())
        path = Path(chosen["RAY_AUTH_TOKEN_PATH"])
        assert chosen["RAY_AUTH_MODE"] == "token" and path.stat().st_mode & 0o777 == 0o600
        found.append(path.read_text(encoding="ascii"))
    assert len(found[0]) == 64 and found[0] != found[1]


def test_another_cluster_of_the_user_s_has_no_part_in_a_run(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom serving import environment\n"
        "from serving.config import ServeSettings\n"
        "environment.enter(Path(sys.argv[1]), ServeSettings())\n"
        "print(*(name for name in ('RAY_ADDRESS', 'RAY_AUTH_TOKEN', 'RAY_TMPDIR') if name in os.environ))"
    )
    theirs = {"RAY_ADDRESS": "ray://cluster:10001", "RAY_AUTH_TOKEN": "theirs", "RAY_TMPDIR": "/nowhere"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | theirs, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_proxy_waits_longer_for_a_client_than_the_deadline(tmp_path: Path) -> None:
    environment.variables(tmp_path, ServeSettings(limits=RequestLimits(deadline_s=120.5)))
    assert json.loads((tmp_path / "proxy.json").read_text())["silent_client_s"] == 150


def _in_tmp(options: str, variables: dict[str, str]) -> str:
    """What `temporary_folder` says where /tmp is mounted with these options, in a namespace of its own."""
    program = (  # Mounted once all is imported, since this installation may lie below /tmp.
        "import os, subprocess, sys\nimport serving.environment as e\n"
        f"if subprocess.call(['mount', '-t', 'tmpfs', '-o', {options!r}, 'tmpfs', '/tmp']): sys.exit(77)\n"
        f"os.mkdir('/tmp/{'x' * 20}', 0o700)\n"
        "try: print(e.temporary_folder())\nexcept Exception as error: print(error)"
    )
    command = ["unshare", "-rm", sys.executable, "-c", program]
    done = subprocess.run(
        command, env={**os.environ, **variables}, cwd="/", capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting needs root or user namespaces")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_the_run_has_its_folder_where_programs_may_run() -> None:
    assert _in_tmp("mode=1777", {"TMPDIR": ""}) == "/tmp"
    assert _in_tmp("mode=1777", {"TMPDIR": f"/tmp/{'x' * 20}"}) == "/tmp"
    assert _in_tmp("mode=1777,noexec", {"TMPDIR": "/var/tmp"}) == "/var/tmp"
    for folder in ("", f"/tmp/{'x' * 20}"):
        said = _in_tmp("mode=1777,noexec", {"TMPDIR": folder})
        assert said.startswith(
            "The temporary folder must allow programs to run. Received: /tmp, which is mounted noexec"
        )


def test_no_folder_for_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ServerError, match=r"temporary folder\. Received: No usable temporary directory") as caught:
        environment.temporary_folder()
    assert "TMPDIR" in caught.value.hint
