"""The sides of bench/serving.py: the bare model, rayml and its rivals, installed, started, stopped until their turn."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from environments import BASE, KERAS, as_here

from rayml.bundle import Bundle
from rayml.cores import usable_cores
from serving.processes import descendants

HERE = Path(__file__).resolve().parent
_FLASK = ("flask==3.1.3", "gunicorn==27.0.1")
# In Keras' spelling, for the rivals that predict with Keras.
_APPLICATIONS = {"xception": "Xception", "mobilenet_v2": "MobileNetV2", "tiny": "MobileNetV2"}
_WARM_S, _SETTLE_S = 8.0, 1.0  # rayml makes its model quicker three seconds after its start.
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 60.0  # One that was stopped for minutes takes its time.
_LOG_LINES = 20
_BOUNDARY = "bench-5f1c0e7d"
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rival:
    """A server: what it needs, how it is started, where and how it is asked.

    Arguments:
        packages: for pip; none for rayml itself, which runs in this environment.
        command: `{bin}`, `{port}`, `{threads}`, `{precision}` and `{folder}` are filled in.
        path: where pictures are posted.
        form: how the picture is sent: its `bytes` alone, a `file` of a multipart form, in `json` in base64, or so
            as a `tensor` of Open Inference. Where a server takes several, the one with the least work.
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    path: str = "/predict"
    form: Literal["bytes", "file", "json", "tensor"] = "bytes"


# No timeout: a worker that was stopped while others took their turns is not one that hangs. Connections stay open as
# long as the others' do by default, beyond the seconds that Keras keeps 32 of them waiting.
_GUNICORN = (
    *("--workers", "1", "--threads", "{threads}", "--bind", "127.0.0.1:{port}", "--log-level", "error"),
    *("--timeout", "0", "--keep-alive", "75"),
)


RIVALS: dict[str, Rival] = {
    "rayml": Rival(
        (),
        (
            sys.executable,
            "-m",
            "serving.run",
            "{bundle}",
            "--settings",
            '{{"port": {port}, "precision": "{precision}"}}',
        ),
    ),
    "fastapi": Rival(
        (*BASE, "fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        ("{bin}/uvicorn", "fastapi_app:app", "--port", "{port}", "--no-access-log", "--log-level", "error"),
    ),
    "flask": Rival((*BASE, *_FLASK), ("{bin}/gunicorn", "flask_app:app", *_GUNICORN)),
    "bentoml": Rival(
        (*BASE, "bentoml==1.4.40"),
        ("{bin}/bentoml", "serve", "bentoml_app:Classifier", "--port", "{port}", "-q"),
        form="file",
    ),
    "litserve": Rival((*BASE, "litserve==0.2.19"), ("{bin}/python", "litserve_app.py"), form="json"),
    "mlserver": Rival(
        (*BASE, "mlserver==1.7.1"),
        ("{bin}/mlserver", "start", "{folder}"),
        "/v2/models/classifier/infer",
        form="tensor",
    ),
    "ray_keras": Rival((*KERAS, as_here("ray", "[serve]")), ("{bin}/python", "ray_keras_start.py")),
    "flask_keras": Rival((*KERAS, *_FLASK), ("{bin}/gunicorn", "flask_keras_app:app", *_GUNICORN)),
}


class Bare:
    """The bare model in a loop, in a process that waits for orders."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def measure(self, connections: int, seconds: float) -> dict[str, float]:
        """Classify for some seconds; more loops than cores would only wait for each other."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"seconds": seconds, "workers": min(connections, usable_cores())}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return _figures(json.loads(self._process.stdout.readline()))


@contextmanager
def bare_side(
    script: str, folder: Path, photos: list[bytes], work: Path, surroundings: dict[str, str]
) -> Iterator[Bare]:
    """A loop without a server in a process of its own, warm.

    Arguments:
        script: `bare.py` or `bare_rayml.py`.
        folder: the `bin` folder of its environment.
        photos: JPEG files.
        work: a folder for files.
        surroundings: see `surroundings_of`.
    """
    where = work / f"{script}-photos"
    where.mkdir()
    for number, photo in enumerate(photos):
        (where / f"{number:03}.jpg").write_bytes(photo)
    command = [str(folder / "python"), script, str(where)]
    if script == "bare_rayml.py":
        surroundings = surroundings | {"PYTHONPATH": str(HERE.parent)}
    with subprocess.Popen(
        command, cwd=HERE / "rivals", env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        bare = Bare(process)
        bare.measure(8, _WARM_S)
        yield bare
        process.stdin.close()


class Server:
    """A server that runs, stopped until its turn.

    Arguments:
        root: the first process of its tree.
        requests: the folder of its requests.
        url: its address.
    """

    def __init__(self, root: int, requests: Path, url: str) -> None:
        self._root, self._requests, self._url = root, requests, url

    def measure(self, connections: int, seconds: float) -> dict[str, float]:
        """Load it for some seconds."""
        self.signal(signal.SIGCONT)
        time.sleep(_SETTLE_S)  # Its timers catch up.
        before = _cpu_s(self._root)
        measured = _load(self._requests, self._url, connections, seconds)
        measured["cpu_s"] = _cpu_s(self._root) - before
        self.signal(signal.SIGSTOP)
        return _figures(measured)

    def signal(self, which: signal.Signals) -> None:
        """Send a signal to every process of its tree, also to those that start meanwhile."""
        told: set[int] = set()
        while new := (descendants(self._root) | {self._root}) - told:
            for pid in new:
                with suppress(ProcessLookupError):
                    os.kill(pid, which)
            told |= new


@contextmanager
def server_side(
    name: str, folder: Path, bundle: Path, photos: list[bytes], work: Path, surroundings: dict[str, str]
) -> Iterator[Server]:
    """A server in processes of its own, warm on every thread and stopped; its log is NAME.log in `work`.

    Arguments:
        name: in `RIVALS`.
        folder: the `bin` folder of its environment.
        bundle: what it serves.
        photos: JPEG files.
        work: a folder for files.
        surroundings: see `surroundings_of`.

    Raises:
        SystemExit: it ended, or did not answer in time.
    """
    rival, port = RIVALS[name], _free_port()
    requests = work / f"{name}-requests"
    requests.mkdir()
    for number, photo in enumerate(photos):
        (requests / f"{number:03}").write_bytes(_request(rival, photo))
    with _running(name, folder, bundle, port, work, surroundings) as process:
        server = Server(process.pid, requests, f"http://127.0.0.1:{port}")
        if reason := _why_not_ready(rival, f"http://127.0.0.1:{port}", photos[0], process):
            lines = (work / f"{name}.log").read_text(errors="replace").splitlines()[-_LOG_LINES:]
            raise SystemExit("\n".join([f"{name} {reason}. Its log ends with:", *lines]))
        server.measure(8, _WARM_S)
        try:
            yield server
        finally:
            server.signal(signal.SIGCONT)


@contextmanager
def _running(
    name: str, folder: Path, bundle: Path, port: int, work: Path, surroundings: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The server, in its own session, ended afterwards; what may stay of its tree is left to the caller."""
    rival = RIVALS[name]
    settings = work / "mlserver"
    settings.mkdir(exist_ok=True)
    grpc, metrics = _free_port(), _free_port()
    server_settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc, "metrics_port": metrics}
    (settings / "settings.json").write_text(json.dumps(server_settings | {"parallel_workers": 0, "debug": False}))
    model = {"name": "classifier", "implementation": "mlserver_app.Classifier"}
    (settings / "model-settings.json").write_text(json.dumps(model))
    filled = {"bin": folder, "port": port, "threads": usable_cores(), "folder": settings, "bundle": bundle.resolve()}
    filled["precision"] = surroundings["RIVAL_PRECISION"]
    command = [part.format(**filled) for part in rival.command]
    where = HERE.parent if name == "rayml" else HERE / "rivals"
    environment = dict(os.environ) if name == "rayml" else surroundings | {"RIVAL_PORT": str(port)}
    if name != "rayml":
        environment["PYTHONPATH"] = str(HERE / "rivals")
    with (work / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=where, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _why_not_ready(rival: Rival, url: str, photo: bytes, process: subprocess.Popen[bytes]) -> str:
    """Wait until it answers; nothing where it does, else what was expected and what came."""
    body, kind = _body(rival, photo)
    came = "no answer"
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"must run. Received: it ended with {process.returncode}"
        request = urllib.request.Request(url + rival.path, body, {"content-type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if answer.status == 200:
                    return ""
                came = f"status {answer.status}"
        except urllib.error.HTTPError as error:
            came = f"status {error.code}"
        except OSError:
            pass
        time.sleep(0.2)
    return f"must answer with status 200 within {_START_TIMEOUT_S:g} s. Received: {came}"


def _load(requests: Path, url: str, connections: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, str(HERE / "load.py"), str(requests), url]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    measured: dict[str, float] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return measured


def _figures(measured: dict[str, float]) -> dict[str, float]:
    return {
        "per_s": measured["answers"] / measured["seconds"],
        "cpu_ms": 1000 * measured["cpu_s"] / (measured["answers"] + measured["failures"]),
        "p50_ms": measured["p50_ms"],
        "p99_ms": measured["p99_ms"],
        "failures": measured["failures"],
    }


def _cpu_s(root: int) -> float:
    """Processor time of a process, its descendants and those of them that have ended."""
    ticks = 0
    for pid in descendants(root) | {root}:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(fields[n]) for n in (11, 12, 13, 14))  # proc_pid_stat(5): utime, stime, cutime, cstime
    return ticks * _TICK_S


def surroundings_of(bundle: Path, precision: str = "float32") -> dict[str, str]:
    """The environment variables that the scripts of bench/rivals/ read, beside this process's own.

    Arguments:
        bundle: what is served.
        precision: what the model computes in; for int8, which is in the graph, its other layers are in float32.
    """
    record = Bundle.open(bundle).record
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {
        "RIVAL_MODEL": str(bundle.resolve() / "model.onnx"),
        "RIVAL_SIZE": str(record.image_size_px),
        "RIVAL_THREADS": str(usable_cores()),
        "RIVAL_PRECISION": precision,
        "RIVAL_BACKBONE": _APPLICATIONS.get(record.backbone_name, record.backbone_name),
        "RIVAL_CLASSES": str(len(record.classes)),
        "RIVAL_INNER": str(record.size_inner),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def some_photos(folder: Path) -> list[bytes]:
    """64 JPEG files from below a folder, evenly out of the sorted ones; all where there are fewer.

    Raises:
        SystemExit: there are none.
    """
    paths = sorted(folder.rglob("*.jpg"))
    step = max(1, len(paths) // 64)
    photos = [path.read_bytes() for path in paths[::step][:64]]
    if not photos:
        raise SystemExit(f"PHOTOS must hold JPEG files. Received: none in {folder}")
    print(f"{len(photos)} photos of {statistics.mean(map(len, photos)) / 1000:.0f} kB", file=sys.stderr)
    return photos


def _body(rival: Rival, photo: bytes) -> tuple[bytes, str]:
    if rival.form == "bytes":
        return photo, "image/jpeg"
    if rival.form == "file":
        part = 'Content-Disposition: form-data; name="image"; filename="photo.jpg"\r\nContent-Type: image/jpeg'
        body = f"--{_BOUNDARY}\r\n{part}\r\n\r\n".encode() + photo + f"\r\n--{_BOUNDARY}--\r\n".encode()
        return body, f"multipart/form-data; boundary={_BOUNDARY}"
    encoded = base64.b64encode(photo).decode()
    if rival.form == "json":
        return json.dumps({"image": encoded}).encode(), "application/json"
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded]}
    return json.dumps({"inputs": [tensor]}).encode(), "application/json"


def _request(rival: Rival, photo: bytes) -> bytes:
    body, kind = _body(rival, photo)
    head = f"POST {rival.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
