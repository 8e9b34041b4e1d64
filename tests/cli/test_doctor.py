"""`rayml doctor`: what it finds on a machine that works, and on one where something was broken."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result
from packaging.markers import Marker
from packaging.requirements import Requirement

from rayml.cli import machine
from rayml.cli.doctor import doctor
from rayml.cli.machine import Check
from rayml.errors import install_hint


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(doctor, [str(argument) for argument in arguments])


def checks(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_this_machine(tmp_path: Path) -> None:
    done = run("--json", "--cache", tmp_path / "cache", "--port", str(free_port()))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ok"] is True
    found = checks(done)
    assert found["engine openvino"]["detail"] == found["engine onnxruntime"]["detail"] == "computes what it should"
    assert found["packages"]["status"] == found["packages [tune]"]["status"] == "ok"
    assert "HAProxy version" in found["haproxy"]["detail"]
    assert "nothing cached yet" in found["disk, cache"]["detail"]
    assert set(next(iter(found.values()))) == {"name", "status", "detail", "hint"}
    assert not (tmp_path / "cache").exists()  # Looking makes nothing.


def test_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Check("python", "ok", "3.11"), Check("memory", "warning", "little", "Get more.")]
    monkeypatch.setattr(machine, "examine", lambda *_: rows)
    done = run()
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "ok       python  3.11",
        "warning  memory  little",
        "                 Get more.",
        "Nothing is broken.",
    ]
    rows.append(Check("ray", "error", "gone"))
    done = run()
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (1, "1 of 3 checks failed.")


def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # Whatever tests before have connected to.
    done = run("--json", "--address", f"127.0.0.1:{free_port()}")
    assert done.exit_code == 1
    assert "no Ray answers at --address" in checks(done)["ray"]["detail"]


def test_a_cluster(ray_cluster: str) -> None:
    check = machine._cluster(ray_cluster)
    assert (check.status, check.detail) == ("ok", f"{ray_cluster}: 1 nodes, 2 CPUs, 0 GPUs")


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert machine._port(taken.getsockname()[1]).status == "warning"


def test_an_engine_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_engine_error", lambda name: 2.0 if name == "openvino" else 1 / 0)
    wrong, broken, none = machine._engines()
    assert wrong.detail == "computes wrong sums, by 2"
    assert broken.detail == "does not run: division by zero"
    assert (none.status, none.detail) == ("error", "none works")


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_PARTS", {"": ("numpy", "no-such-package"), "tune": ("no-such-package",)})
    base, tune = machine._packages()
    assert base.status == "error" and base.detail.endswith("; not installed: no-such-package")
    assert (tune.status, tune.hint) == ("warning", install_hint("tune"))


@pytest.mark.parametrize(("written", "status"), [(True, "ok"), (False, "warning")])
def test_packages_that_each_process_compiles_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool, status: str
) -> None:
    """Python's own import decides: a package is imported with and without PYTHONDONTWRITEBYTECODE."""
    for name in ("ray", "tensorflow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    program = (
        "import ray; from rayml.cli.machine import _bytecode; check = _bytecode(); print(check.status, check.detail)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ["PYTHONPATH"]))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if not written:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(f"{status} ")
    assert ("kept for ray; written when tensorflow" if written else "compiles ray, tensorflow anew") in done.stdout


def test_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": f"{2**30}\n", "memory.current": f"{2**29}\n"}
    monkeypatch.setattr(machine, "_cgroup", files.__getitem__)
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    assert machine._cores().detail == f"1 usable of {os.cpu_count()}"
    assert (machine._memory().status, machine._memory().detail) == ("warning", "0.5 GiB free of 1.0 GiB")
    monkeypatch.setattr(machine, "_cgroup", {"memory.max": "max\n"}.__getitem__)
    assert not machine._memory().detail.endswith(" of 1.0 GiB")


@pytest.mark.parametrize(
    ("body", "words"), [("echo 'H100, 80 GB, 555'", "H100, 80 GB, 555"), ("echo broken; exit 9", "broken")]
)
def test_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    check = machine._gpus()
    assert words in check.detail and (check.status == "warning") is ("exit" in body)


def test_a_disk_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    found = {check.name: check.status for check in machine._disks(tmp_path)}
    assert found == {"disk, cache": "error", "disk, this folder": "warning", "disk, temporary": "error"}


def test_a_temporary_folder_in_which_no_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    check = machine._haproxy()
    assert check.status == "warning" and check.detail.startswith("nothing can be served: The temporary folder must")
    assert check.detail.endswith("which is mounted noexec") and "TMPDIR" in check.hint


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose whole file system is read-only: the other checks are made all the same."""

    def none() -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    found = {check.name: check for check in machine._disks(tmp_path)}
    assert sorted(found) == ["disk, cache", "disk, temporary", "disk, this folder"]
    assert found["disk, temporary"].status == "error" and "TMPDIR" in found["disk, temporary"].hint


def test_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "RAYML_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    found = {check.name: check for check in machine._disks(None)}
    assert sorted(found) == ["disk, cache", "disk, temporary", "disk, this folder"]
    assert found["disk, cache"].status == "error" and "RAYML_CACHE" in found["disk, cache"].hint


def test_folders_that_are_not_to_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exists = Path.exists

    def hidden(path: Path, **options: Any) -> bool:
        if path.name == "cache":
            raise PermissionError(errno.EACCES, "Permission denied")
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", hidden)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    found = {check.name: (check.status, check.detail) for check in machine._disks(tmp_path / "locked" / "cache")}
    assert found["disk, cache"] == ("error", f"{tmp_path}/locked/cache cannot be written to (Permission denied)")
    assert found["disk, this folder"] == ("warning", "this folder cannot be written to (No such file or directory)")
    assert found["disk, temporary"][0] == "ok"


def test_a_cache_that_a_search_works_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    for name in ("kept", "removed"):
        (tmp_path / "features" / name).touch()
    os.truncate(tmp_path / "features" / "kept", 2**29)
    look = Path.lstat

    def vanishing(path: Path) -> os.stat_result:
        if path.name == "removed":
            path.unlink()
        return look(path)

    monkeypatch.setattr(Path, "lstat", vanishing)
    assert machine._cached(tmp_path) == ", 1 feature banks, 0.5 GiB cached"


def test_every_package_of_an_extra_is_looked_for() -> None:
    needed = [Requirement(line) for line in importlib.metadata.requires("rayml") or ()]

    def names(extra: str) -> set[str]:
        mine = [one for one in needed if (one.marker is None) == (extra == "") and one.marker in (None, _of(extra))]
        below = {name for one in mine if one.name == "rayml" for part in one.extras for name in names(part)}
        return {one.name.lower() for one in mine if one.name != "rayml"} | below

    assert "jinja2" in names("tune")
    for extra, looked_for in machine._PARTS.items():
        assert names(extra) <= set(looked_for), extra


def _of(extra: str) -> Marker:
    return Marker(f'extra == "{extra}"')
