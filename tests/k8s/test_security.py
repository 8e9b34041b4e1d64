"""Kubernetes' `restricted` profile and rayml's own rules, held against every pod of every overlay."""

from __future__ import annotations

from typing import Any

import pytest

from tests.k8s.rendered import OVERLAYS, Pod, cluster_spec, documents, one, pods, selects

VOLUMES = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}


def weaknesses(pod: Pod) -> list[str]:
    """What a pod may do that it need not."""
    spec, found = pod.spec, []
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("host namespaces")
    if spec.get("automountServiceAccountToken") is not False:
        found.append("a service account's token")
    if {key for volume in spec.get("volumes", []) for key in volume if key != "name"} - VOLUMES:
        found.append("a volume of the host")
    of_pod = spec.get("securityContext", {})
    if of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    if of_pod.get("runAsNonRoot") is not True or not of_pod.get("runAsUser") or not of_pod.get("fsGroup"):
        found.append("root")
    for container in spec["containers"]:
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            found.append(f"{container['name']}: privileges")
        if context.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{container['name']}: capabilities")
        if context.get("readOnlyRootFilesystem") is not True:
            found.append(f"{container['name']}: a file system to write to")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.append(f"{container['name']}: a port of the host")
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
            found.append(f"{container['name']}: resources")
        for variable in container.get("env", []):
            if any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "SECRET", "KEY")) and "value" in variable:
                found.append(f"{container['name']}: a secret in the open")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_hold_little_power(overlay: str) -> None:
    everyone = pods(overlay)
    assert len(everyone) == {"local": 6, "gpu": 5, "production": 7}[overlay]
    assert {pod.owner: found for pod in everyone if (found := weaknesses(pod))} == {}
    (namespace,) = (d for d in documents(overlay) if d["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"hostNetwork": True}, "host namespaces"),
        ({"automountServiceAccountToken": True}, "a service account's token"),
        ({"volumes": [{"name": "docker", "hostPath": {"path": "/"}}]}, "a volume of the host"),
        ({"securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1}}, "no seccomp profile"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "root"),
    ],
)
def test_a_pod_with_power_is_caught(change: dict[str, Any], found: str) -> None:
    pod = pods("gpu")[0]
    pod.spec.update(change)
    assert weaknesses(pod) == [found]


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("resources", {}, "resources"),
        ("ports", [{"containerPort": 80, "hostPort": 80}], "a port of the host"),
        ("env", [{"name": "REDIS_PASSWORD", "value": "x"}], "a secret in the open"),
    ],
)
def test_a_container_with_power_is_caught(key: str, value: Any, found: str) -> None:
    pod = pods("gpu")[0]
    pod.spec["containers"][0][key] = value
    assert weaknesses(pod) == [f"ray-job-submitter: {found}"]
    pod.spec["containers"][0]["securityContext"] = {}
    assert len(weaknesses(pod)) == 4


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_jobs_and_dashboard_ask_for_a_token(overlay: str, kind: str) -> None:
    assert cluster_spec(one(overlay, kind))["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_only_the_autoscaler_holds_the_api_token(overlay: str, kind: str) -> None:
    head = next(pod for pod in pods(overlay) if pod.owner.startswith(f"{kind}/") and pod.owner.endswith(" head"))
    holders = [
        container["name"]
        for container in head.spec["containers"]
        if any(mount["name"] == "kube-api" for mount in container["volumeMounts"])
    ]
    assert holders == ["autoscaler"]


def test_the_service_only_reads_the_volume() -> None:
    for overlay in OVERLAYS:
        for pod in pods(overlay):
            if pod.owner.startswith("RayService/"):
                mounts = [m for c in pod.spec["containers"] for m in c["volumeMounts"] if m["name"] == "shared"]
                assert mounts and all(mount["readOnly"] for mount in mounts)


def reaches(overlay: str, source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod of this namespace reach another one's port (TCP, by pod labels alone)."""

    def allows(labels: dict[str, str], other: dict[str, str], way: str, peers: str) -> bool:
        policies = [d["spec"] for d in documents(overlay) if d["kind"] == "NetworkPolicy"]
        binding = [p for p in policies if selects(p["podSelector"], labels) and way.title() in p["policyTypes"]]
        return not binding or any(
            (not rule.get("ports") or any(p["port"] == port and p["protocol"] == "TCP" for p in rule["ports"]))
            and (
                peers not in rule
                or any(
                    "podSelector" in p and "namespaceSelector" not in p and selects(p["podSelector"], other)
                    for p in rule[peers]
                )
            )
            for policy in binding
            for rule in policy.get(way, [])
        )

    return allows(source, target, "egress", "to") and allows(target, source, "ingress", "from")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_reaches_whom(overlay: str) -> None:
    by_owner = {pod.owner: pod.labels for pod in pods(overlay)}
    worker = next(owner for owner in by_owner if owner.startswith("RayJob/") and "trials" in owner)
    head, replica = by_owner["RayJob/rayml-tune head"], by_owner["RayService/rayml-serve replicas"]
    assert reaches(overlay, by_owner[worker], head, 6379)
    assert reaches(overlay, by_owner["RayJob/rayml-tune submitter"], head, 8265)
    assert reaches(overlay, replica, by_owner["RayService/rayml-serve head"], 6379)
    assert not reaches(overlay, by_owner[worker], replica, 8000)  # a search does not reach the service,
    assert not reaches(overlay, replica, head, 8265)  # nor the other way round,
    assert not reaches(overlay, {"app": "stranger"}, replica, 8000)  # and nobody else reaches anything
    assert not reaches(overlay, {"app": "stranger"}, head, 8265)
    client = {"rayml/client": "true"}
    assert reaches(overlay, client, replica, 8000) and not reaches(overlay, client, replica, 8265)
    if overlay == "production":
        redis, gateway = (
            by_owner["StatefulSet/redis"],
            {"gateway.networking.k8s.io/gateway-name": "rayml-serve-gateway"},
        )
        assert reaches(overlay, by_owner["RayService/rayml-serve head"], redis, 6379)
        assert reaches(overlay, by_owner["RayService/rayml-serve redis-cleanup"], redis, 6379)
        assert not reaches(overlay, replica, redis, 6379) and not reaches(overlay, head, redis, 6379)
        assert reaches(overlay, gateway, replica, 8000) and not reaches(overlay, gateway, head, 8265)
