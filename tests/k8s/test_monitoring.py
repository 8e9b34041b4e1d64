"""Alerts and dashboard: their expressions are PromQL, and name only metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from serving.container import METRICS_PORT
from serving.metrics import Metrics
from tests.k8s.rendered import documents, one, pods, selects

# Prometheus' and the PodMonitors' own labels; Ray puts the last ones on its nodes' figures.
TARGET_LABELS = {"pod", "instance", "component", "ray_io_cluster", "le", "GpuIndex"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in one("production", "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    content = json.loads(one("production", "ConfigMap", "rayml-dashboard")["data"]["rayml.json"])
    assert isinstance(content, dict)
    return content


def expressions() -> list[str]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + shown


def rayml_metrics() -> dict[str, set[str]]:
    """Every name under which rayml's metrics appear -> its labels."""
    found: dict[str, set[str]] = {}
    for collector in Metrics(None)._registry._collector_to_names:
        (family,) = collector.describe()  # type: ignore[attr-defined]
        labels = set(collector._labelnames)  # type: ignore[attr-defined]
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[family.type]
        found |= {family.name + ending: labels for ending in endings}
    return found


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every metric that an expression reads."""
    found: list[promql_parser.VectorSelector] = []

    def visit(part: Any) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)

    promql_parser.walk(node, visit)
    yield from found


def unknown(expression: str) -> list[str]:
    """The metrics and labels of an expression that nobody exports."""
    import ray

    ours, wrong = rayml_metrics(), []
    reporter = Path(ray.__file__).with_name("dashboard") / "modules" / "reporter" / "reporter_agent.py"
    of_ray = set(re.findall(r'^    "(node_\w+)": Gauge\(', reporter.read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"by \(([^)]*)\)", expression)
    used = {label.strip() for labels in named for label in labels.split(",")}
    known: set[str] = set(TARGET_LABELS)
    for selector in selectors(promql_parser.parse(expression.replace("$__rate_interval", "5m"))):
        name = selector.name or ""
        used |= {matcher.name for matcher in selector.matchers.matchers if matcher.name != "__name__"}
        if name in ours:
            known |= ours[name]
        elif name.removeprefix("ray_") not in of_ray:
            wrong.append(name)
    return wrong + sorted(used - known)


@pytest.mark.parametrize("expression", expressions())
def test_expressions_name_what_is_there(expression: str) -> None:
    assert unknown(expression) == []


def test_a_planted_mistake_is_caught() -> None:
    assert "rayml_requests_total" in rayml_metrics() and "rayml_request_seconds_bucket" in rayml_metrics()
    assert unknown("sum(rate(rayml_request_total[5m]))") == ["rayml_request_total"]
    assert unknown("ray_node_memory") == ["ray_node_memory"]
    assert unknown('sum by (path) (rate(rayml_requests_total{code="500"}[5m]))') == ["code", "path"]
    with pytest.raises(ValueError):
        promql_parser.parse("sum(rate(rayml_requests_total[5m])")


def test_alerts_say_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 5
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["for"]
        assert {"summary", "description"} == rule["annotations"].keys()


def test_the_dashboards_panels_lie_beside_each_other() -> None:
    places = [tuple(panel["gridPos"].values()) for panel in dashboard()["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in dashboard()["panels"]}) == len(places)
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            used = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert used <= TARGET_LABELS.union(*rayml_metrics().values())


def test_prometheus_asks_ports_that_the_pods_have() -> None:
    everyone = pods("production")
    for monitor in (d for d in documents("production") if d["kind"] == "PodMonitor"):
        reached = [pod for pod in everyone if selects(monitor["spec"]["selector"], pod.labels)]
        names = {port["name"] for pod in reached for c in pod.spec["containers"] for port in c.get("ports", [])}
        assert reached and {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= names


def test_every_replica_is_asked_where_it_tells() -> None:
    replica = next(pod for pod in pods("production") if pod.owner.endswith(" replicas")).spec["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in replica["ports"]}
    (asked,) = one("production", "PodMonitor", "rayml-replicas")["spec"]["podMetricsEndpoints"]
    assert ports[asked["port"]] == METRICS_PORT and asked["path"] == "/metrics"
    policy = one("production", "NetworkPolicy", "prometheus")["spec"]["ingress"][0]
    assert {"protocol": "TCP", "port": METRICS_PORT} in policy["ports"]
