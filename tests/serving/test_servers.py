"""Notes of running servers: found by their address, and nobody else's business."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rayml.errors import ServerError
from serving.servers import find_server, noted, running_servers


def test_notes_are_the_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with noted("http://127.0.0.1:8000", tmp_path / "models", "clothing"):
        (note,) = (tmp_path / "rayml").iterdir()
        assert (note.stat().st_mode & 0o777, note.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        found = find_server(None)
        assert (found.name, found.models, found.pid) == ("clothing", str(tmp_path / "models"), os.getpid())
        # Of a process that has ended, whose number another one has now.
        stale = {**json.loads(note.read_text()), "started": "1"}
        (note.parent / "1.json").write_text(json.dumps(stale))
        (note.parent / "2.json").write_text("{")
        assert running_servers() == [found]
        assert not (note.parent / "1.json").exists()
    with pytest.raises(ServerError, match="Received: none"):
        find_server(None)
    (tmp_path / "rayml").chmod(0o755)
    with pytest.raises(ServerError, match="mode 0700"):
        find_server(None)
