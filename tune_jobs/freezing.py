"""The backbone is frozen by a process of its own while Ray starts: both take as long, and neither needs the other.

python -m tune_jobs.freezing      reads (BackboneSpec, cache) from stdin and writes the outcome to stdout, pickled
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from rayml.backbones import BackboneSpec
from rayml.errors import RaymlError, SearchError
from rayml.frozen import FrozenBackbone, find_frozen, freeze, share_frozen


class Freezing:
    """A frozen backbone that is there, or is being made.

    Arguments:
        spec: which one.
        cache: the folder of this machine.
        storage: what machines share, as `rayml.storage.check_storage` gave it.

    Raises:
        RaymlError: the storage cannot be read.
    """

    def __init__(self, spec: BackboneSpec, cache: Path, storage: str | None = None) -> None:
        self._cache, self._storage = cache, storage
        self._found = find_frozen(spec, cache, storage)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        if self._found is None:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tune_jobs.freezing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,  # TensorFlow tells there how it finds the machine.
                # Keras gives its graph to ONNX through TensorFlow, whatever it trains on.
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"},
            )
            assert self._process.stdin is not None
            self._process.stdin.write(pickle.dumps((spec, cache)))
            self._process.stdin.close()
            self._process.stdin = None

    @property
    def found(self) -> bool:
        """Whether it was there."""
        return self._process is None

    def result(self) -> FrozenBackbone:
        """The backbone; waits for it.

        Raises:
            RaymlError: as `rayml.frozen.freeze`.
            SearchError: the process died.
        """
        if self._process is not None and self._found is None:
            assert self._said is not None
            answer, _ = self._process.communicate()
            if self._process.returncode:
                self._said.seek(0)
                lines = self._said.read().decode(errors="replace").split("\n")
                last = next((line.strip() for line in reversed(lines) if line.strip()), "")
                raise SearchError(
                    f"the process that freezes the backbone ended with {self._process.returncode} ({last[:300]})",
                    "Is there memory enough?",
                )
            outcome = pickle.loads(answer)
            if isinstance(outcome, RaymlError):
                raise outcome
            self._found = outcome
        assert self._found is not None
        if self._storage is not None:
            share_frozen(self._found, self._cache, self._storage)
        return self._found

    def __enter__(self) -> Freezing:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process where nobody waited for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        if self._said is not None:
            self._said.close()


def main() -> None:
    """Freeze what stdin asks for."""
    answers = os.dup(1)
    os.dup2(2, 1)  # Whatever a library prints must not get between.
    spec, cache = pickle.load(sys.stdin.buffer)
    outcome: Any
    try:
        outcome = freeze(spec, cache)
    except RaymlError as error:
        outcome = error
    with os.fdopen(answers, "wb") as file:
        pickle.dump(outcome, file)


if __name__ == "__main__":
    main()
