"""What an overlay refers to is there: images, settings, claims, secrets, volumes, labels, ports, variables."""

from __future__ import annotations

import importlib
import mmap
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayml.cli import rayml as cli
from rayml.registry import REPLICAS
from serving.app import AppArguments
from serving.container import PORT
from tests import markdown
from tests.k8s.rendered import (
    K8S,
    OVERLAYS,
    ROOT,
    Pod,
    cluster_spec,
    documents,
    one,
    pods,
    render,
    selects,
    serve_config,
)
from tests.k8s.schemas import faults
from tune_jobs.config import SearchSettings, make_settings

# Ray's own ports that pods do not declare (KubeRay's constant.go), and the gateway's, which Istio opens.
UNDECLARED_PORTS = {"search": {8265, 8000, 8080}, "serve": {8265, 8000, 8080}, "gateway": {80}}
# A secret lies in no file: the documentation makes it.
SECRETS_BY_HAND = {"rayml-redis": {"password"}, "rayml-api-keys": {"keys", "prometheus"}}
COMPONENT = "app.kubernetes.io/component"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
KUBE_ROOT = "kube-root-ca.crt"  # Kubernetes puts it into every namespace.


def is_pinned(image: str) -> bool:
    """Whether an image's name ends in a digest, or in a tag that names a version."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return True
    _, colon, tag = image.rsplit("/", 1)[-1].partition(":")
    return bool(colon) and re.search(r"\d+\.\d+\.\d+", tag) is not None


@pytest.mark.parametrize("image", ["rayml", "rayml:latest", "host:5000/rayml", "rayml:3", "rayml@sha256:abc"])
def test_a_loose_image_is_caught(image: str) -> None:
    assert not is_pinned(image)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_those_that_the_dockerfile_makes(overlay: str) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (K8S / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    for pod in pods(overlay):
        for container in pod.spec["containers"]:
            image = container["image"]
            assert is_pinned(image), image
            name, _, tag = image.partition(":")
            if name.startswith("rayml-"):
                assert name.removeprefix("rayml-") in targets and tag == version, image


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_is_the_one_of_the_pins(overlay: str) -> None:
    for pins in ("all.txt", "serve.txt"):
        (ray,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements" / pins).read_text(encoding="utf-8"), re.MULTILINE)
        for kind in ("RayJob", "RayService"):
            assert cluster_spec(one(overlay, kind))["rayVersion"] == ray


def missing_volumes(pod: Pod, there: set[tuple[str, str]]) -> list[str]:
    """What is wrong with a pod's volumes and what they refer to.

    Arguments:
        there: (kind, name) of everything in the overlay.
    """
    found = []
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    mounted: set[str] = set()
    for container in pod.spec["containers"]:
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        if len(set(paths)) != len(paths):
            found.append(f"{container['name']} mounts two volumes at one path")
        mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
    claimed = {name for name in mounted if name in {"data"} and pod.owner.startswith("StatefulSet/")}
    found += [f"no volume {name}" for name in mounted - volumes.keys() - claimed]
    found += [f"volume {name} is never mounted" for name in volumes.keys() - mounted - {"kube-api"}]
    for name, volume in volumes.items():
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            if ("PersistentVolumeClaim", claim) not in there:
                found.append(f"no claim {claim}")
        elif "configMap" in volume:
            if ("ConfigMap", volume["configMap"]["name"]) not in there:
                found.append(f"no settings {volume['configMap']['name']}")
        elif "projected" in volume:
            named = [source["configMap"]["name"] for source in volume["projected"]["sources"] if "configMap" in source]
            found += [f"no settings {other}" for other in named if other != KUBE_ROOT]
        elif "secret" in volume:
            if volume["secret"]["secretName"] not in SECRETS_BY_HAND:
                found.append(f"no secret {volume['secret']['secretName']}")
        elif "emptyDir" not in volume:
            found.append(f"volume {name} is of a kind that these manifests do not use")
        elif "sizeLimit" not in volume["emptyDir"]:
            found.append(f"volume {name} has no limit")
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_volumes_lead_somewhere(overlay: str) -> None:
    there = {(d["kind"], d["metadata"]["name"]) for d in documents(overlay)}
    assert {pod.owner: found for pod in pods(overlay) if (found := missing_volumes(pod, there))} == {}


def test_a_volume_that_leads_nowhere_is_caught() -> None:
    pod = next(pod for pod in pods("gpu") if pod.owner.endswith(" head"))
    there = {("PersistentVolumeClaim", "rayml-shared"), ("ConfigMap", "rayml-tune")}
    assert missing_volumes(pod, there) == []
    assert missing_volumes(pod, set()) == ["no claim rayml-shared", "no settings rayml-tune"]
    pod.spec["containers"][0]["volumeMounts"].append({"name": "other", "mountPath": "/tmp"})
    assert missing_volumes(pod, there) == ["ray-head mounts two volumes at one path", "no volume other"]


def secrets(value: Any) -> set[tuple[str, str]]:
    """(name, key) of every secret that is referred to."""
    if isinstance(value, dict):
        named = [value[kind] for kind in ("secretKeyRef", "credentials") if kind in value]
        here = {(part["name"], part["key"]) for part in named}
        if "secretName" in value:
            here |= {(value["secretName"], item["key"]) for item in value["items"]}
        return here.union(*map(secrets, value.values())) if value else here
    return set().union(*map(secrets, value)) if isinstance(value, list) else set()


def test_secrets_are_referred_to_and_made_by_hand() -> None:
    documentation = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    for overlay in OVERLAYS:
        assert "Secret" not in {document["kind"] for document in documents(overlay)}
    named = secrets(documents("production"))
    assert named == {(name, key) for name, keys in SECRETS_BY_HAND.items() for key in keys}
    for name, key in named:
        made = re.search(rf"create secret generic {name} (.*)", documentation)
        assert made and f"--from-literal={key}=" in made[1]


def test_a_bucket_by_a_secret(tmp_path: Path, kuberay_crds: Path) -> None:
    """The component beside any overlay: every pod that computes has the secret's variables, and none has them open."""
    for overlay in OVERLAYS:
        bases = [os.path.relpath(K8S / part, tmp_path.resolve()) for part in (f"overlays/{overlay}", "components/s3")]
        own = {"kind": "Kustomization", "resources": bases[:1], "components": bases[1:]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own))
        (job,) = (document for document in render(tmp_path) if document["kind"] == "RayJob")
        assert faults(job, kuberay_crds) == []
        cluster = job["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": "rayml-s3"}}]
            assert not any(variable["name"].startswith("AWS_") for variable in container["env"])
    documentation = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    made = re.search(r"create secret generic rayml-s3 (.*?)`", documentation, re.DOTALL)
    assert made and set(re.findall(r"--from-literal=(\w+)=", made[1])) == set(
        re.findall(r"AWS_\w+", (K8S / "components" / "s3" / "kustomization.yaml").read_text())
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_select_something(overlay: str) -> None:
    labels = [pod.labels for pod in pods(overlay)]
    # The gateway's pods are made by the gateway's controller, whoever asks for predictions by somebody else.
    outside = [{"gateway.networking.k8s.io/gateway-name": "rayml-serve-gateway"}, {"rayml/client": "true"}]
    for document in documents(overlay):
        spec = document.get("spec", {})
        selectors = []
        if document["kind"] == "NetworkPolicy":
            selectors = [spec["podSelector"]]
            for rule in spec.get("ingress", []) + spec.get("egress", []):
                peers = rule.get("from", []) + rule.get("to", [])
                selectors += [p["podSelector"] for p in peers if "podSelector" in p and "namespaceSelector" not in p]
        elif document["kind"] in ("PodDisruptionBudget", "StatefulSet", "PodMonitor"):
            selectors = [spec["selector"]]
        elif document["kind"] == "Service":
            selectors = [{"matchLabels": spec["selector"]}]
        for selector in selectors:
            assert any(selects(selector, one_pod) for one_pod in labels + outside), (document["metadata"], selector)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_one_of_ours(overlay: str) -> None:
    for pod in pods(overlay):
        assert pod.labels["app.kubernetes.io/part-of"] == "rayml", pod.owner
        assert pod.labels["app.kubernetes.io/component"] in {
            "search",
            "promote",
            "serve",
            "files",
            "redis",
            "photos",
        }, pod.owner
    for document in documents(overlay):
        assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "rayml", document["metadata"]
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "rayml", document["metadata"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_that_are_let_in_are_open(overlay: str) -> None:
    everyone = pods(overlay)
    for document in documents(overlay):
        if document["kind"] == "Service":
            reached = [pod for pod in everyone if selects({"matchLabels": document["spec"]["selector"]}, pod.labels)]
            names = {port["name"] for pod in reached for c in pod.spec["containers"] for port in c.get("ports", [])}
            assert {port["targetPort"] for port in document["spec"]["ports"]} <= names
        if document["kind"] != "NetworkPolicy":
            continue
        reached = [pod for pod in everyone if selects(document["spec"]["podSelector"], pod.labels)]
        open_ports = {p["containerPort"] for pod in reached for c in pod.spec["containers"] for p in c.get("ports", [])}
        for pod in reached:
            open_ports |= UNDECLARED_PORTS.get(pod.labels["app.kubernetes.io/component"], set())
        open_ports |= UNDECLARED_PORTS.get(document["metadata"]["name"], set())
        for rule in document["spec"].get("ingress", []):
            assert {port["port"] for port in rule.get("ports", [])} <= open_ports, document["metadata"]


def test_the_services_port_is_the_same_everywhere() -> None:
    for overlay in OVERLAYS:
        port = serve_config(overlay)["http_options"]["port"]
        assert port == PORT
        for pod in pods(overlay):
            if pod.owner.startswith("RayService/"):
                ports = {p["name"]: p["containerPort"] for p in pod.spec["containers"][0]["ports"]}
                assert ports["serve"] == port == 8000


def variables(overlay: str) -> set[str]:
    """The environment variables that the manifests set."""
    return {v["name"] for pod in pods(overlay) for c in pod.spec["containers"] for v in c.get("env", [])}


def known_to_ray(name: str) -> bool:
    """Whether Ray reads a variable: Serve's stand in its constants, the core's (RAY_x) in its compiled part."""
    import ray

    constants = Path(ray.__file__).with_name("serve") / "_private" / "constants.py"
    if f'"{name}"' in constants.read_text(encoding="utf-8"):
        return True
    compiled = Path(ray.__file__).with_name("_raylet.so")
    with compiled.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return whole.find(name.removeprefix("RAY_").encode() + b"\0") >= 0


def test_ray_reads_every_variable() -> None:
    named = variables("production") | variables("local")
    # The last three are of the promoting Job's command; glibc reads MALLOC_ARENA_MAX.
    others = {"HOME", "MALLOC_ARENA_MAX", "REDIS_PASSWORD", "RUN", "MODELS", "NAME"}
    assert {name for name in named - others if not known_to_ray(name)} == set()
    assert not known_to_ray("RAY_SERVE_ENABLE_HAPROXI") and not known_to_ray("RAY_no_such_setting")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_job_reads_the_mounted_settings(overlay: str) -> None:
    settings = search_settings(overlay)
    assert settings.address == "auto"  # the cluster that the job runs in
    head = next(pod for pod in pods(overlay) if pod.owner == "RayJob/rayml-tune head").spec
    (shared,) = (m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == "shared")
    assert settings.storage_path is not None and settings.cache is None  # A pod's own cache lies in its HOME.
    for folder in (settings.data, settings.out, Path(settings.storage_path)):
        assert folder.is_relative_to(shared)


def search_settings(overlay: str) -> SearchSettings:
    """What the job's entry point would read; raises for an unknown or wrong setting."""
    job, config = one(overlay, "RayJob"), one(overlay, "ConfigMap", "rayml-tune")
    command, option, module, path, attempts = job["spec"]["entrypoint"].split()
    assert attempts == "--or-resume" and job["spec"]["backoffLimit"] > 0  # Another attempt goes on with the run.
    assert (command, option, module) == ("python", "-m", "tune_jobs.run") and importlib.import_module(module).main
    head = next(pod for pod in pods(overlay) if pod.owner == "RayJob/rayml-tune head").spec
    (mount,) = (m for m in head["containers"][0]["volumeMounts"] if m["name"] == "config")
    assert Path(path).parent == Path(mount["mountPath"])
    return make_settings(yaml.safe_load(config["data"][Path(path).name]), path)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grid_fits_the_workers(overlay: str) -> None:
    settings, cluster = search_settings(overlay), cluster_spec(one(overlay, "RayJob"))
    (group,) = cluster["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["minReplicas"] == group["replicas"] == 0
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert settings.trial_cpus is not None and settings.max_concurrent is not None
    trials = int(int(limits["cpu"]) // settings.trial_cpus)
    if settings.trial_gpus:
        trials = min(trials, int(int(limits["nvidia.com/gpu"]) // settings.trial_gpus))
    assert settings.max_concurrent == trials * group["maxReplicas"]
    deadline = one(overlay, "RayJob")["spec"]["activeDeadlineSeconds"]
    assert 0 < settings.scale_up_timeout_s < deadline


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_replicas_have_places(overlay: str) -> None:
    spec = cluster_spec(one(overlay, "RayService"))
    (group,) = spec["workerGroupSpecs"]
    (deployment,) = serve_config(overlay)["applications"][0]["deployments"]
    scaling = deployment["autoscaling_config"]
    assert deployment["max_replicas_per_node"] == 1
    # KubeRay's readiness probe asks a worker's own proxy, which Serve starts beside a replica: a worker without one is
    # never ready, and the budget below counts it as lost.
    assert 2 <= scaling["min_replicas"] == group["minReplicas"] <= group["maxReplicas"] <= scaling["max_replicas"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0" and deployment["ray_actor_options"]["num_cpus"]
    budget = one(overlay, "PodDisruptionBudget")["spec"]
    assert set(budget) == {"minAvailable", "selector"} and isinstance(budget["minAvailable"], int)
    assert 1 <= budget["minAvailable"] < group["minReplicas"]  # a node can still be drained


def test_production_serves_as_the_base_does() -> None:
    """Its text replaces the base's: nothing but the number of replicas and the keys is different."""
    base, production = serve_config("gpu"), serve_config("production")
    (application,) = production["applications"]
    keys = application["args"].pop("access")
    volume = {"name": "api-keys", "mountPath": str(Path(keys["api_key_file"]).parent), "readOnly": True}
    (worker,) = (pod for pod in pods("production") if pod.owner.endswith(" replicas"))
    assert volume in worker.spec["containers"][0]["volumeMounts"]
    for config in (base, production):
        del config["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"]
        del config["applications"][0]["deployments"][0]["autoscaling_config"]["max_replicas"]
    assert production == base


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_winner_goes_where_the_service_looks(overlay: str) -> None:
    container = one(overlay, "Job", "rayml-promote")["spec"]["template"]["spec"]["containers"][0]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    arguments = AppArguments(**serve_config(overlay)["applications"][0]["args"])
    assert (arguments.models, arguments.name) == (values["MODELS"], values["NAME"])
    assert Path(values["RUN"]) == search_settings(overlay).out
    *_, script = container["command"]
    made, command = script.strip().split(" && exec ")
    reports = Path(arguments.models or "", arguments.name or "", REPLICAS)
    assert shlex.split(made) == ["mkdir", "-p", f"$MODELS/$NAME/{REPLICAS}"]
    program, name, *rest = shlex.split(command)
    assert program == "rayml" and cli.commands[name].make_context(name, rest).params["name"] == "$NAME"
    (replica,) = (pod for pod in pods(overlay) if pod.owner.endswith(" replicas"))
    (mount,) = (m for m in replica.spec["containers"][0]["volumeMounts"] if "subPath" in m)
    assert Path(mount["mountPath"]) == Path("/shared", mount["subPath"]) == reports


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_object_store_fits_its_memory(overlay: str) -> None:
    import ray._private.ray_constants as ray_constants

    units = {"Gi": 2**30, "Mi": 2**20}
    for kind in ("RayJob", "RayService"):
        cluster = cluster_spec(one(overlay, kind))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            spec = group["template"]["spec"]
            (volume,) = (v for v in spec["volumes"] if v["name"] == "memory")
            given, limit = volume["emptyDir"]["sizeLimit"], spec["containers"][0]["resources"]["limits"]["memory"]
            share = ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
            assert int(limit[:-2]) * units[limit[-2:]] * share <= int(given[:-2]) * units[given[-2:]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_vectors_that_fit_a_workers_memory_fit_its_disk(overlay: str) -> None:
    """By the page's rule; the head's disk too, since the driver brings them together like each worker."""
    page = " ".join(PAGE.split())
    ((beside_memory, beside_disk),) = re.findall(
        r"N x D x 4 bytes plus (\d) GiB, .* N x D x 4 bytes plus (\d) GiB", page
    )
    cluster = cluster_spec(one(overlay, "RayJob"))
    (workers,) = cluster["workerGroupSpecs"]
    memory = workers["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    vectors = int(memory.removesuffix("Gi")) - int(beside_memory)
    for group in (cluster["headGroupSpec"], workers):
        (home,) = (v["value"] for v in group["template"]["spec"]["containers"][0]["env"] if v["name"] == "HOME")
        (name,) = (
            m["name"] for m in group["template"]["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == home
        )
        (volume,) = (v for v in group["template"]["spec"]["volumes"] if v["name"] == name)
        assert vectors + int(beside_disk) <= int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi"))


def test_the_sample_can_be_applied_again() -> None:
    """A finished Job stays as it is; one that was cleared away would be run anew, into a folder that is not empty."""
    assert "ttlSecondsAfterFinished" not in one("local", "Job", "rayml-sample")["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_page_names_the_settings_that_the_overlay_takes(overlay: str) -> None:
    settings = one(overlay, "ConfigMap", "rayml-tune")["data"]["tune.yaml"]
    (taken,) = (path for path in K8S.rglob("tune.yaml") if path.read_text(encoding="utf-8") == settings)
    named = rf"`{taken.relative_to(ROOT).as_posix()}` for (`\w+` and )?`{overlay}`"
    told = [
        " ".join(paragraph.split()) for paragraph in PAGE.split("\n\n") if re.search(r"[Cc]hange .*settings", paragraph)
    ]
    assert len(told) == 2
    assert all(re.search(named, paragraph) for paragraph in told)


def test_the_page_makes_the_pod_before_it_uses_it() -> None:
    """There is none at first, and one that has reached its deadline stays, ended."""
    pod = one("gpu", "Pod", "rayml-files")
    assert pod["spec"]["activeDeadlineSeconds"]
    used = [block.text for block in markdown.blocks(PAGE) if "exec rayml-files" in block.text]
    assert len(used) == 2
    for text in used:
        first, second, third = text.splitlines()[:3]
        assert first.startswith("kubectl -n rayml delete pod rayml-files --ignore-not-found")
        assert second == f"kubectl apply -k $O -l app.kubernetes.io/component={pod['metadata']['labels'][COMPONENT]}"
        assert third.startswith("kubectl -n rayml wait pod/rayml-files --for=condition=Ready ")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_that_ends_answers_until_nobody_asks(overlay: str) -> None:
    (group,) = cluster_spec(one(overlay, "RayService"))["workerGroupSpecs"]
    spec = group["template"]["spec"]
    *_, script = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    first, drain, last = script.split(" && ")
    waits = [int(re.fullmatch(r"sleep (\d+)", part)[1]) for part in (first.strip(), last.strip())]  # type: ignore[index]
    (deadline,) = re.findall(r"^ray drain-node .*--deadline-remaining-seconds (\d+)$", drain)
    assert waits[0] >= 10 and waits[1] >= int(deadline)
    # What is left is for the drain's own process to start, and for Ray to end.
    assert sum(waits) + 30 <= spec["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", ["gpu", "production"])
def test_replicas_are_spread_over_nodes_that_take_them(overlay: str) -> None:
    (group,) = cluster_spec(one(overlay, "RayService"))["workerGroupSpecs"]
    for constraint in group["template"]["spec"]["topologySpreadConstraints"]:
        assert constraint["nodeTaintsPolicy"] == "Honor" and constraint["matchLabelKeys"] == ["ray.io/cluster"]
