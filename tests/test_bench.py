"""What the benchmarks in bench/ decide before and after they measure; they themselves are run by hand."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of bench/, behind all others: one has a package's name."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "bench")])

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_a_quick_look_replaces_nothing(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = bench("measure")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.write_result("one", {"figure": 1}, whole=True)
    measure.write_result("one", {"figure": 2}, whole=False)
    assert json.loads((tmp_path / "one.json").read_text()) == {"figure": 1}
    said = capsys.readouterr()
    assert '"figure": 2' in said.out
    assert said.err == "not written to one.json: this was not a whole run, see --help\n"


def test_an_environment_is_of_its_versions(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environments = bench("environments")
    monkeypatch.setattr(subprocess, "run", lambda command, check: Path(command[-1]).mkdir(parents=True, exist_ok=True))
    monkeypatch.chdir(tmp_path)
    first, second = (environments.install(tmp_path, (f"flask=={version}", "gunicorn[x]==2")) for version in ("1", "2"))
    assert first != second
    assert first == environments.install(tmp_path, ("gunicorn[x]==2", "flask==1"))
    assert first.parent.name.startswith("flask-gunicorn-")


def test_what_rivals_need_is_pinned(bench: Any) -> None:
    needed = {package for rival in bench("servers").RIVALS.values() for package in rival.packages}
    assert [package for package in needed | set(bench("search").RIVALS) if "==" not in package] == []


def test_what_scale_claims(bench: Any) -> None:
    scale = bench("scale")

    def size(seconds: float, mib: float) -> dict[str, Any]:
        return {step: {"seconds": {"median": seconds}, "private_mib": {"median": mib}} for step in scale.STEPS}

    entries = {"1000": size(0.1, 20), "100000": size(1, 30), "1000000": size(15.1, 2000)}
    held = scale.claims(entries, features=600)
    assert [claim for claim, holds in held.items() if holds] == [
        "trial: -0.08 kB of memory for each more picture, at most 1"
    ]
    assert "bank: 15.10 s for 1,000,000 pictures, at most 15.00" in held
    assert "bank: 2.08 kB of memory for each more picture, at most 1" in held
    assert scale.claims({"1000": size(0.1, 20)}, features=600) == {}
