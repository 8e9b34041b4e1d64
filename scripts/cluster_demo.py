"""The Kubernetes manifests' own texts on a cluster of this machine: search, a lost node, service, load, upgrade, drain.

    make cluster-demo          # or: python -m scripts.cluster_demo [--json]

A head without processors and two workers, each with a network of its own and a token between them (`local_cluster`).
The job runs the settings of k8s/overlays/local, with `/shared` and `/opt/rayml` in a temporary folder, as KubeRay
submits it; a worker is killed while trials run. The service is deployed from the RayService's `serveConfigV2` through
the interface that KubeRay uses; clients ask both nodes' proxies while a second version takes over and while one node
is drained with the manifest's own command. Takes some minutes on two cores. What it cannot show is said in
docs/cluster.md.
"""

from __future__ import annotations

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


class Demo:
    """The steps, in order, and what each of them found."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._say = say
        service = yaml.safe_load((ROOT / "k8s/base/rayservice.yaml").read_text(encoding="utf-8"))["spec"]
        (group,) = service["rayClusterConfig"]["workerGroupSpecs"]
        (worker,) = group["template"]["spec"]["containers"]
        self._serve_text: str = service["serveConfigV2"]
        self._drain = worker["lifecycle"]["preStop"]["exec"]["command"]
        image = folder / "image"
        container.write(image / "haproxy")
        environment = {v["name"]: v["value"].replace("/opt/rayml", str(image)) for v in worker["env"]}
        self._environment = {**environment, "HOME": "/run"}
        self.cluster = LocalCluster(folder, 0, (), self._environment)
        self.found: dict[str, Any] = {}

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

    def search_again(self) -> Bundle:
        """The winner of a second search with another seed: the features are there already."""
        run = self._submit("tune-2", {"out": str(self.shared / "runs" / "clothing-2"), "seed": 2})
        self._await_job("tune-2")
        self._say("a second search with another seed is through")
        return Bundle.open(run / "best")

    def serve(self) -> Bundle:
        """The RayService's `serveConfigV2`, by the request that KubeRay makes."""
        bundle = Bundle.open(self.shared / "runs" / "clothing" / "best")
        self._deploy(bundle)
        workers = self._workers()
        for host in workers:
            health = _ask(f"http://{host}:{_PORT}/-/healthz")
            if health[0] != 200 or b"success" not in health[1]:  # what KubeRay's readiness probe looks for
                raise ClusterError(f"{host} must be healthy. Received: {health}")
        self._say(f"served by {len(workers)} nodes, each with a replica; KubeRay's probes would pass")
        with self._load(bundle.golden.pictures[0]) as counts:
            time.sleep(_SHORT_S)
        self._report("load", counts)
        told = [self._told(host) for host in workers]
        self.found["told"] = sum(told)
        self._say(f"the replicas' own metrics, as Prometheus would read them: {' + '.join(map(str, told))} requests")
        return bundle

    def upgrade(self, old: Bundle, new: Bundle) -> None:
        """Another bundle in place of the first while clients ask."""
        with self._load(old.golden.pictures[0]) as counts:
            self._deploy(new)
            time.sleep(_SHORT_S / 2)
        self._report("upgrade", counts)

    def drain(self, node: Node) -> None:
        """The manifest's preStop command on one node while clients ask the others."""
        node_id = self.cluster.alive()[node.host]
        self.cluster.add_worker()
        with self._load(
            Bundle.open(self.shared / "runs" / "clothing" / "best").golden.pictures[0], node.host
        ) as counts:
            script = self._drain[-1].replace("ray drain-node", f"ray drain-node --node-id {node_id}")
            self.cluster.run([*self._drain[:-1], script], node)
        self._report("drain", counts)

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
        content["applications"][0]["args"]["bundle"] = str(bundle.path)
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
        """How many pictures a node's replica says that it has answered, at whichever of its ports it listens."""
        first, last = (int(self._environment[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX"))
        pages = [_ask(f"http://{host}:{port}/metrics")[1].decode() for port in range(first, last + 1)]
        found = re.findall(r'^rayml_requests_total{route="/predict",status="200"} (\S+)$', "".join(pages), re.MULTILINE)
        return round(sum(map(float, found)))

    def _workers(self) -> list[str]:
        return [host for host in self.cluster.alive() if host != self.cluster.head_host]

    @contextmanager
    def _load(self, picture: bytes, without: str = "") -> Iterator[Counter[str]]:
        """Clients that ask the nodes' proxies in turn, until the block ends; what they got is counted by status."""
        hosts = [host for host in self._workers() if host != without]
        counts: Counter[str] = Counter()
        ended = threading.Event()

        def client(number: int) -> None:
            turn = number
            while not ended.is_set():
                turn += 1
                url = f"http://{hosts[turn % len(hosts)]}:{_PORT}/predict"
                status, _ = _ask(url, picture, {"content-type": "image/png"})
                counts[str(status)] += 1

        clients = [threading.Thread(target=client, args=(number,)) for number in range(_CLIENTS)]
        for thread in clients:
            thread.start()
        try:
            yield counts
        finally:
            ended.set()
            for thread in clients:
                thread.join()

    def _report(self, step: str, counts: Counter[str]) -> None:
        self.found[step] = dict(counts)
        failed = sum(counts.values()) - counts["200"]
        self._say(f"{step}: {counts['200']} requests answered, {failed} not {dict(counts) if failed else ''}".rstrip())


def _ask(
    url: str, data: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
) -> tuple[int, bytes]:
    """One request without proxies; status 0 where nothing answers."""
    request = urllib.request.Request(url, data, headers or {}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


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
                demo.upgrade(demo.serve(), other)
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
