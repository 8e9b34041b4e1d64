"""Notes of running servers: found by their address, and nobody else's business."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from rayml.errors import ServerError
from serving import run
from serving.config import ServeSettings
from serving.environment import free_port
from serving.servers import find_server, noted, running_servers
from tests.serving.tiny_bundle import write_tiny_bundle


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


def test_a_note_that_cannot_be_left_is_said_and_ends_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    (tmp_path / "file").touch()
    (tmp_path / "rayml").mkdir(mode=0o755)
    monkeypatch.delitem(sys.modules, "ray.serve", raising=False)  # Another test may have imported it.
    monkeypatch.setattr(run.Server, "_start", lambda *_: (tmp_path / "models", "primaries"))
    monkeypatch.setattr(run, "await_right_answer", lambda *_: None)
    for folder in (tmp_path / "file", tmp_path, tmp_path / "full"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        if folder.name == "full":
            (folder / "rayml" / f"{os.getpid()}.tmp").mkdir(parents=True)
            (folder / "rayml").chmod(0o700)
        with run.Server(bundle, ServeSettings(port=free_port())):
            assert f"will not find this server: {folder / 'rayml'}" in capsys.readouterr().err
