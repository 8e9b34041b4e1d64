"""A line of JSON for each request that should be known of: failures always, all others when asked for.

Lines go through a named pipe to the process that runs the server, or to standard error where there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

# What a pipe takes in one piece (pipe(7), PIPE_BUF), so that lines of two replicas never mix.
_MAX_LINE = 4096


class RequestLog:
    """Writes a line of JSON for a request. Never waits: what a full pipe does not take is left out.

    Arguments:
        pipe: a named pipe that somebody reads, or None for standard error.
        every_request: whether requests that went well are written too.
    """

    def __init__(self, pipe: Path | None, every_request: bool) -> None:
        self.every_request = every_request
        self._pipe = None if pipe is None else os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        self._lock = threading.Lock()

    def write(self, level: str, fields: dict[str, Any]) -> None:
        """Write one line.

        Arguments:
            level: "info" or "error".
            fields: what JSON can say; long values are cut so that the line fits.
        """
        time = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"time": time, "level": level} | fields).encode() + b"\n"
        if len(line) > _MAX_LINE:
            cut = {name: value[-300:] if isinstance(value, str) else value for name, value in fields.items()}
            line = json.dumps({"time": time, "level": level} | cut).encode() + b"\n"
        if self._pipe is None:
            with self._lock:
                sys.stderr.write(line.decode())
                sys.stderr.flush()
            return
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._pipe, line)


class LogReader:
    """Reads the pipe that `RequestLog` writes to and passes each line on, in a thread that ends with the process.

    Arguments:
        pipe: where to make it; mode 0600.
        output: where lines go, whole.
    """

    def __init__(self, pipe: Path, output: TextIO) -> None:
        os.mkfifo(pipe, 0o600)
        # Opened for both, so that it never ends while replicas come and go.
        self._file = os.fdopen(os.open(pipe, os.O_RDWR), encoding="utf-8", errors="replace")
        self._output = output
        threading.Thread(target=self._pass_on, name="rayml-log", daemon=True).start()

    def _pass_on(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._file:
                self._output.write(line)
                self._output.flush()
