"""A Ray head and workers as processes of this machine: with a token, ended by their own process ids.

    with LocalCluster(folder) as cluster:
        cluster.add_worker(cpus=1)
        subprocess.run([..., "ray", "status"], env=cluster.environment)

It is what a cluster is, but for the network: every node has its own raylet, object store and agent. All of them have
the address 127.0.0.1; some of Ray's ports listen on the other interfaces as well, as on every cluster of several nodes,
and ask for the token there. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from serving import processes

ROOT = Path(__file__).resolve().parent.parent
_START_TIMEOUT_S = 180.0
_END_GRACE_S = 20.0
_OBJECT_STORE_BYTES = 128 * 2**20
# Worker processes' ports: a block of its own for each node, since all of them have the address 127.0.0.1.
_FIRST_WORKER_PORT, _WORKER_PORTS, _PORT_BLOCKS = 21_000, 100, 100


class ClusterError(Exception):
    """A node did not start, or ended."""


class Node:
    """One node of the cluster: the process that runs and ends it."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "scripts.local_cluster", *command],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for whoever started the cluster, who ends it in order.
            )

    @property
    def pid(self) -> int:
        """The process that runs the node; all the node's processes descend from it."""
        return self._process.pid

    def check(self) -> None:
        """Raise where the node has ended by itself."""
        if self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ClusterError(f"{self.name} must go on. Received: exit {self._process.returncode}\n{tail}")

    def kill(self) -> None:
        """End everything of the node at once and without notice, as a machine that fails does."""
        for pid in (self.pid, *processes.descendants(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """End the node in order; what does not end in time is killed."""
        self._process.terminate()
        try:
            self._process.wait(2 * _END_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()


class LocalCluster:
    """A head, started on entering, and workers; all ended on leaving.

    Arguments:
        folder: an empty folder of mode 0700 for session, token and logs; with a short path, since sockets lie in it.
        head_cpus: processors that the head offers for work.
        head_arguments: more arguments of `ray start --head`.
        environment: more variables for all nodes.
    """

    def __init__(
        self,
        folder: Path,
        head_cpus: int = 0,
        head_arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._nodes: list[Node] = []
        self._head_arguments = [f"--num-cpus={head_cpus}", *head_arguments]
        self._more = environment or {}
        self._blocks = iter(range(secrets.randbelow(_PORT_BLOCKS // 2), _PORT_BLOCKS))
        port, dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.dashboard_url = f"http://127.0.0.1:{dashboard}"
        self._ports = [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]

    @property
    def environment(self) -> dict[str, str]:
        """For whoever is to use the cluster: where it is, and the token."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            **self._more,
        }

    def __enter__(self) -> LocalCluster:
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        # What the caller's own Ray is told by must not lead these nodes elsewhere.
        for name in ("RAY_AUTH_TOKEN", "RAY_TMPDIR"):
            os.environ.pop(name, None)
        try:
            head = self._start("head", ["--head", *self._ports, *self._head_arguments])
            self._await(lambda: _listens(self.address) and _listens(self.dashboard_url.removeprefix("http://")), head)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def add_worker(self, cpus: int = 1, arguments: Sequence[str] = ()) -> Node:
        """Start a worker, and return once the head counts it among the living."""
        before = self.alive()
        node = self._start(
            f"worker-{len(self._nodes)}", [f"--address={self.address}", f"--num-cpus={cpus}", *arguments]
        )
        self._await(lambda: self.alive() > before, node)
        return node

    def alive(self) -> int:
        """How many nodes the head takes for alive, itself included."""
        code = (
            "import json, os, sys\n"
            "from ray._raylet import GcsClient\n"
            "nodes = GcsClient(address=os.environ['RAY_ADDRESS']).get_all_node_info().values()\n"
            "print(sum(node.state == 0 for node in nodes))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environment, capture_output=True, text=True, timeout=_START_TIMEOUT_S
        )
        if done.returncode:
            raise ClusterError(f"the head must say which nodes live. Received: {done.stderr[-2000:]}")
        return int(done.stdout)

    def _start(self, name: str, arguments: list[str]) -> Node:
        first = _FIRST_WORKER_PORT + _WORKER_PORTS * next(self._blocks)
        command = ["ray", "start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
        command += [f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--min-worker-port={first}", f"--max-worker-port={first + _WORKER_PORTS - 1}"]
        command += [f"--metrics-export-port={free_port()}"]
        if arguments[0] == "--head":
            command += [f"--temp-dir={self.folder / 'ray'}"]
        node = Node(name, [*command, *arguments], self.environment, self.folder / f"{name}.log")
        self._nodes.append(node)
        return node

    def _await(self, arrived: object, node: Node) -> None:
        assert callable(arrived)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not arrived():
            node.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"{node.name} must start within {_START_TIMEOUT_S:g} s")
            time.sleep(0.5)

    def _end(self) -> None:
        for node in reversed(self._nodes):
            node.end()


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


def main(command: list[str]) -> int:
    """Run one node's command until it ends or this process is told to end, and leave none of its processes behind."""
    processes.adopt_orphans()
    child = subprocess.Popen(command)

    def stop(_number: int, _frame: object) -> None:
        child.terminate()

    signal.signal(signal.SIGTERM, stop)
    code = child.wait()
    for pid in processes.descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    processes.end_descendants(_END_GRACE_S)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
