"""The example for `ray up`, against Ray's own schema and its own reading of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.k8s.rendered import K8S

EXAMPLE = K8S / "vms" / "aws.yaml"


def example() -> dict[str, Any]:
    content = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def faults(content: dict[str, Any]) -> list[str]:
    """What Ray's schema of a cluster's file finds wrong."""
    import ray

    schema = json.loads((Path(ray.__file__).with_name("autoscaler") / "ray-schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


def test_ray_takes_it() -> None:
    assert faults(example()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_worker",), 4),
        (("max_workers",), "four"),
        (("provider", "type"), 1),
        (("docker", "images"), "x"),
        (("available_node_types", "gpu", "min_worker"), 0),
        (("head_start_ray_commands",), "ray start"),
    ],
)
def test_a_planted_mistake_is_caught(path: tuple[str, ...], value: object) -> None:
    content = copy.deepcopy(example())
    part = content
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert len(faults(content)) == 1


def test_the_head_does_no_work_and_every_node_asks_for_the_token() -> None:
    content = example()
    types = content["available_node_types"]
    assert types[content["head_node_type"]]["resources"] == {"CPU": 0}
    assert [name for name, kind in types.items() if kind.get("min_workers", 0)] == []
    assert sum(kind["max_workers"] for kind in types.values()) == content["max_workers"]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (command for command in content[commands] if "ray start" in command)
        assert start.startswith("RAY_AUTH_MODE=token ")
    assert content["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    mounts = [option for option in content["docker"]["run_options"] if option.startswith("-v")]
    assert mounts == ["-v /shared:/shared"]
