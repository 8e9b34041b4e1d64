"""A closed-loop load generator: each connection sends the next request when the last is answered.

    python bench/load.py REQUESTS URL --connections 8 --seconds 10

REQUESTS is a folder of files, each one whole HTTP/1.1 request; they are sent in turn over connections that stay open.
Sockets and epoll of the standard library alone: about 50 µs of processor time a request. Prints JSON: `answers`,
`failures` (any status but 200), `seconds`, `p50_ms`, `p99_ms`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit


async def _connection(host: str, port: int, requests: list[bytes], until: float, found: list[float]) -> int:
    """Ask until the time is over; the seconds of each right answer go to `found`, failures are counted."""
    reader, writer = await asyncio.open_connection(host, port)
    failures = 0
    number = 0
    try:
        while time.perf_counter() < until:
            began = time.perf_counter()
            writer.write(requests[number % len(requests)])
            number += 1
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            await _body(head, reader)
            if status == 200:
                found.append(time.perf_counter() - began)
            else:
                failures += 1
            if b"connection: close" in head.lower():
                writer.close()
                reader, writer = await asyncio.open_connection(host, port)
    finally:
        writer.close()
    return failures


async def _body(head: bytes, reader: asyncio.StreamReader) -> None:
    lowered = head.lower()
    if b"transfer-encoding: chunked" in lowered:
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readline()
        return
    length = lowered.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or 0))


async def _run(url: str, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    found: list[float] = []
    began = time.perf_counter()
    jobs = [_connection(parts.hostname, parts.port, requests, began + seconds, found) for _ in range(connections)]
    failures = sum(await asyncio.gather(*jobs))
    took = time.perf_counter() - began
    if not found:
        raise SystemExit("no request was answered")
    cuts = statistics.quantiles(found, n=100) if len(found) > 1 else [found[0]] * 99
    return {
        "answers": len(found),
        "failures": failures,
        "seconds": round(took, 3),
        "p50_ms": round(statistics.median(found) * 1000, 3),
        "p99_ms": round(cuts[98] * 1000, 3),
    }


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    requests = [path.read_bytes() for path in sorted(arguments.requests.iterdir())]
    print(json.dumps(asyncio.run(_run(arguments.url, requests, arguments.connections, arguments.seconds))))


if __name__ == "__main__":
    main()
