"""Ten times as many requests as a server can answer: do the accepted ones stay quick, are the others told so at once?

    python -m tests.faults.overload [SECONDS]

Prints one JSON object. Each picture is large, so that it is the server that is short of time and not the clients;
`late_p99_ms`, how late requests were begun, tells whether that is so.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from serving.config import ServeSettings
from serving.environment import free_port
from serving.limits import RequestLimits
from serving.run import running
from tests.faults.arrivals import arrive
from tests.faults.load import Client, Crowd, Tally
from tests.serving.tiny_bundle import write_tiny_bundle

_SIDE_PX = 3000


def measure(seconds: float) -> dict[str, Any]:
    """Find what the server can do, then send ten times that.

    Returns:
        `capacity`: requests/s of eight clients in turn; `rate`: what came; `accepted`, `refused`, `other`: of those;
        `accepted_p99_ms`, `refused_p50_ms`, `refused_p99_ms`; `no_retry_after`: refusals that do not say when to come
        back; `late_p99_ms`: how long after its time a request was begun; `recovered_s`: until ten answers in a row were
        right and none took longer than twice the quiet p99.
    """
    encoded = io.BytesIO()
    Image.new("RGB", (_SIDE_PX, _SIDE_PX), (10, 200, 40)).save(encoded, "JPEG")
    picture = encoded.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_tiny_bundle(Path(folder) / "bundle")
        limits = RequestLimits(max_in_flight=32)
        with running(bundle, ServeSettings(port=free_port(), limits=limits)) as url:
            with Crowd(url, 8, {"green": picture}) as crowd:
                crowd.wait_for(50)  # Everything has been used once.
                start, before = time.perf_counter(), crowd.tally.total
                crowd.wait_for(200)
                capacity = (crowd.tally.total - before) / (time.perf_counter() - start)
            rate = 10 * capacity
            tally, late = arrive(url, rate, seconds, picture, "green")
            quiet_ms = crowd.tally.quantile_ms(200, 0.99) or 0.0
            recovered_s = asyncio.run(_recover(url, picture, 2 * quiet_ms / 1000))
    return {
        "capacity": round(capacity, 1),
        "rate": round(rate, 1),
        "accepted": tally.statuses[200],
        "refused": tally.statuses[503] + tally.statuses[429],
        "other": {str(status): n for status, n in tally.statuses.items() if status not in (200, 429, 503)},
        "wrong": tally.wrong,
        "quiet_p99_ms": quiet_ms,
        "accepted_p99_ms": tally.quantile_ms(200, 0.99),
        "refused_p50_ms": tally.quantile_ms(503, 0.5),
        "refused_p99_ms": tally.quantile_ms(503, 0.99),
        "no_retry_after": tally.no_retry_after,
        "late_p99_ms": round(1000 * sorted(late)[int(0.99 * len(late))], 1),
        "recovered_s": round(recovered_s, 2),
    }


async def _recover(url: str, picture: bytes, bound_s: float) -> float:
    client, start, good, tally = Client(url), time.perf_counter(), 0, Tally()
    while good < 10 and time.perf_counter() - start < 60:
        begun = time.perf_counter()
        status, headers, body = await client.post(picture)
        taken = time.perf_counter() - begun
        tally.add(status, headers, body, taken, "green")
        good = good + 1 if status == 200 and taken <= bound_s else 0
    client.close()
    return time.perf_counter() - start


def main() -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", metavar="SECONDS", nargs="?", type=float, default=20.0, help="of requests")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.seconds), indent=1))


if __name__ == "__main__":
    main()
