from __future__ import annotations

import socket

import pytest

from serving import environment


def test_a_free_port_is_none_of_those_that_ray_takes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class FirstTaken:
        def __contains__(self, port: object) -> bool:
            asked.append(port)
            return len(asked) == 1

    monkeypatch.setattr(environment, "_RAYS_OWN", FirstTaken())
    port = environment.free_port()
    assert asked[-1] == port and len(asked) == 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
