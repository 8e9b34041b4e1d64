"""What a served answer costs beside the bare model's, and beside other servers with the same model and photos.

    python bench/serving.py BUNDLE PHOTOS [--only rayml,fastapi] [--rounds 15] [--seconds 3] [--cache FOLDER]
    python bench/serving.py BUNDLE PHOTOS --only rayml --rounds 3          # a first look, two minutes

Claims: at 8 and 32 connections throughput is at least 0.97 of the bare model's (OpenVINO and decoding in a loop on as
many threads as cores, no server), processor time a request at most 1.08 of it, and more answers than every rival's; at
one connection the median latency is at most the bare model's + 3 ms.

A machine's speed drifts by more than these differences within minutes. So all servers are started once, and take turns
of a few seconds, many times, each turn in another order; who waits is stopped (SIGSTOP) with its whole process tree and
costs the others nothing. What is compared is always of the same round, and of these ratios the median counts. Each
server gets the same requests from `bench/load.py` in a process of its own, whose time the servers pay for and the bare
model does not. Processor time is that of the server's whole process tree.

Rivals live in `bench/rivals/`, each is installed into an environment of its own below --cache, once (FastAPI 0.3 GB,
those with TensorFlow 2 GB), with the versions that `RIVALS` names. Writes bench/results/serving_BACKBONE.json.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# This file has the package's name and lies first on the module path.
sys.path.insert(0, str(HERE.parent))

from measure import machine, quartiles, spread, versions, write_result  # noqa: E402

from rayml.bundle import Bundle  # noqa: E402
from rayml.errors import RaymlError  # noqa: E402
from serving.config import usable_cores  # noqa: E402
from serving.processes import adopt_orphans, descendants, end_descendants  # noqa: E402

# The engine and the decoder in the very versions that rayml runs with here.
BASE = tuple(f"{name}=={importlib.metadata.version(name)}" for name in ("openvino", "pillow", "numpy"))
KERAS = ("tensorflow-cpu==2.21.0", "pillow")
# In Keras' spelling, for the rivals that predict with Keras.
_APPLICATIONS = {"xception": "Xception", "mobilenet_v2": "MobileNetV2", "tiny": "MobileNetV2"}
_CONNECTIONS = (1, 8, 32)
_COMPARED = ("per_s", "cpu_ms")
_WARM_S, _SETTLE_S = 3.0, 1.0
_START_TIMEOUT_S = 300.0
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")

Round = dict[str, dict[int, dict[str, float]]]  # Figures by server and connections.


@dataclass(frozen=True)
class Rival:
    """A server: what it needs, how it is started, where and how it is asked.

    Arguments:
        packages: for pip; none for rayml itself, which runs in this environment.
        command: `{bin}`, `{port}`, `{threads}` and `{folder}` are filled in.
        path: where pictures are posted.
        as_tensor: whether the request is Open Inference's JSON with the picture in base64 instead of its bytes.
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    path: str = "/predict"
    as_tensor: bool = False


_GUNICORN = ("--workers", "1", "--threads", "{threads}", "--bind", "127.0.0.1:{port}", "--log-level", "error")
RIVALS: dict[str, Rival] = {
    "rayml": Rival((), (sys.executable, "-m", "serving.run", "{bundle}", "--settings", '{{"port": {port}}}')),
    "fastapi": Rival(
        (*BASE, "fastapi", "uvicorn[standard]"),
        ("{bin}/uvicorn", "fastapi_app:app", "--port", "{port}", "--no-access-log", "--log-level", "error"),
    ),
    "flask": Rival((*BASE, "flask", "gunicorn"), ("{bin}/gunicorn", "flask_app:app", *_GUNICORN)),
    "bentoml": Rival(
        (*BASE, "bentoml"), ("{bin}/bentoml", "serve", "bentoml_app:Classifier", "--port", "{port}", "-q")
    ),
    "litserve": Rival((*BASE, "litserve"), ("{bin}/python", "litserve_app.py")),
    "mlserver": Rival(
        (*BASE, "mlserver"), ("{bin}/mlserver", "start", "{folder}"), "/v2/models/classifier/infer", as_tensor=True
    ),
    "ray_keras": Rival((*KERAS, "ray[serve]"), ("{bin}/python", "ray_keras_start.py")),
    "flask_keras": Rival((*KERAS, "flask", "gunicorn"), ("{bin}/gunicorn", "flask_keras_app:app", *_GUNICORN)),
}


def main() -> int:
    """Measure in rounds and write what was measured; 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos", type=Path, help="a folder with JPEG files, at any depth; the first 64 are used")
    parser.add_argument("--only", default=",".join(RIVALS), help="servers, separated by commas")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "rayml-rivals")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    unknown = set(names) - set(RIVALS)
    if unknown:
        parser.error(f"--only must name some of {', '.join(RIVALS)}. Received: {', '.join(sorted(unknown))}")
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2. Received: {arguments.rounds}")
    try:
        Bundle.open(arguments.bundle)
    except RaymlError as error:
        parser.error(error.message)
    adopt_orphans()
    bins = {name: _install(arguments.cache, RIVALS[name].packages) for name in names}
    bare_bin = _install(arguments.cache, BASE)
    rounds: list[Round] = []
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rayml-bench-")))
        photos = _photos(arguments.photos)
        surroundings = _surroundings(arguments.bundle)
        stack.callback(end_descendants, grace_s=10)
        sides: dict[str, _Bare | _Server] = {"bare": stack.enter_context(_bare(bare_bin, photos, work, surroundings))}
        for name in names:
            server = _server(name, bins[name], arguments.bundle, photos, work, surroundings)
            sides[name] = stack.enter_context(server)
        for number in range(arguments.rounds):
            rounds.append({})
            for connections in _CONNECTIONS:
                for name in _order(list(sides), number):
                    found = sides[name].measure(connections, arguments.seconds)
                    rounds[-1].setdefault(name, {})[connections] = found
                    print(
                        f"round {number + 1}, {name}, {connections}: {json.dumps(found)}", file=sys.stderr, flush=True
                    )
    record = Bundle.open(arguments.bundle).record
    ratios = _ratios(rounds)
    claims = _claims(rounds, ratios)
    write_result(
        f"serving_{record.backbone_name}",
        {
            "machine": machine(),
            "versions": versions("rayml", "ray", "openvino") | {n: _versions(bins[n]) for n in names if n != "rayml"},
            "bundle": f"{record.backbone_name} at {record.image_size_px} px",
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "figures": _summary(rounds),
            "by_bare": ratios,
            "claims": claims,
        },
    )
    return 0 if all(claims.values()) else 1


def _order(names: list[str], number: int) -> list[str]:
    """Each time another one first, and every other time backwards: who follows whom does not stay the same."""
    first = number % len(names)
    turned = names[first:] + names[:first]
    return turned[::-1] if number % 2 else turned


class _Bare:
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
def _bare(folder: Path, photos: list[bytes], work: Path, surroundings: dict[str, str]) -> Iterator[_Bare]:
    where = work / "photos"
    where.mkdir()
    for number, photo in enumerate(photos):
        (where / f"{number:03}.jpg").write_bytes(photo)
    command = [str(folder / "python"), "bare.py", str(where)]
    with subprocess.Popen(
        command, cwd=HERE / "rivals", env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        bare = _Bare(process)
        bare.measure(8, _WARM_S)
        yield bare
        process.stdin.close()


class _Server:
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
def _server(
    name: str, folder: Path, bundle: Path, photos: list[bytes], work: Path, surroundings: dict[str, str]
) -> Iterator[_Server]:
    rival, port = RIVALS[name], _free_port()
    requests = work / f"{name}-requests"
    requests.mkdir()
    for number, photo in enumerate(photos):
        (requests / f"{number:03}").write_bytes(_request(rival, photo))
    with _running(name, folder, bundle, port, work, surroundings) as process:
        server = _Server(process.pid, requests, f"http://127.0.0.1:{port}")
        _await(rival, f"http://127.0.0.1:{port}", photos[0], process)
        server.measure(8, _WARM_S)  # On every thread.
        try:
            yield server
        finally:
            server.signal(signal.SIGCONT)


@contextmanager
def _running(
    name: str, folder: Path, bundle: Path, port: int, work: Path, surroundings: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The server, in its own session; its whole tree is ended afterwards."""
    rival = RIVALS[name]
    settings = work / "mlserver"
    settings.mkdir(exist_ok=True)
    grpc, metrics = _free_port(), _free_port()
    server_settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": grpc, "metrics_port": metrics}
    (settings / "settings.json").write_text(json.dumps(server_settings | {"parallel_workers": 0, "debug": False}))
    model = {"name": "classifier", "implementation": "mlserver_app.Classifier"}
    (settings / "model-settings.json").write_text(json.dumps(model))
    filled = {"bin": folder, "port": port, "threads": usable_cores(), "folder": settings, "bundle": bundle.resolve()}
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
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(rival: Rival, url: str, photo: bytes, process: subprocess.Popen[bytes]) -> None:
    body, kind = _body(rival, photo)
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"The server must run. Received: it ended with {process.returncode}; see its log")
        request = urllib.request.Request(url + rival.path, body, {"content-type": kind})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"The server must answer within {_START_TIMEOUT_S:g} s.")


def _load(requests: Path, url: str, connections: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, str(HERE / "load.py"), str(requests), url]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    measured: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return measured


def _figures(measured: dict[str, float]) -> dict[str, float]:
    return {
        "per_s": measured["answers"] / measured["seconds"],
        "cpu_ms": 1000 * measured["cpu_s"] / (measured["answers"] + measured["failures"]),
        "p50_ms": measured["p50_ms"],
        "p99_ms": measured["p99_ms"],
        "failures": measured["failures"],
    }


def _summary(rounds: list[Round]) -> dict[str, Any]:
    """The spread of each figure over the rounds, by server and connections."""
    return {
        name: {
            str(n): {key: spread([one[name][n][key] for one in rounds]) for key in rounds[0][name][n]}
            for n in _CONNECTIONS
        }
        for name in rounds[0]
    }


def _ratios(rounds: list[Round]) -> dict[str, Any]:
    """Median and quartiles of what each server's figures are of the bare model's in the same round."""
    return {
        name: {
            str(n): {key: quartiles([one[name][n][key] / one["bare"][n][key] for one in rounds]) for key in _COMPARED}
            for n in _CONNECTIONS
        }
        for name in rounds[0]
        if name != "bare"
    }


def _claims(rounds: list[Round], ratios: dict[str, Any]) -> dict[str, bool]:
    claims: dict[str, bool] = {}
    if "rayml" not in ratios:
        return claims
    for n in (8, 32):
        share, cost = (ratios["rayml"][str(n)][key] for key in _COMPARED)
        claims[f"{n} connections: throughput {_shown(share)} of the bare model's, at least 0.97"] = (
            share["median"] >= 0.97
        )
        claims[f"{n} connections: processor time {_shown(cost)} of the bare model's, at most 1.08"] = (
            cost["median"] <= 1.08
        )
        for rival in sorted(set(ratios) - {"rayml"}):
            ahead = quartiles([one["rayml"][n]["per_s"] / one[rival][n]["per_s"] for one in rounds])
            claims[f"{n} connections: throughput {_shown(ahead)} of {rival}'s, more than 1"] = ahead["median"] > 1
    late = quartiles([one["rayml"][1]["p50_ms"] - one["bare"][1]["p50_ms"] for one in rounds])
    claims[f"1 connection: median {_shown(late)} ms later than the bare model, at most 3"] = late["median"] <= 3
    failures = sum(values["failures"] for one in rounds for values in one["rayml"].values())
    claims[f"{failures:g} failures, none"] = failures == 0
    return claims


def _shown(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} (quartiles {ratio['lower']:.3f} and {ratio['upper']:.3f})"


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


def _install(cache: Path, packages: tuple[str, ...]) -> Path:
    """The `bin` folder of an environment with these packages; this one's for none."""
    if not packages:
        return Path(sys.executable).parent
    folder = cache / "-".join(sorted(package.partition("=")[0].partition("[")[0] for package in packages))
    finished = folder / "finished"
    if not finished.exists():
        print(f"installing {', '.join(packages)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        finished.touch()
    return folder / "bin"


def _versions(folder: Path) -> dict[str, str]:
    listed = subprocess.run(
        [str(folder / "python"), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    shown = (
        "openvino",
        "fastapi",
        "uvicorn",
        "flask",
        "gunicorn",
        "bentoml",
        "litserve",
        "mlserver",
        "ray",
        "tensorflow",
    )
    return {p["name"]: p["version"] for p in json.loads(listed.stdout) if p["name"].lower().startswith(shown)}


def _photos(folder: Path) -> list[bytes]:
    paths = sorted(folder.rglob("*.jpg"))
    step = max(1, len(paths) // 64)
    photos = [path.read_bytes() for path in paths[::step][:64]]
    if not photos:
        raise SystemExit(f"PHOTOS must hold JPEG files. Received: none in {folder}")
    print(f"{len(photos)} photos of {statistics.mean(map(len, photos)) / 1000:.0f} kB", file=sys.stderr)
    return photos


def _surroundings(bundle: Path) -> dict[str, str]:
    record = Bundle.open(bundle).record
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {
        "RIVAL_MODEL": str(bundle.resolve() / "model.onnx"),
        "RIVAL_SIZE": str(record.image_size_px),
        "RIVAL_THREADS": str(usable_cores()),
        "RIVAL_BACKBONE": _APPLICATIONS.get(record.backbone_name, record.backbone_name),
        "RIVAL_CLASSES": str(len(record.classes)),
        "RIVAL_INNER": str(record.size_inner),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "BENTOML_DO_NOT_TRACK": "True",
    }


def _body(rival: Rival, photo: bytes) -> tuple[bytes, str]:
    if not rival.as_tensor:
        return photo, "image/jpeg"
    data = [base64.b64encode(photo).decode()]
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": data}
    return json.dumps({"inputs": [tensor]}).encode(), "application/json"


def _request(rival: Rival, photo: bytes) -> bytes:
    body, kind = _body(rival, photo)
    head = f"POST {rival.path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
