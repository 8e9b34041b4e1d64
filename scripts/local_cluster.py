"""A Ray cluster of several machines on this one: a network for every node, and nothing that outlives the program.

    isolate()                     # the program goes on in namespaces of its own: network, processes, mounts
    with LocalCluster(folder) as cluster:
        cluster.add_worker(cpus=1)
        cluster.run(["ray", "status"])

Each node is a network namespace with an address of its own behind a bridge, so that all nodes use Ray's own ports as
pods do; its root file system is read-only but for /run, /dev/shm and `folder`, as in k8s/. Nothing is reachable from
outside, and when the program ends, however it does, the kernel ends all of its processes. Linux with util-linux and
iproute2; without root it needs user namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from serving import processes

ROOT = Path(__file__).resolve().parent.parent
_ISOLATED = "RAYML_ISOLATED"
_NETWORK = "10.77.0"  # of the namespaces alone
_BRIDGE = 254
_START_TIMEOUT_S = 300.0
_END_GRACE_S = 20.0
_ATTEMPTS, _STARTED_S = 3, 120.0  # Of starting a node; after that many seconds it had started.
_OBJECT_STORE_BYTES = 128 * 2**20


class ClusterError(Exception):
    """The namespaces cannot be made, or a node did not start or ended."""


def isolate() -> None:
    """Start this program again in namespaces of its own; returns in there.

    Raises:
        ClusterError: the system does not allow it.
    """
    if os.environ.get(_ISOLATED) == "1":
        _join_network()
        return
    missing = [name for name in ("unshare", "nsenter", "ip", "mount") if shutil.which(name) is None]
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid():
        command += ["--user", "--map-root-user"]
    if missing or subprocess.run([*command, "true"], capture_output=True).returncode:
        received = f"no {', '.join(missing)}" if missing else "the system refuses"
        raise ClusterError(f"namespaces for a cluster on this machine are needed. Received: {received}")
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execvpe("unshare", [*command, *arguments], {**os.environ, _ISOLATED: "1"})


def _join_network() -> None:
    _call("ip", "link", "set", "lo", "up")
    _call("mount", "-t", "tmpfs", "tmpfs", "/run")  # `ip netns` keeps the namespaces' names there
    _call("ip", "link", "add", "nodes", "type", "bridge")
    _call("ip", "address", "add", f"{_NETWORK}.{_BRIDGE}/24", "dev", "nodes")
    _call("ip", "link", "set", "nodes", "up")


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` must succeed. Received: {done.stderr.strip()}")


class Node:
    """One node: its network, and the process that all others of the node descend from.

    Arguments:
        number: 1 for the head.
        command: what the node runs.
        environment: its variables.
        folder: what it may write to, and where its log goes.
    """

    def __init__(self, number: int, command: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self.name = f"node-{number}"
        self.host = f"{_NETWORK}.{number}"
        self.log = folder / f"{self.name}.log"
        _call("ip", "netns", "add", self.name)
        _call("ip", "-n", self.name, "link", "set", "lo", "up")
        _call("ip", "link", "add", f"to-{number}", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _call("ip", "link", "set", f"to-{number}", "master", "nodes", "up")
        _call("ip", "-n", self.name, "address", "add", f"{self.host}/24", "dev", "eth0")
        _call("ip", "-n", self.name, "link", "set", "eth0", "up")
        runner = [sys.executable, "-m", "scripts.local_cluster", str(folder)]
        with self.log.open("wb") as file:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *runner, *command],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for whoever started the cluster, who ends it in order.
            )

    @property
    def pid(self) -> int:
        """The node's first process, whose network and file system are the node's."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it has neither ended nor been killed."""
        return self._process.poll() is None

    def check(self) -> None:
        """Raise where the node has ended by itself."""
        if self._process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ClusterError(f"{self.name} must go on. Received: exit {self._process.returncode}\n{tail}")

    def kill(self) -> None:
        """End everything of the node at once and without notice, as a machine that fails does."""
        for pid in (self._process.pid, *processes.descendants(self._process.pid)):
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
    """A head, started on entering, and workers; all ended on leaving. To be used after `isolate`.

    Arguments:
        folder: what the nodes share and may write to; token and logs go there.
        head_cpus: processors that the head offers for work.
        head_arguments: more arguments of `ray start --head`.
        environment: more variables, for all nodes and for `run`.
    """

    def __init__(
        self,
        folder: Path,
        head_cpus: int = 0,
        head_arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.nodes: list[Node] = []
        self.head_host = f"{_NETWORK}.1"
        self.address = f"{self.head_host}:6379"
        self.dashboard_url = f"http://{self.head_host}:8265"
        self.token = secrets.token_hex(32)
        self._head_arguments = [f"--num-cpus={head_cpus}", "--dashboard-host=0.0.0.0", *head_arguments]
        self._more = environment or {}

    @property
    def environment(self) -> dict[str, str]:
        """For the nodes and whoever is to use the cluster: where it is, and the token."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/run",
            "TMPDIR": "/run",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            **self._more,
        }

    def __enter__(self) -> LocalCluster:
        try:
            head = self._start("--head", "--temp-dir=/run/ray", *self._head_arguments)
            self._await(lambda: _listens(self.head_host, 6379) and _listens(self.head_host, 8265), head)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def add_worker(self, cpus: int = 1, arguments: Sequence[str] = ()) -> Node:
        """Start a worker, and return once the head counts it among the living."""
        node = self._start(f"--address={self.address}", f"--num-cpus={cpus}", *arguments)
        self._await(lambda: node.host in self.alive(), node)
        return node

    def alive(self) -> dict[str, str]:
        """The nodes that the head takes for alive, itself included: address -> node id."""
        code = (
            "import json, os\nfrom ray._raylet import GcsClient\n"
            "nodes = GcsClient(address=os.environ['RAY_ADDRESS']).get_all_node_info().values()\n"
            "print(json.dumps({n.node_manager_address: n.node_id.hex() for n in nodes if n.state == 0}))"
        )
        done = self.run([sys.executable, "-c", code], check=False)
        # A head that is busy may not answer in time: then nothing is known, and the caller asks again.
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
        return found

    def run(
        self, command: Sequence[str], node: Node | None = None, check: bool = True, timeout_s: float = 900.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, the head if none is named, with its network and files; return what it printed.

        Raises:
            ClusterError: `check`, and it failed.
        """
        where = str((node or self.nodes[0]).pid)
        done = subprocess.run(
            ["nsenter", f"--target={where}", "--mount", "--net", "--wd", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and done.returncode:
            raise ClusterError(
                f"`{' '.join(command)[:200]}` must succeed. Received:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        return done

    def _start(self, *arguments: str) -> Node:
        number = len(self.nodes) + 1
        command = ["ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={_NETWORK}.{number}"]
        command += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--metrics-export-port=8080", *arguments]
        node = Node(number, command, self.environment, self.folder)
        self.nodes.append(node)
        return node

    def _await(self, arrived: Callable[[], bool], node: Node) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not arrived():
            node.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"{node.name} must start within {_START_TIMEOUT_S:g} s; see {node.log}")
            time.sleep(0.5)

    def _end(self) -> None:
        for node in reversed(self.nodes):
            node.end()


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def main(folder: str, *command: str) -> int:
    """A node's first process: make the file system read-only but for what it needs, and run the node's command.

    It ends when the command does or when it is told to, and leaves none of the node's processes behind.
    """
    _call("mount", "-t", "tmpfs", "tmpfs", "/run")
    _call("mount", "--bind", folder, folder)
    _call("mount", "-o", "remount,ro,bind", "/")
    Path("/run/rayml").mkdir()
    processes.adopt_orphans()
    running: list[subprocess.Popen[bytes]] = []
    told_to_end = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        told_to_end.set()
        running[-1].terminate()

    code = 1
    # Ray gives a node 30 s to start, which a busy machine may exceed: then again, as a pod is started again.
    for _ in range(_ATTEMPTS):
        started = time.monotonic()
        running.append(subprocess.Popen(command))
        signal.signal(signal.SIGTERM, stop)
        code = running[-1].wait()
        for pid in processes.descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        processes.end_descendants(_END_GRACE_S)
        if told_to_end.is_set() or code == 0 or time.monotonic() - started > _STARTED_S:
            break
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
