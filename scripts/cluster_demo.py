"""The Kubernetes manifests' own texts on a cluster of this machine: search, a lost node, service, load, upgrade, drain.

    make cluster-demo          # or: python -m scripts.cluster_demo [--json]

A head without processors and two workers, each with a network of its own and a token between them (`local_cluster`).
The job runs the settings of k8s/overlays/local, with `/shared` and `/opt/rayml` in a temporary folder, as KubeRay
submits it; a worker is killed while trials run. The winner is promoted by the Job's own command, and the service is
deployed from the RayService's `serveConfigV2` through the interface that KubeRay uses. Clients ask the nodes that a
Service would send them to, those that pass KubeRay's readiness probe, while a second version is promoted and while one
node is ended as a pod is: the manifest's `preStop`, then the end of its processes. Takes some minutes on two cores.
What it cannot show is said in docs/cluster.md.
"""

from __future__ import annotations

import http.client
import json
import re
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rayml.bundle import Bundle
from rayml.sample import write_sample
from scripts.local_cluster import ROOT, ClusterError, LocalCluster, Node, isolate
from serving import container

_STEP_TIMEOUT_S = 600.0
_CLIENTS = 4
_SHORT_S = 10.0
_PORT = container.PORT
# KubeRay's readiness probe of a worker that serves (v1.7.0, initReadinessAndLivenessProbe in its pod.go): both have to
# say "success" within the timeout, and one failure takes the pod out of the Service.
_PROBES = (":52365/api/local_raylet_healthz", f":{_PORT}/-/healthz")
_PROBE_PERIOD_S, _PROBE_TIMEOUT_S = 5.0, 2.0
# A pod that is being stopped leaves the Service at once; after this long every node's network should know.
_SERVICE_LAG_S = 5.0


class Demo:
    """The steps, in order, and what each of them found."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._say = say
        service = yaml.safe_load((ROOT / "k8s/base/rayservice.yaml").read_text(encoding="utf-8"))["spec"]
        (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
        (worker,) = group["template"]["spec"]["containers"]
        self._serve_text: str = service["serveConfigV2"].replace("/shared", str(self.shared))
        self._pre_stop = worker["lifecycle"]["preStop"]["exec"]["command"]
        image = folder / "image"
        container.write(image / "haproxy")
        environment = {v["name"]: v["value"].replace("/opt/rayml", str(image)) for v in worker["env"]}
        self._environment = {**environment, "HOME": "/run"}
        self.cluster = LocalCluster(folder, 0, (), self._environment)
        self.found: dict[str, Any] = {}
        self._stopping: dict[str, float] = {}  # Address of a node -> when it was told to end.

    def prepare(self) -> tuple[Node, Node]:
        """Photos on the shared folder, a head, two workers."""
        count = write_sample(self.shared / "photos" / "clothing", 20, 10)
        self._say(f"{count} drawings of garments on the volume; a head is up, without processors")
        first, second = self.cluster.add_worker(), self.cluster.add_worker()
        self._say(f"two workers of one processor: {', '.join(self.cluster.alive())}")
        stranger = {**self.cluster.environment, "RAY_AUTH_TOKEN": "0" * 64}
        status, _ = self._dashboard("GET", "/api/jobs/", token=stranger["RAY_AUTH_TOKEN"])
        self.found["wrong_token"] = status
        self._say(f"jobs asked for with a wrong token: HTTP {status}")
        return first, second

    def search(self, victim: Node) -> None:
        """The RayJob's entry point by `ray job submit`; a worker dies in the middle, another one comes."""
        run = self._submit("tune", {})
        history = run / "history.csv"
        _wait(lambda: history.is_file() and len(history.read_text().splitlines()) > 3, "the first epochs")
        victim.kill()
        self._say(f"the search runs; {victim.host} was killed after {_rows(history)} epochs")
        self.cluster.add_worker()
        self._await_job("tune")
        record = json.loads((run / "run.json").read_text())
        statuses = Counter(line.split(",")[4] for line in (run / "trials.csv").read_text().splitlines()[1:])
        self.found |= {"trials": dict(statuses), "val_accuracy": record["best"]["val_accuracy"]}
        self._say(f"the search is through, {dict(statuses)}: validation accuracy {record['best']['val_accuracy']:.3f}")

    def search_again(self) -> Path:
        """The run of a second search with another seed: the features are there already."""
        run = self._submit("tune-2", {"out": str(self.shared / "runs" / "clothing-2"), "seed": 2})
        self._await_job("tune-2")
        self._say("a second search with another seed is through")
        return run

    def serve(self) -> None:
        """The first bundle promoted, then the RayService's `serveConfigV2` by the request that KubeRay makes."""
        run = self.shared / "runs" / "clothing"
        self._promote(run)
        self._deploy(Bundle.open(run / "best"))
        workers = self._workers()
        _wait(lambda: self._ready() == workers, "nodes that pass KubeRay's readiness probe")
        self._say(f"served by {len(workers)} nodes, each with a replica; KubeRay's probes would pass")
        with self._load() as counts:
            time.sleep(_SHORT_S)
        self._report("load", counts)
        told = [self._told(host) for host in workers]
        self.found["told"] = sum(told)
        self._say(f"the replicas' own metrics, as Prometheus would read them: {' + '.join(map(str, told))} requests")

    def upgrade(self, run: Path) -> None:
        """Another bundle promoted while clients ask."""
        digest = Bundle.open(run / "best").digest.encode()
        with self._load() as counts:
            time.sleep(_SHORT_S / 2)
            replicas = self._promote(run)
            old = [host for host in self._workers() if digest not in _ask(f"http://{host}:{_PORT}/readyz")[1]]
            time.sleep(_SHORT_S / 2)
        if old:
            raise ClusterError(f"every replica must answer with the promoted version. Received: not {', '.join(old)}")
        self.found["replicas"] = replicas
        self._report("upgrade", counts)

    def drain(self, node: Node) -> None:
        """A node ended while clients ask, as Kubernetes ends a pod; another one is there to take its place."""
        self.cluster.add_worker()
        with self._load() as counts:
            time.sleep(_SHORT_S)
            self._stopping[node.host] = time.monotonic()
            self.cluster.run(self._pre_stop, node)
            node.end()
            time.sleep(_SHORT_S)
        self._report("drain", counts)

    def _promote(self, run: Path) -> int:
        """Run the promoting Job's command on a run; how many replicas it says answer with it."""
        spec = yaml.safe_load((ROOT / "k8s/base/promote.yaml").read_text(encoding="utf-8"))["spec"]["template"]["spec"]
        (job,) = spec["containers"]
        values = {v["name"]: v["value"].replace("/shared", str(self.shared)) for v in job["env"]}
        values |= {"RUN": str(run), "HOME": "/run"}
        *shell, script = job["command"]
        variables = [f"{name}={value}" for name, value in values.items()]
        done = self.cluster.run(["env", *variables, *shell, f"{script} --json"])
        answer = json.loads(done.stdout.splitlines()[-1])
        self._say(f"{run.name} is version {answer['version']}, live in {answer['replicas']} replicas")
        return int(answer["replicas"])

    def _submit(self, job: str, changes: dict[str, Any]) -> Path:
        entrypoint = yaml.safe_load((ROOT / "k8s/base/rayjob.yaml").read_text(encoding="utf-8"))["spec"]["entrypoint"]
        text = (ROOT / "k8s/overlays/local/tune.yaml").read_text(encoding="utf-8")
        values = {**yaml.safe_load(text.replace("/shared", str(self.shared))), **changes}
        settings = self.cluster.folder / f"{job}.yaml"
        settings.write_text(yaml.safe_dump(values), encoding="utf-8")
        command = entrypoint.replace("/etc/rayml/tune.yaml", str(settings)).split()
        submit = ["ray", "job", "submit", "--address", self.cluster.dashboard_url, "--submission-id", job]
        self.cluster.run([*submit, "--no-wait", "--", *command])
        return Path(values["out"])

    def _await_job(self, job: str) -> None:
        def state() -> str:
            status, body = self._dashboard("GET", f"/api/jobs/{job}")
            return str(json.loads(body)["status"]) if status == 200 else "PENDING"

        _wait(lambda: state() not in ("PENDING", "RUNNING"), f"the end of {job}")
        if state() != "SUCCEEDED":
            log = json.loads(self._dashboard("GET", f"/api/jobs/{job}/logs")[1])["logs"]
            raise ClusterError(f"{job} must succeed. Received: {state()}\n{log[-3000:]}")

    def _deploy(self, bundle: Bundle) -> None:
        content = yaml.safe_load(self._serve_text)
        # Asked again until it is taken, as KubeRay does: Serve itself starts with the first request.
        _wait(lambda: self._put(content), "a Serve that takes the configuration")
        _wait(lambda: self._running(bundle), "the service")

    def _put(self, content: dict[str, Any]) -> bool:
        status, body = self._dashboard("PUT", "/api/serve/applications/", content)
        if status != 200:
            self._say(f"Serve has not taken the configuration yet: HTTP {status}, {body.decode()[-200:]!r}")
            time.sleep(_SHORT_S)
        return status == 200

    def _running(self, bundle: Bundle) -> bool:
        status, body = self._dashboard("GET", "/api/serve/applications/")
        state = json.loads(body)["applications"].get("rayml", {}).get("status", "absent") if status == 200 else "absent"
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ClusterError(f"the service must run. Received: {body.decode()[:3000]}")
        urls = [f"http://{host}:{_PORT}/readyz" for host in self._workers()]
        return state == "RUNNING" and all(bundle.digest.encode() in _ask(url)[1] for url in urls)

    def _dashboard(self, method: str, path: str, content: Any = None, token: str = "") -> tuple[int, bytes]:
        data = None if content is None else json.dumps(content).encode()
        headers = {"authorization": f"Bearer {token or self.cluster.token}", "content-type": "application/json"}
        return _ask(self.cluster.dashboard_url + path, data, headers, method)

    def _told(self, host: str) -> int:
        """How many pictures a node's replica says that it has answered, at the port that Prometheus asks."""
        page = _ask(f"http://{host}:{container.METRICS_PORT}/metrics")[1].decode()
        found = re.findall(r'^rayml_requests_total{route="/predict",status="200"} (\S+)$', page, re.MULTILINE)
        return round(sum(map(float, found)))

    def _workers(self) -> list[str]:
        return [node.host for node in self.cluster.nodes[1:] if node.runs]

    def _ready(self) -> list[str]:
        """The nodes that pass KubeRay's readiness probe, asked once as the kubelet asks."""
        return [host for host in self._workers() if all(_succeeds(f"http://{host}{path}") for path in _PROBES)]

    def _leads_to(self, host: str) -> bool:
        """Whether a Service still sends requests to a node that was ready when it was asked last."""
        return time.monotonic() - self._stopping.get(host, time.monotonic()) < _SERVICE_LAG_S

    @contextmanager
    def _load(self) -> Iterator[Counter[str]]:
        """Clients that ask the ready nodes' proxies in turn, until the block ends; what they got is counted.

        Every status but 200 is counted with the node that gave it and the second in which it did.
        """
        picture = Bundle.open(self.shared / "runs" / "clothing" / "best").golden.pictures[0]
        ready = self._ready()
        counts: Counter[str] = Counter()
        start, ended = time.monotonic(), threading.Event()

        def probe() -> None:
            nonlocal ready
            while not ended.wait(_PROBE_PERIOD_S):
                ready = self._ready()

        def client(number: int) -> None:
            turn = number
            while not ended.is_set():
                turn += 1
                hosts = [host for host in ready if self._leads_to(host)]
                if not hosts:
                    counts["no node is ready"] += 1
                    time.sleep(1)
                    continue
                host = hosts[turn % len(hosts)]
                status, _ = _ask(f"http://{host}:{_PORT}/predict", picture, {"content-type": "image/png"})
                counts["200" if status == 200 else f"{status} {host} at {time.monotonic() - start:.0f} s"] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(_CLIENTS)]
        threads.append(threading.Thread(target=probe))
        for thread in threads:
            thread.start()
        try:
            yield counts
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _report(self, step: str, counts: Counter[str]) -> None:
        self.found[step] = dict(counts)
        failed = sum(counts.values()) - counts["200"]
        self._say(f"{step}: {counts['200']} requests answered, {failed} not {dict(counts) if failed else ''}".rstrip())


def _ask(
    url: str,
    data: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
    timeout_s: float = 60.0,
) -> tuple[int, bytes]:
    """One request without proxies; status 0 where nothing answers."""
    request = urllib.request.Request(url, data, headers or {}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, http.client.HTTPException):
        return 0, b""


def _succeeds(url: str) -> bool:
    status, body = _ask(url, timeout_s=_PROBE_TIMEOUT_S)
    return status == 200 and b"success" in body


def _wait(arrived: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _STEP_TIMEOUT_S
    while not arrived():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} must come within {_STEP_TIMEOUT_S:g} s")
        time.sleep(0.5)


def _rows(table: Path) -> int:
    return len(table.read_text().splitlines()) - 1


def main(arguments: list[str]) -> int:
    """Run the demo; 0 when every step was gone through. Requests that failed in a step are counted, and said."""
    if arguments not in ([], ["--json"]):
        print("Usage: python -m scripts.cluster_demo [--json]", file=sys.stderr)
        return 2
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - start:.0f} s] {line}", file=sys.stderr, flush=True)

    try:
        isolate()
        with tempfile.TemporaryDirectory(prefix="rayml-", dir="/var/tmp") as folder:
            demo = Demo(Path(folder), say)
            with demo.cluster:
                victim, survivor = demo.prepare()
                demo.search(victim)
                other = demo.search_again()
                demo.serve()
                demo.upgrade(other)
                demo.drain(survivor)
    except ClusterError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    say("all of its processes and files are gone")
    if arguments:
        print(json.dumps(demo.found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
