"""A virtual environment of its own for each client, so that none shares a package with rayml."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def environment(*requirements: str) -> Path:
    """The `bin` folder of an environment with these packages.

    It is kept in the folder `RAYML_CLIENT_ENVIRONMENTS` where that is set, else for as long as this process runs.

    Arguments:
        requirements: as pip takes them, with exact versions.
    """
    name = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:16]
    parent = os.environ.get("RAYML_CLIENT_ENVIRONMENTS") or _temporary()
    folder = Path(parent) / name
    finished = folder / "finished"
    if not finished.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True, env=surroundings())
        finished.touch()
    return folder / "bin"


@functools.cache
def _temporary() -> str:
    folder = tempfile.mkdtemp(prefix="rayml-clients-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def surroundings() -> dict[str, str]:
    """This process's environment without what would show the client rayml's own packages."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def run(command: list[str], cwd: Path | None = None, timeout_s: float = 600.0) -> str:
    """Standard output of a client; its error output is shown when it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=surroundings(), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout
