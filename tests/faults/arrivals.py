"""Requests that arrive at a rate whatever becomes of those before them, each on a connection of its own.

    python -m tests.faults.arrivals URL PICTURE LABEL --rate 1000 --seconds 10

A process of its own, on bare sockets, and before the server's where it may be: clients on other machines would not wait
for the server's processor, and what waits here is counted as the server's. Prints a `Tally` as JSON, with `late_s`: how
long after its time each request was begun.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.load import TIMEOUT_S, Tally, read_head

_PRIORITY = -10  # Of 20 steps to the best; only root may ask for it.


class _Arrival:
    """One request on its way."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self.began = time.perf_counter()
        self._left = memoryview(request)
        self._received = bytearray()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(address)

    def send(self) -> bool:
        """Send what the kernel takes; whether that was all."""
        try:
            self._left = self._left[self.socket.send(self._left) :]
        except BlockingIOError:
            return False
        except OSError:  # Refused before the body was read: the answer is there.
            return True
        return not self._left

    def answer(self) -> tuple[int, dict[str, str], bytes] | None:
        """Take what has arrived; the answer once it is whole, with status 0 where the connection broke."""
        try:
            piece = self.socket.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            return 0, {}, b""
        self._received += piece
        head_end = self._received.find(b"\r\n\r\n")
        if head_end >= 0:
            status, headers = read_head(bytes(self._received[:head_end]))
            body = self._received[head_end + 4 :]
            if len(body) >= int(headers.get("content-length", 0)):
                return status, headers, bytes(body)
        return None if piece else (0, {}, b"")


def send_all(url: str, rate: float, seconds: float, picture: bytes, label: str) -> tuple[Tally, list[float]]:
    """Send them and wait for every answer.

    Arguments:
        rate: requests a second.
        seconds: for how long they arrive.

    Returns:
        what came back, and how many seconds late each request was begun.
    """
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    head = "POST /predict HTTP/1.1\r\nhost: a\r\ncontent-type: application/octet-stream\r\n"
    request = f"{head}content-length: {len(picture)}\r\n\r\n".encode() + picture
    tally, late, waiting = Tally(), [], 0
    count, number = int(rate * seconds), 0
    with selectors.DefaultSelector() as selector:
        start = time.perf_counter()
        while number < count or waiting:
            due = start + number / rate
            while number < count and due <= (now := time.perf_counter()):
                late.append(now - due)
                arrival = _Arrival(address, request)
                selector.register(arrival.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, arrival)
                waiting, number = waiting + 1, number + 1
                due = start + number / rate
            pause = max(0.0, due - time.perf_counter()) if number < count else TIMEOUT_S
            ready = selector.select(pause)
            if not ready and number == count:
                tally.statuses[0] += waiting
                break
            for key, events in ready:
                arrival = key.data
                if events & selectors.EVENT_WRITE and arrival.send():
                    selector.modify(arrival.socket, selectors.EVENT_READ, arrival)
                if not events & selectors.EVENT_READ:
                    continue
                answer = arrival.answer()
                if answer is not None:
                    tally.add(*answer, time.perf_counter() - arrival.began, label)
                    selector.unregister(arrival.socket)
                    arrival.socket.close()
                    waiting -= 1
    return tally, late


def arrive(url: str, rate: float, seconds: float, picture: bytes, label: str) -> tuple[Tally, list[float]]:
    """`send_all` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(picture)
        command = [sys.executable, "-m", "tests.faults.arrivals", url, str(path), label]
        command += ["--rate", str(rate), "--seconds", str(seconds)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    late: list[float] = found.pop("late_s")
    return Tally.from_json(found), late


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("label", help="the right answer")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    if not arguments.picture.is_file():
        parser.error(f"PICTURE must be a file. Received: {arguments.picture}")
    if urlsplit(arguments.url).scheme != "http":
        parser.error(f"URL must begin with http://. Received: {arguments.url}")
    if arguments.rate <= 0 or arguments.seconds <= 0:
        parser.error(f"RATE and SECONDS must be above 0. Received: {arguments.rate:g}, {arguments.seconds:g}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    picture = arguments.picture.read_bytes()
    tally, late = send_all(arguments.url, arguments.rate, arguments.seconds, picture, arguments.label)
    print(json.dumps({**vars(tally), "late_s": late}))


if __name__ == "__main__":
    main()
