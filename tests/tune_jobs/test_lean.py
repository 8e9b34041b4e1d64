from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import sys
from tune_jobs.lean import import_keras

keras = import_keras()
print(keras.backend.backend(), "matplotlib" in sys.modules, "jax" in sys.modules)
import jax
import matplotlib.pyplot
"""


def imported(backend: str) -> list[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


def test_keras_comes_without_what_training_never_uses_which_can_still_be_had() -> None:
    assert imported("tensorflow") == ["tensorflow", "False", "False"]


def test_jax_is_there_where_keras_runs_on_it() -> None:
    assert imported("jax")[0::2] == ["jax", "True"]
