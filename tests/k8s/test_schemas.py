"""Every rendered overlay against KubeRay's and Kubernetes' schemas, the CRDs' CEL rules and KubeRay's own rules.

No cluster is needed, and none has run them: what is proved and what is not stands in docs/cluster.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.k8s.operator_rules import operator_faults
from tests.k8s.rendered import OVERLAYS, cluster_spec, documents, one
from tests.k8s.schemas import cel, faults

needs_cel = pytest.mark.skipif(cel is None, reason="CEL is evaluated on Python 3.11 and up")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_takes_every_document(overlay: str, kuberay_crds: Path) -> None:
    found = {(d["kind"], d["metadata"]["name"]): faults(d, kuberay_crds) for d in documents(overlay)}
    assert {key: wrong for key, wrong in found.items() if wrong} == {}
    assert {"Namespace", "ConfigMap", "RayJob", "RayService", "NetworkPolicy"} <= {kind for kind, _ in found}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_the_operator_takes_it(overlay: str, kind: str) -> None:
    assert operator_faults(one(overlay, kind)) == []


def put(document: dict[str, Any], path: str, value: object) -> None:
    """Set what a dotted path names; a number is a place in a list."""
    *steps, last = path.split(".")
    part: Any = document
    for step in steps:
        part = part[int(step)] if step.isdigit() else part.setdefault(step, {})
    part[last] = value


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob", "spec.entryPoint", "python"),
        ("RayJob", "spec.backoffLimit", "none"),
        ("RayJob", "spec.rayClusterSpec.authOptions.mode", "password"),
        ("RayJob", "spec.rayClusterSpec.workerGroupSpecs.0.replica", 2),
        ("RayJob", "spec.rayClusterSpec.autoscalerOptions.version", "v3"),
        pytest.param("RayJob", "spec.managedBy", "somebody", marks=needs_cel),
        pytest.param("RayJob", "spec.deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}}, marks=needs_cel),
        ("RayService", "spec.serveConfig", "{}"),
        ("RayService", "spec.upgradeStrategy.kind", "NewCluster"),
        ("RayService", "spec.rayClusterConfig.headGroupSpec.template.spec.container", []),
        ("RayService", "spec.rayClusterConfig.gcsFaultToleranceOptions", {"redisHost": "redis"}),
        pytest.param("RayService", "spec.rayClusterConfig.managedBy", "somebody", marks=needs_cel),
        ("ConfigMap", "datas", {}),
        ("Namespace", "metadata.label", {}),
        ("PodDisruptionBudget", "spec.minimumAvailable", 1),
        ("PersistentVolumeClaim", "spec.accessMode", ["ReadWriteMany"]),
        ("StatefulSet", "spec.template.spec.containers.0.port", []),
        ("Service", "spec.ports.0.port", "http"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.ports", "metrics"),
        ("PrometheusRule", "spec.groups.0.rules.0.expression", "1"),
    ],
)
def test_a_planted_mistake_is_caught(kind: str, path: str, value: object, kuberay_crds: Path) -> None:
    document = next(d for d in documents("production") if d["kind"] == kind)
    put(document, path, value)
    assert len(faults(document, kuberay_crds)) == 1


def test_a_missing_part_is_caught(kuberay_crds: Path) -> None:
    document = one("gpu", "RayJob")
    del document["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert faults(document, kuberay_crds) == ["$.spec.rayClusterSpec: 'headGroupSpec' is a required property"]


HEAD = "headGroupSpec.template.spec"
WORKER = "workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayJob", "metadata.name", "a" * 48),
        ("RayJob", "metadata.name", "1-tune"),
        ("RayService", "metadata.name", "Serve"),
        ("RayJob", "cluster.networkPolicy", {"mode": "DenyAll"}),
        ("RayJob", f"cluster.{HEAD}.containers", []),
        ("RayJob", f"cluster.{HEAD}.restartPolicy", "Always"),
        ("RayJob", f"cluster.{WORKER}.template.spec.restartPolicy", "OnFailure"),
        ("RayJob", f"cluster.{WORKER}.minReplicas", 99),
        ("RayJob", f"cluster.{WORKER}.minReplicas", -1),
        ("RayJob", f"cluster.{WORKER}.rayStartParams.labels", "a=b"),
        ("RayJob", "cluster.headGroupSpec.resources", {"CPU": "1"}),
        ("RayJob", "cluster.autoscalerOptions.idleTimeoutSeconds", -1),
        ("RayJob", "cluster.rayVersion", ""),
        ("RayJob", "cluster.rayVersion", "2.51.0"),
        ("RayJob", "spec.shutdownAfterJobFinishes", False),
        ("RayJob", "spec.activeDeadlineSeconds", 0),
        ("RayJob", "spec.backoffLimit", -1),
        ("RayJob", "spec.submissionMode", "SidecarMode"),
        ("RayJob", "spec.runtimeEnvYAML", "- a list"),
        ("RayService", "spec.upgradeStrategy.type", "Rolling"),
        ("RayService", "spec.upgradeStrategy.clusterUpgradeOptions", None),
        ("RayService", "spec.upgradeStrategy.clusterUpgradeOptions.stepSizePercent", 60),
        ("RayService", "spec.upgradeStrategy.clusterUpgradeOptions.intervalSeconds", 0),
        ("RayService", "spec.upgradeStrategy.clusterUpgradeOptions.gatewayClassName", ""),
        ("RayService", "spec.rayClusterDeletionDelaySeconds", -1),
        ("RayService", "cluster.headGroupSpec.rayStartParams.redis-password", "x"),
    ],
)
def test_the_operator_refuses_a_planted_mistake(kind: str, path: str, value: object) -> None:
    document = one("production", kind)
    if path.startswith("cluster."):
        put(cluster_spec(document), path.removeprefix("cluster."), value)
    else:
        put(document, path, value)
    assert len(operator_faults(document)) == 1


def test_the_operator_refuses_what_is_left_out() -> None:
    service = one("production", "RayService")
    del cluster_spec(service)["enableInTreeAutoscaling"]
    assert "an upgrade in steps needs the autoscaler" in operator_faults(service)
    job = one("gpu", "RayJob")
    cluster = cluster_spec(job)
    del cluster["enableInTreeAutoscaling"], cluster["workerGroupSpecs"][0]["minReplicas"]
    assert len(operator_faults(job)) == 1
    cluster[HEAD.split(".")[0]]["template"]["spec"]["containers"][0]["env"].append(
        {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}
    )
    assert len(operator_faults(job)) == 2
