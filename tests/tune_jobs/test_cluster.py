from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayml.errors import SearchError, WeightsError
from tune_jobs import cluster
from tune_jobs.cluster import LOCAL_STARTS, on_this_node, ray_cluster


def test_a_ray_that_is_connected_already_is_used_and_left(ray_cluster: str) -> None:
    import ray

    from tune_jobs.cluster import ray_cluster as connect

    with connect("local") as nodes:
        assert [(node.cpus, node.gpus) for node in nodes] == [(2, 0)]
        assert nodes[0].node_id == ray.get_runtime_context().get_node_id()
    assert ray.is_initialized()
    assert str(ray.get_runtime_context().gcs_address) == ray_cluster


def _pid() -> int:
    return os.getpid()


def _refuse() -> None:
    raise WeightsError("they do not fit", "take others")


def _fail() -> None:
    raise ZeroDivisionError("a bug")


def _die() -> None:
    os._exit(1)


def test_a_process_that_dies_is_said_in_a_line(ray_cluster: str) -> None:
    with pytest.raises(SearchError, match=r"^the process that builds the backbone died \(") as caught:
        on_this_node(_die)
    assert "\n" not in caught.value.message and "memory" in caught.value.hint


def _die_once(mark: Path) -> str:
    if mark.exists():
        return "done"
    mark.touch()
    os._exit(1)


def test_a_process_that_dies_once_is_started_again(ray_cluster: str, tmp_path: Path) -> None:
    assert on_this_node(_die_once, tmp_path / "mark") == "done"


def test_a_call_in_a_process_of_its_own(ray_cluster: str) -> None:
    import ray

    assert on_this_node(_pid) != os.getpid()
    with pytest.raises(WeightsError) as caught:
        on_this_node(_refuse)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == ("they do not fit", "take others", 2)
    with pytest.raises(ray.exceptions.RayTaskError, match="a bug"):
        on_this_node(_fail)


def _connect(address: str) -> tuple[str, str]:
    """What a process that is connected to no Ray gets."""
    code = (
        "import sys\nfrom rayml.errors import RaymlError\nfrom tune_jobs.cluster import ray_cluster\n"
        "try:\n    with ray_cluster(sys.argv[1]) as nodes:\n        print(len(nodes))\n        print(nodes[0].cpus)\n"
        "except RaymlError as error:\n    print(type(error).__name__, error.message)\n    print(error.hint)"
    )
    return _run(code, address)


def _run(code: str, address: str) -> tuple[str, str]:
    """The two lines that a process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, check=True, timeout=120
    )
    first, second = done.stdout.splitlines()
    return first, second


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:²", ""])
def test_addresses_that_are_none(address: str) -> None:
    first, _ = _connect(address)
    assert first == f"UsageError --address must be local, auto or HOST:PORT. Received: {address}"


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    first, second = _connect(address)
    assert first.startswith(f"SearchError no Ray answers at --address {address} (")
    assert "leave --address out" in second


def test_names_and_ports_that_cannot_be() -> None:
    assert _connect("no-such-host.invalid:6379")[0].startswith("SearchError no Ray answers at --address no-such-host")
    assert _connect("..:6379")[0].startswith("SearchError no Ray answers at --address ..:6379 (")
    assert _connect("127.0.0.1:99999")[0].startswith("SearchError no Ray answers")


def test_a_ray_that_does_not_come_up_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from tune_jobs.cluster import ray_cluster as connect

    def too_slow(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because\nit did")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(SearchError, match=r"^Ray could not be started .*timed out during startup") as raised:
        connect("local").__enter__()
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(("given", "passed"), [("jax", "jax"), ("", "tensorflow")])
def test_workers_get_the_backend_of_keras(given: str, passed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a Ray that is started here inherit it; those of a cluster are told."""
    import ray

    from tune_jobs.cluster import ray_cluster as connect

    calls: list[dict[str, Any]] = []
    monkeypatch.setenv("KERAS_BACKEND", given)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **arguments: calls.append(arguments))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "usable_nodes", tuple)
    with connect("auto"):
        assert os.environ["KERAS_BACKEND"] == passed
    assert calls[0]["runtime_env"]["env_vars"]["KERAS_BACKEND"] == passed


def test_the_process_is_gone_after_the_call(ray_cluster: str) -> None:
    """Ray would keep it idle, and what it has imported in memory through the whole search."""
    number, end = on_this_node(_pid), time.monotonic() + 20
    while Path(f"/proc/{number}").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not Path(f"/proc/{number}").exists()


def test_the_process_sees_no_graphics_processor(ray_cluster: str) -> None:
    """`ray_cluster` leaves Ray's own way in force, to hide none of them."""
    assert on_this_node(os.getenv, "CUDA_VISIBLE_DEVICES") == ""


_VISIBLE = """
import functools, os, sys, ray
from tune_jobs import cluster
cluster.start_local = functools.partial(cluster.start_local, num_cpus=1, num_gpus=1, object_store_memory=80 << 20)
with cluster.ray_cluster(sys.argv[1]):
    for share in (0, 0.5):
        try:
            task = ray.remote(os.getenv).options(num_cpus=1, num_gpus=share).remote("CUDA_VISIBLE_DEVICES")
            print(repr(ray.get(task, timeout=60 if share == 0 or sys.argv[1] == "local" else 1)))
        except ray.exceptions.GetTimeoutError:
            print("no room")
"""


@pytest.mark.parametrize("address", ["local", "joined"])
def test_who_asks_for_no_graphics_processor_sees_none(
    address: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own: a Ray that these tests' surroundings do not reach, and one that has been started."""
    if address == "joined":
        assert _run(_VISIBLE, request.getfixturevalue("ray_cluster")) == ("''", "no room")
        return
    monkeypatch.delenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
    assert _run(_VISIBLE, "local") == ("''", "'0'")


def _write(ends: bool) -> str:
    (Path(tempfile.mkdtemp()) / "weights").write_bytes(b"x")
    if ends:
        return tempfile.gettempdir()
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def _write_and_wait(begun: str) -> None:
    _write(True)
    Path(begun).touch()
    time.sleep(600)


def test_a_process_of_its_own_leaves_nothing_in_the_temporary_folder(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert Path(on_this_node(_write, True)).parent == tmp_path / "temporary"
    with pytest.raises(SearchError, match="the process that builds the backbone died"):
        on_this_node(_write, False)
    begun = tmp_path / "begun"

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job would ignore it.
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            on_this_node(_write_and_wait, str(begun))
    finally:
        signal.signal(signal.SIGINT, before)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_joining_a_ray_by_its_address(ray_cluster: str) -> None:
    assert _connect(ray_cluster) == ("1", "2")


def test_a_submitted_job_may_set_the_same_variables(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = {"runtime_env": {"env_vars": {"KERAS_BACKEND": "tensorflow", "OTHER": "kept"}}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    code = (
        "import os, sys, ray\nfrom tune_jobs.cluster import on_this_node, ray_cluster\n"
        "with ray_cluster(sys.argv[1]):\n    print(on_this_node(os.getenv, 'KERAS_BACKEND'))\n"
        "    print(on_this_node(os.getenv, 'OTHER'))"
    )
    assert _run(code, ray_cluster) == ("tensorflow", "kept")


@pytest.mark.parametrize(("late", "tries"), [(1, 2), (9, LOCAL_STARTS)])
def test_a_ray_that_a_busy_machine_starts_late(late: int, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes have 30 seconds; then it raises this bare Exception."""
    import ray

    calls: list[dict[str, object]] = []

    def init(**arguments: object) -> None:
        calls.append(arguments)
        if len(calls) <= late:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    if late < LOCAL_STARTS:
        cluster._connect("local")
    else:
        with pytest.raises(SearchError, match="could not be started") as caught:
            cluster._connect("local")
        assert "uptime" in caught.value.hint
    assert len(calls) == tries


def test_a_cluster_that_wants_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**arguments: Any) -> None:
        raise ray.exceptions.AuthenticationError("the token is wrong\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(SearchError, match="a Ray that lets this process in was") as caught, ray_cluster("auto"):
        pass
    assert "the token is wrong" in caught.value.message and "RAY_AUTH_TOKEN" in caught.value.hint
