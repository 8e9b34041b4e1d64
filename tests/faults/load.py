"""Clients that keep a server busy and count what came back; standard library only, so that they cost little."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 120.0


@dataclass
class Tally:
    """What clients saw.

    Arguments:
        statuses: answers by status, 0 for a connection that broke.
        versions: right answers by the version that gave them.
        wrong: answers 200 with another label.
        seconds: duration by status.
        no_retry_after: refusals 429 and 503 that do not say when to come back.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    seconds: dict[int, list[float]] = field(default_factory=dict)
    no_retry_after: int = 0

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Tally:
        """One that another process wrote with `vars` and `json.dumps`."""
        by_status = {int(status): count for status, count in fields["statuses"].items()}
        seconds = {int(status): times for status, times in fields["seconds"].items()}
        return cls(Counter(by_status), Counter(fields["versions"]), fields["wrong"], seconds, fields["no_retry_after"])

    @property
    def failed(self) -> int:
        """Requests without a right answer."""
        return sum(count for status, count in self.statuses.items() if status != 200) + self.wrong

    @property
    def total(self) -> int:
        """All requests that have ended."""
        return sum(self.statuses.values())

    def add(self, status: int, headers: dict[str, str], body: bytes, seconds: float, label: str) -> None:
        """Count one answer."""
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(seconds)
        if status == 200:
            answer = json.loads(body)
            self.wrong += answer["label"] != label
            self.versions[answer["model"]["version"]] += 1
        elif status in (429, 503):
            self.no_retry_after += "retry-after" not in headers

    def quantile_ms(self, status: int, share: float) -> float | None:
        """A quantile of the duration of requests with this status, in milliseconds."""
        times = sorted(self.seconds.get(status, []))
        return round(1000 * times[min(len(times) - 1, int(share * len(times)))], 1) if times else None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "requests": self.total,
            "failed": self.failed,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "versions": dict(sorted(self.versions.items())),
            "p50_ms": self.quantile_ms(200, 0.5),
            "p99_ms": self.quantile_ms(200, 0.99),
        }


def read_head(head: bytes) -> tuple[int, dict[str, str]]:
    """The status of an answer and its headers, names in lower case."""
    lines = head.decode("latin-1").split("\r\n")
    return int(lines[0].split()[1]), {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
    }


class Client:
    """One connection to a server, made anew when it breaks."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Ask for one prediction; status 0 where the connection broke."""
        try:
            return await asyncio.wait_for(self._post(body), TIMEOUT_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, IndexError):
            self.close()
            return 0, {}, b""

    async def _post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        head = f"POST /predict HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/octet-stream\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        status, headers = read_head(await reader.readuntil(b"\r\n\r\n"))
        answer = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return status, headers, answer

    def close(self) -> None:
        """End the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Crowd:
    """Clients in a thread, each of which asks again as soon as it has an answer. A context manager.

    Arguments:
        url: the server.
        clients: how many.
        pictures: label -> encoded picture, asked in turn.
    """

    def __init__(self, url: str, clients: int, pictures: dict[str, bytes]) -> None:
        self.tally = Tally()
        self._url, self._clients, self._pictures = url, clients, pictures
        self._stop = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()

    def wait_for(self, requests: int) -> None:
        """Return when this many requests more have ended."""
        goal = self.tally.total + requests
        while self.tally.total < goal and self._thread.is_alive():
            time.sleep(0.02)

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._clients)))

    async def _client(self, number: int) -> None:
        client, labels = Client(self._url), list(self._pictures)
        while not self._stop:
            label = labels[number % len(labels)]
            start = time.perf_counter()
            status, headers, body = await client.post(self._pictures[label])
            self.tally.add(status, headers, body, time.perf_counter() - start, label)
            number += 1
            if status == 0:
                await asyncio.sleep(0.05)
        client.close()
