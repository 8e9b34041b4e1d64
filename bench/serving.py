"""What a served answer costs beside the bare model's, and beside other servers with the same model and photos.

    python bench/serving.py BUNDLE PHOTOS [--only rayml,fastapi] [--rounds 3] [--seconds 10] [--cache FOLDER]
    python bench/serving.py BUNDLE PHOTOS --only rayml --rounds 1 --seconds 3          # a first look, two minutes

Claims: at 8 and 32 connections throughput is at least 0.97 of the bare model's (OpenVINO and decoding in a loop on as
many threads as cores, no server), processor time a request at most 1.08 of it, and more answers than every rival's; at
one connection the median latency is at most the bare model's + 3 ms. One server runs at a time, rounds go through all
of them in turn, medians count. Each server gets the same requests from `bench/load.py` in a process of its own, whose
time the servers pay for and the bare model does not. Processor time is that of the server's whole process tree.

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# This file has the package's name and lies first on the module path.
sys.path.insert(0, str(HERE.parent))

from measure import machine, spread, versions, write_result  # noqa: E402

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
_START_TIMEOUT_S = 300.0
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "rayml-rivals")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    unknown = set(names) - set(RIVALS)
    if unknown:
        parser.error(f"--only must name some of {', '.join(RIVALS)}. Received: {', '.join(sorted(unknown))}")
    try:
        Bundle.open(arguments.bundle)
    except RaymlError as error:
        parser.error(error.message)
    adopt_orphans()
    bins = {name: _install(arguments.cache, RIVALS[name].packages) for name in names}
    bare_bin = _install(arguments.cache, BASE)
    figures: dict[str, dict[int, list[dict[str, float]]]] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rayml-bench-")))
        photos = _photos(arguments.photos)
        surroundings = _surroundings(arguments.bundle)
        for number in range(arguments.rounds):
            bare = _measure_bare(bare_bin, photos, surroundings, arguments.seconds)
            _keep(figures, "bare", bare, number)
            for name in names:
                measured = _measure(name, bins[name], arguments.bundle, photos, work, surroundings, arguments.seconds)
                _keep(figures, name, measured, number)
    record = Bundle.open(arguments.bundle).record
    table = {name: _summary(rounds) for name, rounds in figures.items()}
    claims = _claims(table)
    write_result(
        f"serving_{record.backbone_name}",
        {
            "machine": machine(),
            "versions": versions("rayml", "ray", "openvino") | {n: _versions(bins[n]) for n in names if n != "rayml"},
            "bundle": f"{record.backbone_name} at {record.image_size_px} px",
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "figures": table,
            "claims": claims,
        },
    )
    return 0 if all(claims.values()) else 1


def _keep(figures: dict[str, Any], name: str, measured: dict[int, dict[str, float]], number: int) -> None:
    for connections, values in measured.items():
        figures.setdefault(name, {}).setdefault(connections, []).append(values)
        print(f"round {number + 1}, {name}, {connections}: {json.dumps(values)}", file=sys.stderr, flush=True)


def _measure_bare(
    folder: Path, photos: list[bytes], surroundings: dict[str, str], seconds: float
) -> dict[int, dict[str, float]]:
    with tempfile.TemporaryDirectory() as where:
        for number, photo in enumerate(photos):
            (Path(where) / f"{number:03}.jpg").write_bytes(photo)
        command = [str(folder / "python"), "bare.py", where]
        with subprocess.Popen(
            command, cwd=HERE / "rivals", env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            found = {}
            for connections in _CONNECTIONS:
                # More loops than cores would only wait for each other.
                order = {"seconds": seconds, "workers": min(connections, usable_cores())}
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                found[connections] = _figures(json.loads(process.stdout.readline()))
            process.stdin.close()
    return found


def _measure(
    name: str,
    folder: Path,
    bundle: Path,
    photos: list[bytes],
    work: Path,
    surroundings: dict[str, str],
    seconds: float,
) -> dict[int, dict[str, float]]:
    rival = RIVALS[name]
    port = _free_port()
    requests = work / f"{name}-requests"
    requests.mkdir(exist_ok=True)
    for number, photo in enumerate(photos):
        (requests / f"{number:03}").write_bytes(_request(rival, photo))
    found = {}
    with _running(name, folder, bundle, port, work, surroundings) as process:
        url = f"http://127.0.0.1:{port}"
        _await(rival, url, photos[0], process)
        _load(requests, url, 8, min(3.0, seconds))  # Warm on every thread.
        for connections in _CONNECTIONS:
            before = _cpu_s(process.pid)
            measured = _load(requests, url, connections, seconds)
            measured["cpu_s"] = _cpu_s(process.pid) - before
            found[connections] = _figures(measured)
    return found


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
            end_descendants(grace_s=10)


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


def _summary(rounds: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    return {
        str(connections): {key: spread([one[key] for one in values]) for key in values[0]}
        for connections, values in rounds.items()
    }


def _claims(table: dict[str, Any]) -> dict[str, bool]:
    def median(name: str, connections: int, key: str) -> float:
        return float(table[name][str(connections)][key]["median"])

    claims = {}
    if "rayml" in table:
        for n in (8, 32):
            share = median("rayml", n, "per_s") / median("bare", n, "per_s")
            claims[f"{n} connections: throughput {share:.3f} of the bare model's, at least 0.97"] = share >= 0.97
            cost = median("rayml", n, "cpu_ms") / median("bare", n, "cpu_ms")
            claims[f"{n} connections: processor time {cost:.3f} of the bare model's, at most 1.08"] = cost <= 1.08
            for rival in sorted(set(table) - {"rayml", "bare"}):
                ahead = median("rayml", n, "per_s") / median(rival, n, "per_s")
                claims[f"{n} connections: throughput {ahead:.3f} of {rival}'s, more than 1"] = ahead > 1
        late = median("rayml", 1, "p50_ms") - median("bare", 1, "p50_ms")
        claims[f"1 connection: median {late:.2f} ms later than the bare model, at most 3"] = late <= 3
        failures = sum(table["rayml"][str(n)]["failures"]["max"] for n in _CONNECTIONS)
        claims[f"{failures:g} failures, none"] = failures == 0
    return claims


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
