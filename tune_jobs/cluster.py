"""The Ray that a search runs on: one started here and ended with it, or one that is already there."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rayml.errors import RaymlError, SearchError, UsageError, first_line

T = TypeVar("T")

LOCAL_STARTS = 3  # Ray gives its processes 30 seconds, fixed in its code: a busy machine may need more than one try.
_END_TIMEOUT_S = 5.0  # For a task that was cancelled.
CONNECT_TIMEOUT_S = 5.0  # A Ray head that does not take a TCP connection in this time is not there.

# What every process of the search inherits, unless it is set here. TensorFlow reports its processor's abilities on each
# import otherwise, and Ray reports usage to its makers.
_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",  # Otherwise a keras.json in the home folder decides, on each machine its own.
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX takes memory as it needs it: trials may share a graphics processor.
}
# The same, whatever is set here. Ray 2.60 hides graphics processors from those that ask for none only where this is 1.
_FIXED = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Arguments:
        node_id: Ray's name for it.
        cpus: its processors, as Ray counts them.
        gpus: its graphics processors.
        memory_bytes: what Ray found free when it started there; 0 where that is not known.
    """

    node_id: str
    cpus: int
    gpus: int
    memory_bytes: int = 0


def gpu_places(gpus: int, share: float) -> int:
    """How many that take `share` of a graphics processor each, or a whole number of them, fit on a machine.

    Ray spreads nobody's share over two: of 0.6 there is room for one on each.
    """
    return gpus * int(1 / share + 1e-9) if share < 1 else int(gpus / share + 1e-9)


@contextmanager
def ray_cluster(address: str) -> Iterator[tuple[Node, ...]]:
    """Connect to Ray, or start it; a Ray that this process is connected to already is used and left running.

    Arguments:
        address: `local` for one of our own on this machine, `auto` for the one that runs here, or HOST:PORT.

    Returns:
        The nodes that have processors to work with; none on a cluster that still has to grow.

    Raises:
        UsageError: an address that is none.
        SearchError: there is no Ray at that address.
    """
    import ray

    os.environ.update(_environment())
    ours = not ray.is_initialized()
    if ours:
        _connect(address)
    try:
        yield usable_nodes()
    finally:
        if ours:
            ray.shutdown()


def keras_backend() -> str:
    """What Keras runs on in the trials: `KERAS_BACKEND`, or TensorFlow."""
    return _environment()["KERAS_BACKEND"]


def _environment() -> dict[str, str]:
    return {name: os.environ.get(name) or value for name, value in _ENVIRONMENT.items()} | _FIXED


def usable_nodes() -> tuple[Node, ...]:
    """The machines of the connected cluster that have processors to work with, in the order of their ids."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return tuple(
        Node(
            node["NodeID"],
            int(node["Resources"]["CPU"]),
            int(node["Resources"].get("GPU", 0)),
            int(node["Resources"].get("memory", 0)),
        )
        for node in sorted(nodes, key=lambda node: str(node["NodeID"]))
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    )


def node_name() -> str:
    """The address of the machine that this process runs on, as Ray knows it."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def autoscaler_maximum() -> tuple[int, int] | None:
    """The processors and graphics processors that the connected cluster may grow to; None where nobody says."""
    from ray._private.state import state

    try:
        most = state.get_max_resources_from_cluster_config()  # Ray has no public way to ask.
    except (AttributeError, RuntimeError):
        return None
    return (int(most.get("CPU", 0)), int(most.get("GPU", 0))) if most else None


def start_local(**arguments: Any) -> None:
    """Start Ray on this machine, again where a busy machine is late.

    Arguments:
        arguments: of `ray.init`, beside those that are the same for every start.

    Raises:
        Exception: Ray did not come up; it raises this very class.
    """
    import ray

    for tries_left in reversed(range(LOCAL_STARTS)):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **arguments,
            )
            return
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise


def _connect(address: str) -> None:
    import ray

    if address == "local":
        # Ray would write a token into the home folder, readable for every user of the machine.
        with _variable("RAY_AUTH_TOKEN", secrets.token_hex(32)):
            try:
                start_local()
            except Exception as error:  # A bare one, where Ray's own processes are not up in 30 seconds.
                raise SearchError(
                    f"Ray could not be started on this machine ({first_line(error)})",
                    "Look at the load (uptime), the memory (free -m) and the disk (df -h), and try again.",
                ) from None
        return
    if address != "auto":
        _check_reachable(address)
    try:
        environment = {"env_vars": _environment()}
        # A submitted job may set the same variables. They are then in this process's surroundings, too, so that ours
        # are equal to them; Ray refuses even those unless it is told to take ours.
        with _variable("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1"):
            ray.init(address=address, runtime_env=environment, logging_level=logging.ERROR, log_to_driver=False)
    except ray.exceptions.AuthenticationError as error:
        raise SearchError(
            f"a Ray that lets this process in was expected at --address {address}. Received: {first_line(error)}",
            "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to what the cluster's machines have.",
        ) from None
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise SearchError(
            f"a running Ray was expected at --address {address}. Received: {first_line(error)}",
            "Start one with `ray start --head`, or leave --address out to run on this machine alone.",
        ) from None


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable, unless it is set, for what is started inside."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _check_reachable(address: str) -> None:
    """ray.init waits for minutes where nothing answers; a plain connection tells at once."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal():
        raise UsageError(f"--address must be local, auto or HOST:PORT. Received: {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise SearchError(
            f"no Ray answers at --address {address} ({error})",
            "Check the host, the port (6379 by default) and the firewall, or leave --address out.",
        ) from None


def _result(task: Any) -> Any:
    """What a task returns. Ctrl-C ends it first: until then it writes."""
    import ray

    try:
        return ray.get(task)
    except KeyboardInterrupt:
        ray.cancel(task, force=True)
        ray.wait([task], timeout=_END_TIMEOUT_S)
        raise


def on_this_node(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own on the driver's machine, so that what it imports goes with it.

    Keras runs on TensorFlow there, whatever trials use: through it Keras gives its graphs to ONNX. It sees no graphics
    processor: on one, float32 products may be rounded to 10 bits. What it writes to its temporary folder, some hundred
    MB for a large network, goes with it, also when it is killed by Ctrl-C.

    Raises:
        RaymlError: what the function raised.
        SearchError: its process died, and a second one as well.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # No CPUs are asked for: on many clusters the head, where the driver runs, has none to give. The second try is ours:
    # Ray would try again without end where it was itself that killed the process, for want of memory. It would also
    # keep the process for another call, with the gigabyte that TensorFlow and a network take.
    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here}
    died = ""
    for _ in range(2):
        try:
            with tempfile.TemporaryDirectory(prefix="rayml-", ignore_cleanup_errors=True) as scratch:
                variables = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": scratch}
                task = ray.remote(max_calls=1)(function).options(**options, runtime_env={"env_vars": variables})
                result: T = _result(task.remote(*arguments))
                return result
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RaymlError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:  # E.g. killed by the system, or by Ray where memory ran out.
            died = " ".join(str(error).split())[:200]
    raise SearchError(
        f"the process that builds the backbone died ({died})",
        "Is there memory enough on the machine of the driver? Look with `free -m` and `dmesg`, and try again.",
    )
