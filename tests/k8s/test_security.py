"""Kubernetes' `restricted` profile and rayml's own rules, held against every pod of every overlay."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from tests.k8s.rendered import OVERLAYS, ROOT, Pod, cluster_spec, documents, one, pods, selects

OF_POD = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
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
    if of_pod.get("fsGroupChangePolicy") != "OnRootMismatch":
        found.append("every file of the volume changed at each start")
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
    assert len(everyone) == {"local": 8, "gpu": 7, "production": 9}[overlay]
    assert {pod.owner: found for pod in everyone if (found := weaknesses(pod))} == {}
    (namespace,) = (d for d in documents(overlay) if d["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"hostNetwork": True}, "host namespaces"),
        ({"automountServiceAccountToken": True}, "a service account's token"),
        ({"volumes": [{"name": "docker", "hostPath": {"path": "/"}}]}, "a volume of the host"),
        ({"securityContext": {**OF_POD, "seccompProfile": {}}}, "no seccomp profile"),
        ({"securityContext": {**OF_POD, "runAsUser": 0}}, "root"),
        (
            {"securityContext": {**OF_POD, "fsGroupChangePolicy": "Always"}},
            "every file of the volume changed at each start",
        ),
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
    assert weaknesses(pod) == [f"promote: {found}"]
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


def test_the_service_reads_the_volume_and_writes_its_reports() -> None:
    for overlay in OVERLAYS:
        for pod in pods(overlay):
            if pod.owner.startswith("RayService/"):
                mounts = [m for c in pod.spec["containers"] for m in c["volumeMounts"] if m["name"] == "shared"]
                written = [mount["subPath"] for mount in mounts if not mount.get("readOnly")]
                assert len(mounts) > len(written)
                assert written == (["models/clothing/replicas"] if pod.owner.endswith(" replicas") else [])


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


def test_the_operator_reaches_what_asks_for_the_token() -> None:
    (rule,) = one("production", "NetworkPolicy", "operator")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8265]
    (peer,) = rule["from"]
    documentation = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert f"--namespace {namespace} --create-namespace" in documentation


def test_names_are_asked_of_resolvers_alone() -> None:
    (rule,) = one("gpu", "NetworkPolicy", "dns")["spec"]["egress"]
    assert {port["port"] for port in rule["ports"]} == {53}
    blocks = [peer["ipBlock"]["cidr"] for peer in rule["to"] if "ipBlock" in peer]
    assert blocks and all(ipaddress.ip_network(cidr).num_addresses == 1 for cidr in blocks)  # on the nodes themselves


def test_the_autoscaler_reaches_the_ports_of_api_servers() -> None:
    (rule,) = one("gpu", "NetworkPolicy", "autoscaler")["spec"]["egress"]
    assert {port["port"] for port in rule["ports"]} == {443, 6443, 8443}


def test_not_everybody_reaches_the_gateway() -> None:
    (rule,) = one("production", "NetworkPolicy", "gateway")["spec"]["ingress"]
    assert rule["from"] and all(
        ipaddress.ip_network(peer["ipBlock"]["cidr"]).is_private or peer["ipBlock"]["cidr"] == "100.64.0.0/10"
        for peer in rule["from"]
    )


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
    promote = by_owner["Job/rayml-promote"]
    assert not any(
        reaches(overlay, promote, labels, 8000) or reaches(overlay, labels, promote, 8000)
        for labels in by_owner.values()
    )
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
