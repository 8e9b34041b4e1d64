from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving import one_write
from serving.one_write import Gathering


class _Transport:
    """One that notes what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name)

    def resume_reading(self) -> None:
        """Nothing."""


async def _turn() -> None:
    await asyncio.sleep(0)


def test_what_is_written_in_one_turn_is_sent_together() -> None:
    async def run() -> None:
        plain = _Transport()
        gathering = Gathering(plain, asyncio.get_running_loop())
        gathering.write(b"head")
        gathering.write(b"body")
        assert plain.written == []
        await _turn()
        assert plain.written == [b"headbody"]
        gathering.write(b"more")
        await _turn()
        assert plain.written == [b"headbody", b"more"]
        assert gathering.get_extra_info("peername") == ("127.0.0.1", 1)

    asyncio.run(run())


def test_closing_sends_first_and_nothing_is_sent_to_who_is_gone() -> None:
    async def run() -> None:
        plain = _Transport()
        gathering = Gathering(plain, asyncio.get_running_loop())
        gathering.write(b"last")
        gathering.close()
        assert (plain.written, plain.closed) == ([b"last"], True)
        await _turn()
        gone = _Transport()
        gathering = Gathering(gone, asyncio.get_running_loop())
        gathering.write(b"late")
        gone.closed = True
        await _turn()
        assert gone.written == []

    asyncio.run(run())


@pytest.mark.parametrize("installed", [False, True])
def test_uvicorn_writes_an_answer_at_once(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another test of this process may have installed it.
    monkeypatch.setattr(HttpToolsProtocol, "connection_made", inspect.unwrap(HttpToolsProtocol.connection_made))
    if installed:
        one_write.install()
        once = HttpToolsProtocol.connection_made
        one_write.install()
        assert HttpToolsProtocol.connection_made is once

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"body"})

    async def run() -> list[bytes]:
        config = Config(app, log_config=None)
        config.load()
        transport = _Transport()
        protocol = HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
        protocol.connection_made(transport)  # type: ignore[arg-type]
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(5):
            await _turn()
        if protocol.timeout_keep_alive_task is not None:
            protocol.timeout_keep_alive_task.cancel()
        return transport.written

    written = asyncio.run(run())
    assert len(written) == (1 if installed else 2)
    assert b"".join(written).startswith(b"HTTP/1.1 200 OK\r\n") and b"".join(written).endswith(b"\r\n\r\nbody")
