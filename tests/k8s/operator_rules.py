"""KubeRay's own rules (ray-operator/controllers/ray/utils/validation.go, v1.7.0), which no schema says.

Only what these manifests could break is restated; feature gates are at their defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.k8s.rendered import cluster_spec

# KubeRay appends to these names until they are labels of 63 characters.
NAME_LIMITS = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # RFC 1035 label
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")  # alpha gates, off unless the operator is told
_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_LEAST_RAY_FOR_TOKENS = (2, 52, 0)


def operator_faults(document: dict[str, Any]) -> list[str]:
    """Why KubeRay would refuse a RayJob or a RayService; [] where it would take it."""
    of_kind = {"RayJob": _job, "RayService": _service}[document["kind"]]
    annotations = document["metadata"].get("annotations", {})
    return [*_metadata(document), *_cluster(cluster_spec(document), annotations), *of_kind(document["spec"])]


def _metadata(document: dict[str, Any]) -> Iterator[str]:
    name, kind = document["metadata"]["name"], document["kind"]
    if len(name) > NAME_LIMITS[kind]:
        yield f"a {kind}'s name has at most {NAME_LIMITS[kind]} characters"
    if not _NAME.fullmatch(name):
        yield "a name is a DNS-1035 label"


def _cluster(spec: dict[str, Any], annotations: dict[str, str]) -> Iterator[str]:
    autoscaling = bool(spec.get("enableInTreeAutoscaling"))
    options = spec.get("autoscalerOptions") or {}
    head = spec["headGroupSpec"]
    for name in _GATED:
        if name in spec:
            yield f"{name} is behind a feature gate"
    for group in [head, *spec.get("workerGroupSpecs", [])]:
        name = group.get("groupName", "head")
        if not group["template"]["spec"].get("containers"):
            yield f"{name} has no container"
            return
        if group.get("resources") and any(key in group["rayStartParams"] for key in _RESOURCES):
            yield f"{name} names resources twice"
        if "labels" in group["rayStartParams"]:
            yield f"{name} has labels in rayStartParams"
        restart = group["template"]["spec"].get("restartPolicy", "Never")
        if options.get("version") == "v2" and autoscaling and restart != "Never":
            yield f"{name}: restartPolicy is Never with autoscaler v2"
    for group in spec.get("workerGroupSpecs", []):
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling and (least is None or most is None):
            yield f"{group['groupName']} must set minReplicas and maxReplicas without an autoscaler"
        if (least or 0) < 0 or (most or 0) < 0 or (least is not None and most is not None and least > most):
            yield f"{group['groupName']}: 0 <= minReplicas <= maxReplicas"
    env = {
        variable["name"]: variable.get("value") for variable in head["template"]["spec"]["containers"][0].get("env", [])
    }
    if autoscaling and options.get("version") and "RAY_enable_autoscaler_v2" in env:
        yield "the autoscaler's version is said twice"
    if not autoscaling and env.get("RAY_enable_autoscaler_v2") in ("1", "true"):
        yield "autoscaler v2 without an autoscaler"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds must not be negative"
    tolerant = spec.get("gcsFaultToleranceOptions")
    if tolerant is None and "RAY_REDIS_ADDRESS" in env:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if tolerant is not None:
        if "ray.io/ft-enabled" in annotations:
            yield "fault tolerance is asked for twice"
        if "redis-password" in head["rayStartParams"] or {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & env.keys():
            yield "Redis is said twice"
        if tolerant.get("backend", "redis") == "redis" and "storage" in tolerant:
            yield "storage is for the other backend"
    if (spec.get("authOptions") or {}).get("mode") == "token":
        version = spec.get("rayVersion", "")
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            yield "tokens need a rayVersion"
        elif tuple(map(int, version.split("."))) < _LEAST_RAY_FOR_TOKENS:
            yield "tokens need Ray 2.52"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    ends = bool(spec.get("shutdownAfterJobFinishes"))
    if spec.get("suspend") and not ends:
        yield "a job that is suspended must shut its cluster down"
    if spec.get("ttlSecondsAfterFinished", 0) < 0 or (not ends and spec.get("ttlSecondsAfterFinished", 0) > 0):
        yield "ttlSecondsAfterFinished goes with shutdownAfterJobFinishes"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} must be positive"
    backoff, mode = spec.get("backoffLimit", 0), spec.get("submissionMode", "K8sJobMode")
    if backoff < 0 or (backoff > 0 and (mode == "InteractiveMode" or spec.get("clusterSelector"))):
        yield "backoffLimit does not go with that"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "a sidecar has no submitter"
    if "deletionStrategy" in spec and ends and "deletionRules" in spec["deletionStrategy"]:
        yield "deletionRules exclude shutdownAfterJobFinishes"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "") or "{}"), dict):
        yield "runtimeEnvYAML must be YAML"


def _service(spec: dict[str, Any]) -> Iterator[str]:
    cluster, upgrade = spec["rayClusterConfig"], spec.get("upgradeStrategy") or {}
    if (cluster["headGroupSpec"].get("headService") or {}).get("metadata", {}).get("name"):
        yield "the head's service has no name of its own"
    if upgrade.get("type") not in (None, "None", "NewCluster", "NewClusterWithIncrementalUpgrade"):
        yield "no such upgrade"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds must not be negative"
    if upgrade.get("type") != "NewClusterWithIncrementalUpgrade":
        return
    options = upgrade.get("clusterUpgradeOptions")
    if not cluster.get("enableInTreeAutoscaling"):
        yield "an upgrade in steps needs the autoscaler"
    if options is None:
        yield "an upgrade in steps needs its options"
        return
    step, surge = options.get("stepSizePercent"), options.get("maxSurgePercent", 100)
    if step is None or not 0 <= step <= surge <= 100:
        yield "0 <= stepSizePercent <= maxSurgePercent <= 100"
    if options.get("intervalSeconds", 0) <= 0:
        yield "intervalSeconds must be positive"
    if not options.get("gatewayClassName"):
        yield "a gateway class must be named"
