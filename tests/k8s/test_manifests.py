"""The Kubernetes manifests against KubeRay's own schemas, Ray's schema and the modules that they name.

No cluster is needed, and none has run them: what is proved and what is not stands in docs/cluster.md.
"""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tune_jobs.config import make_settings, read_settings

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
MANIFESTS = ("networkpolicy.yaml", "rayjob.yaml", "rayservice.yaml", "storage.yaml")
# KubeRay appends to these names until they are labels of 63 characters (its own validation, v1.7.0).
NAME_LIMITS = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")  # RFC 1123 label


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((K8S / name).read_text(encoding="utf-8")) if document]


def one(name: str, kind: str) -> dict[str, Any]:
    (found,) = (document for document in documents(name) if document["kind"] == kind)
    return found


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the API server prunes by it: an object that lists its properties has no others."""
    schema = dict(schema)
    if schema.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        schema["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(key), dict):
            schema[key] = closed(schema[key])
    return schema


def completed(value: Any, schema: dict[str, Any]) -> Any:
    """The value as the API server sees it before it validates: defaults filled in, nulls left out."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        filled = {name: part["default"] for name, part in properties.items() if "default" in part}
        filled |= {name: part for name, part in value.items() if part is not None}
        rest = schema.get("additionalProperties")
        rest = rest if isinstance(rest, dict) else {}
        return {name: completed(part, properties.get(name, rest)) for name, part in filled.items()}
    if isinstance(value, list):
        return [completed(part, schema.get("items", {})) for part in value]
    return value


def faults(document: dict[str, Any], crds: Path) -> list[str]:
    """What KubeRay's schema of the document's kind and version finds wrong with it."""
    path = crds / f"ray.io_{document['kind'].lower()}s.yaml"
    versions = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    wanted = document["apiVersion"].removeprefix("ray.io/")
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions["versions"] if v["name"] == wanted)
    validator = jsonschema.Draft202012Validator(closed(schema))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(completed(document, schema))]


def pod_specs(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod specification anywhere in a document."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pod_specs(part)
    elif isinstance(value, list):
        for part in value:
            yield from pod_specs(part)


def is_pinned(image: str) -> bool:
    """Whether an image's name ends in a digest, or in a tag that names a version."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return True
    _, colon, tag = image.rsplit("/", 1)[-1].partition(":")
    return bool(colon) and re.search(r"\d+\.\d+\.\d+", tag) is not None


def is_name(kind: str, name: str) -> bool:
    return len(name) <= NAME_LIMITS.get(kind, 63) and NAME.fullmatch(name) is not None


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "RayJob"), ("rayservice.yaml", "RayService")])
def test_kuberay_accepts(name: str, kind: str, kuberay_crds: Path) -> None:
    assert faults(one(name, kind), kuberay_crds) == []


@pytest.mark.parametrize(
    ("name", "kind", "path", "key", "value"),
    [
        ("rayjob.yaml", "RayJob", ("spec",), "entryPoint", "python"),
        ("rayjob.yaml", "RayJob", ("spec",), "backoffLimit", "none"),
        ("rayjob.yaml", "RayJob", ("spec", "rayClusterSpec", "authOptions"), "mode", "password"),
        ("rayjob.yaml", "RayJob", ("spec", "rayClusterSpec", "workerGroupSpecs", 0), "replica", 2),
        ("rayservice.yaml", "RayService", ("spec",), "serveConfig", "{}"),
        ("rayservice.yaml", "RayService", ("spec", "upgradeStrategy"), "kind", "NewCluster"),
        (
            *("rayservice.yaml", "RayService"),
            *(("spec", "rayClusterConfig", "headGroupSpec", "template", "spec"), "container", []),
        ),
    ],
)
def test_a_planted_typo_is_caught(
    name: str, kind: str, path: tuple[str | int, ...], key: str, value: object, kuberay_crds: Path
) -> None:
    document = copy.deepcopy(one(name, kind))
    part: Any = document
    for step in path:
        part = part[step]
    part[key] = value
    assert len(faults(document, kuberay_crds)) == 1


def test_a_missing_part_is_caught(kuberay_crds: Path) -> None:
    document = copy.deepcopy(one("rayjob.yaml", "RayJob"))
    del document["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert faults(document, kuberay_crds) == ["$.spec.rayClusterSpec: 'headGroupSpec' is a required property"]


def serve_config() -> dict[str, Any]:
    content = yaml.safe_load(one("rayservice.yaml", "RayService")["spec"]["serveConfigV2"])
    assert isinstance(content, dict)
    return content


def unknown_keys(content: dict[str, Any]) -> list[str]:
    """Keys of a Serve configuration that Ray does not know: its schema drops them without a word."""
    from ray.serve import schema

    parts: list[tuple[str, dict[str, Any], Any]] = [
        ("", content, schema.ServeDeploySchema),
        ("http_options.", content.get("http_options", {}), schema.HTTPOptionsSchema),
    ]
    for application in content["applications"]:
        parts.append(("applications.", application, schema.ServeApplicationSchema))
        for deployment in application.get("deployments", []):
            parts.append(("deployments.", deployment, schema.DeploymentSchema))
            options = deployment.get("ray_actor_options", {})
            parts.append(("ray_actor_options.", options, schema.RayActorOptionsSchema))
    return [prefix + key for prefix, part, model in parts for key in part if key not in model.model_fields]


def test_ray_serve_accepts_the_application() -> None:
    from ray.serve.schema import ServeDeploySchema

    assert unknown_keys(serve_config()) == []
    (application,) = ServeDeploySchema.model_validate(serve_config()).applications
    module, _, builder = application.import_path.partition(":")
    app = importlib.import_module(module)
    assert callable(getattr(app, builder))
    # Unknown or wrongly typed arguments raise.
    assert app.AppArguments.model_validate(application.args).bundle.startswith("/shared/")
    assert [deployment.name for deployment in application.deployments] == [app.Classifier.__name__]


@pytest.mark.parametrize(
    ("part", "key"),
    [("top", "proxylocation"), ("http_options", "ports"), ("application", "importpath"), ("deployment", "replicas")],
)
def test_an_unknown_key_of_serve_is_caught(part: str, key: str) -> None:
    content = serve_config()
    application = content["applications"][0]
    parts = {"top": content, "http_options": content["http_options"], "application": application}
    parts["deployment"] = application["deployments"][0]
    parts[part][key] = 1
    assert [name.rpartition(".")[2] for name in unknown_keys(content)] == [key]


def test_ray_serve_refuses_a_wrong_value() -> None:
    from ray.serve.schema import ServeDeploySchema

    content = serve_config()
    content["applications"][0]["import_path"] = "serving"
    with pytest.raises(ValueError, match="import path"):
        ServeDeploySchema.model_validate(content)


def test_the_job_reads_the_mounted_configuration(tmp_path: Path) -> None:
    job, config = one("rayjob.yaml", "RayJob"), one("rayjob.yaml", "ConfigMap")
    command, option, module, path = job["spec"]["entrypoint"].split()
    assert (command, option, module) == ("python", "-m", "tune_jobs.run")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = (m for m in head["containers"][0]["volumeMounts"] if m["name"] == "config")
    (volume,) = (v for v in head["volumes"] if v["name"] == "config")
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert path in {f"{mount['mountPath']}/{name}" for name in config["data"]}
    copied = tmp_path / "tune.yaml"
    copied.write_text(config["data"][Path(path).name], encoding="utf-8")
    settings = make_settings(read_settings(copied), "tune.yaml")  # raises for an unknown or wrong setting
    assert settings.address == "auto"  # the cluster that the job runs in
    (shared,) = (m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == "shared")
    for folder in (settings.data, settings.out, settings.cache):
        assert folder is not None and folder.is_relative_to(shared)


def test_the_service_opens_what_the_job_writes() -> None:
    settings = yaml.safe_load(one("rayjob.yaml", "ConfigMap")["data"]["tune.yaml"])
    assert serve_config()["applications"][0]["args"]["bundle"] == f"{settings['out']}/best"


@pytest.mark.parametrize("name", MANIFESTS)
def test_names_are_short_enough(name: str) -> None:
    for document in documents(name):
        assert is_name(document["kind"], document["metadata"]["name"])


def test_a_long_or_odd_name_is_caught() -> None:
    assert is_name("RayJob", "a" * 47) and not is_name("RayJob", "a" * 48)
    assert is_name("ConfigMap", "a" * 63) and not is_name("ConfigMap", "a" * 64)
    assert not is_name("RayJob", "Rayml") and not is_name("RayJob", "rayml-")


def test_images_are_pinned_and_pods_hold_little_power() -> None:
    specs = [spec for name in MANIFESTS for document in documents(name) for spec in pod_specs(document)]
    assert len(specs) == 5  # submitter, head and workers of the job; head and workers of the service
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert is_pinned(container["image"]), container["image"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted == {volume["name"] for volume in spec.get("volumes", [])}


@pytest.mark.parametrize("image", ["rayml", "rayml:latest", "host:5000/rayml", "rayml:3", "rayml@sha256:abc"])
def test_a_loose_image_is_caught(image: str) -> None:
    assert not is_pinned(image)


def test_the_dockerfile_makes_those_images_from_hashed_pins() -> None:
    text = (K8S / "Dockerfile").read_text(encoding="utf-8")
    stages = dict(_stages(text))
    assert set(stages) == {"base", "train", "serve"}
    (base,) = re.findall(r"^FROM (\S+) AS base$", text, re.MULTILINE)
    assert is_pinned(base)
    for target, pins in (("train", "all.txt"), ("serve", "serve.txt")):
        assert f"COPY requirements/{pins} requirements.txt" in stages[target]
        assert "--require-hashes" in stages[target]
        assert stages[target].rstrip().endswith("USER 1000")
    for source in re.findall(r"^COPY ((?:\S+ )+)\S+$", text, re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path


def _stages(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^FROM \S+ AS (\w+)$", text, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_versions_agree() -> None:
    pins = (ROOT / "requirements" / "all.txt").read_text(encoding="utf-8")
    (ray,) = re.findall(r"^ray==(\S+)", pins, re.MULTILINE)
    job = one("rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"]["rayVersion"]
    service = one("rayservice.yaml", "RayService")["spec"]["rayClusterConfig"]["rayVersion"]
    assert (job, service) == (ray, ray)
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    images = [c["image"] for n in MANIFESTS for d in documents(n) for s in pod_specs(d) for c in s["containers"]]
    assert {image.partition(":")[2] for image in images} == {version}


def test_the_kustomization_lists_every_manifest() -> None:
    (kustomization,) = documents("kustomization.yaml")
    assert sorted(kustomization["resources"]) == list(MANIFESTS)
    assert sorted(path.name for path in K8S.glob("*.yaml")) == sorted((*MANIFESTS, "kustomization.yaml"))
