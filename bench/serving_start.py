"""How long a server's start takes and what its processes hold.

    python bench/serving_start.py BUNDLE [--starts 5] [--port 8000] [--engine auto]

Claims, of the median of the starts and the memory of the last: the replica is ready within 3 s of its process's start,
no serving process holds more than 300 MB, none has loaded TensorFlow. Ready means that the replica has given its first
right answer, to a golden picture at its own port. It has then reproduced all of them and run the whole path on several
threads. Memory is read when the replica has put it in order. Resident memory counts shared libraries in each process;
`pss_mb` divides them among those that share them (proc_pid_smaps_rollup(5)); `replica_peak_mb` is the most that the
replica has held, while it compiled its graph (VmHWM, proc_pid_status(5)). Writes
bench/results/serving_start_BACKBONE.json after at least 5 starts with the default engine, otherwise it only prints.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

# Another script of this folder, which lies first on the module path, has the package's name.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measure import machine, versions, write_result

from rayml.bundle import Bundle
from rayml.cores import usable_cores
from rayml.errors import RaymlError
from serving.client import Client
from serving.config import ServeSettings
from serving.processes import descendants

_POLL_S = 0.02
_TIMEOUT_S = 300.0
_SETTLED_AFTER_S = 4.0  # Twice: three seconds after its start a replica puts its memory in order, which takes one.
_MEGABYTE = 1_000_000
_CLAIM_READY_S = 3.0
_CLAIM_RSS_MB = 300.0


def main() -> int:
    """Measure some starts and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--starts", type=int, default=5, help="at least 1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    if arguments.starts < 1:
        parser.error(f"--starts must be at least 1. Received: {arguments.starts}")
    settings = replace(ServeSettings(), port=arguments.port, engine=arguments.engine)
    try:
        bundle = Bundle.open(arguments.bundle)
    except RaymlError as error:
        parser.error(error.message)
    starts = []
    for number in range(arguments.starts):
        starts.append(_measure(bundle, settings))
        print(f"start {number + 1}: {starts[-1].seconds}", file=sys.stderr, flush=True)
    last = starts[-1]
    seconds = {name: round(statistics.median(one.seconds[name] for one in starts), 2) for name in last.seconds}
    claims = {
        "replica ready within 3 s": seconds["replica_ready_s"] <= _CLAIM_READY_S,
        "at most 300 MB in each process": all(float(str(p["rss_mb"])) <= _CLAIM_RSS_MB for p in last.processes),
        "no TensorFlow": not last.tensorflow,
    }
    result = {
        "machine": machine(),
        "versions": versions("rayml", "ray", "openvino", "onnxruntime"),
        "bundle": f"{bundle.record.backbone_name} at {bundle.record.image_size_px} px",
        "engine": arguments.engine,
        "threads": usable_cores(),
        **seconds,
        "starts": [one.seconds for one in starts],
        "replica_peak_mb": last.peak_mb,
        "processes": last.processes,
        "with_tensorflow": last.tensorflow,
        "claims": claims,
    }
    whole = arguments.starts >= 5 and arguments.engine == "auto"
    write_result(f"serving_start_{bundle.record.backbone_name}", result, whole=whole)
    return 0 if all(claims.values()) else 1


@dataclass(frozen=True)
class _Start:
    """What one start took, the most that the replica held, and what each process held in the end."""

    seconds: dict[str, float]
    peak_mb: float
    processes: list[dict[str, object]]
    tensorflow: list[str]


def _measure(bundle: Bundle, settings: ServeSettings) -> _Start:
    command = [sys.executable, "-m", "serving.run", str(bundle.path), "--settings", settings.to_json()]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            replica, replica_ready_s = _watch_replica(server, bundle)
            assert server.stdout is not None
            if not server.stdout.readline():
                raise SystemExit(1)  # The server has said why.
            ready_s = time.monotonic() - began
            client = Client(settings.url)
            for _ in range(2):
                for picture in bundle.golden.pictures * 10:
                    client.predict(picture)
                time.sleep(_SETTLED_AFTER_S)
            processes, peak_mb = list(_memory(server.pid).values()), _peak_mb(replica)
            tensorflow = sorted(name for pid, name in _names(server.pid).items() if _has_tensorflow(pid))
        finally:
            ended = time.monotonic()
            server.send_signal(signal.SIGINT)
            server.wait()
    seconds = {
        "server_ready_s": ready_s,
        "replica_ready_s": replica_ready_s,
        "server_ended_s": time.monotonic() - ended,
    }
    return _Start({name: round(value, 2) for name, value in seconds.items()}, peak_mb, processes, tensorflow)


def _watch_replica(server: subprocess.Popen[str], bundle: Bundle) -> tuple[int, float]:
    """The replica's process id, and the seconds from its process's start to its first right answer."""
    right = bundle.record.classes[int(bundle.golden.logits[0].argmax())]
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        replica = next((pid for pid, name in _names(server.pid).items() if "ServeReplica" in name), None)
        port = None if replica is None else _http_port(replica)
        if replica is not None and port is not None:
            try:
                answer = Client(f"http://127.0.0.1:{port}").predict(bundle.golden.pictures[0])
            except RaymlError:  # Not ready yet.
                continue
            if answer["label"] != right:
                raise SystemExit(f"The first answer must be {right}. Received: {answer['label']}")
            return replica, _age_s(replica)
        time.sleep(_POLL_S)
    raise SystemExit("The server's replica was never ready.")


def _names(root: int) -> dict[int, str]:
    names = {}
    for pid in descendants(root) | {root}:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        shown = words[0].decode()
        if "ray::" in shown:
            names[pid] = shown.partition("::")[2]
        elif pid == root:
            names[pid] = "driver"
        else:
            known = ("haproxy", "gcs_server", "raylet", "log_monitor", "monitor")
            text = b" ".join(words).decode()
            names[pid] = next((name for name in known if name in text), Path(shown).name)
    return names


def _age_s(pid: int) -> float:
    # Field 22 of proc_pid_stat(5): the start in clock ticks since boot.
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    return uptime_s - ticks / os.sysconf("SC_CLK_TCK")


def _http_port(pid: int) -> int | None:
    """The IPv4 port that the process listens on, once it does: the replica's HTTP port; gRPC's are IPv6."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(descriptor.readlink()))
        except OSError:
            continue
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
            return int(fields[1].rpartition(":")[2], 16)
    return None


def _memory(root: int) -> dict[int, dict[str, object]]:
    found: dict[int, dict[str, object]] = {}
    for pid, name in _names(root).items():
        try:
            fields = dict(
                line.split(":", 1)
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                if ":" in line
            )
        except OSError:
            continue
        found[pid] = {"name": name} | {
            f"{key.lower()}_mb": round(int(fields[key].split()[0]) * 1024 / _MEGABYTE, 1) for key in ("Rss", "Pss")
        }
    return found


def _peak_mb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return round(int(found[1]) * 1024 / _MEGABYTE, 1)


def _has_tensorflow(pid: int) -> bool:
    try:
        return "libtensorflow" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
