"""Environments of other packages beside rayml's own: the bare model's and the rivals', in pinned versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path


def as_here(name: str, extra: str = "") -> str:
    """A requirement of the very version that rayml runs with here."""
    return f"{name}{extra}=={importlib.metadata.version(name)}"


BASE = tuple(as_here(name) for name in ("openvino", "pillow", "numpy"))
KERAS = ("tensorflow-cpu==2.21.0", "keras==3.15.1", as_here("pillow"), as_here("numpy"))


def install(cache: Path, packages: tuple[str, ...]) -> Path:
    """The `bin` folder of an environment with these packages; this one's for none.

    Arguments:
        cache: where the environments are, each under its packages' names and a digest of names and versions.
        packages: requirements for pip.
    """
    if not packages:
        return Path(sys.executable).parent
    names = sorted(package.partition("=")[0].partition("[")[0] for package in packages)
    digest = hashlib.sha256("\n".join(sorted(packages)).encode()).hexdigest()[:8]
    folder = cache / "-".join([*names, digest])
    finished = folder / "finished"
    if not finished.exists():
        print(f"installing {', '.join(packages)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True)
        finished.touch()
    return folder / "bin"


def installed_versions(folder: Path) -> dict[str, str]:
    """The versions of what matters in an environment, by package; `folder` is its `bin` folder."""
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
