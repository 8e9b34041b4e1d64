"""What all tests share: quiet and private surroundings, the optional files outside the repository, one Ray cluster."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).resolve().parent.parent
# Ray's socket paths must stay under 104 characters (macOS), which the system's own temporary folder can exceed.
_RAY_PARENT = "/tmp"
_MAX_ID = 40  # characters or bytes
_SURROUNDINGS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported: no usage reports, few logs, nothing written to the home folder."""
    private = [tempfile.mkdtemp(prefix="rayml-", dir=_RAY_PARENT), tempfile.mkdtemp(prefix="rayml-tests-")]
    config.stash[_SURROUNDINGS] = private
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "ORT_DISABLE_TELEMETRY": "1",
        "RAY_TMPDIR": private[0],
        # Ray would write a token to the home folder, readable for everybody.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray's announced behaviour; without it each start warns.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_HOME": f"{private[1]}/keras",
        "XDG_CACHE_HOME": f"{private[1]}/cache",
        # `rayml deploy` finds the servers of these tests alone.
        "XDG_RUNTIME_DIR": f"{private[1]}/runtime",
        # A worker or a subprocess finds the packages as these tests do, installed or not.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }


def pytest_make_parametrize_id(val: object) -> str | None:
    """Long contents do not become a test's name, which is printed when it fails: some have millions of bytes."""
    if not isinstance(val, str | bytes) or len(val) <= _MAX_ID:
        return None
    return f"{val[:_MAX_ID]!a}... of {len(val)}"


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in a hook of its own.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares the server or a file's fixtures stays together, for `pytest -n 2 --dist loadgroup`.

    In parallel the long groups come first: the server's on one worker, the files that need a cluster on whichever is
    free. One after the other they come last: cluster and server stay up from their first test on, taking from the rest.
    """
    ranks = []
    for item in items:
        names = getattr(item, "fixturenames", ())
        ranks.append(2 if "live" in names else 1 if "ray_cluster" in names else 0)
        item.add_marker(pytest.mark.xdist_group("live" if "live" in names else str(item.path)))
    sign = -1 if "PYTEST_XDIST_WORKER" in os.environ else 1
    order = sorted(range(len(items)), key=lambda at: sign * ranks[at])
    items[:] = [items[at] for at in order]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    for folder in config.stash.get(_SURROUNDINGS, []):
        shutil.rmtree(folder, ignore_errors=True)


def shared_path(variable: str, what: str) -> Path:
    """The path that an environment variable names; without it the test is skipped, or fails where all must run.

    Arguments:
        variable: its name.
        what: what it should point to.
    """
    value = os.environ.get(variable)
    if value:
        path = Path(value)
        if not path.exists():
            pytest.fail(f"{variable} must name {what}. Received: {value}, which is not there", pytrace=False)
        return path
    reason = f"{variable} is not set; it names {what}"
    if os.environ.get("RAYML_REQUIRE_SHARED") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def clothing_data() -> Path:
    """The folder of clothing-dataset-small, with train/ and validation/."""
    return shared_path("RAYML_CLOTHING_DATA", "the folder of clothing-dataset-small")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """MobileNetV2's ImageNet weights without top."""
    return shared_path("RAYML_MOBILENET_WEIGHTS", "MobileNetV2's .weights.h5 without top")


@pytest.fixture(scope="session")
def kuberay_crds() -> Path:
    """The folder of KubeRay's custom resource definitions."""
    return shared_path("RAYML_KUBERAY_CRDS", "the folder of KubeRay's custom resource definitions")


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[str]:
    """The address of one small local cluster for the whole session, this process connected to it.

    It starts with the first test that asks: a start costs 7 to 20 seconds. Its workers reach the bucket `s3`.
    """
    import ray

    from tune_jobs.cluster import start_local

    # The store holds features of small pictures; by default it takes a third of the memory.
    start_local(num_cpus=2, num_gpus=0, object_store_memory=256 * 2**20)
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a prefix in a bucket of an S3 server on this machine, which this process's surroundings name.

    Workers of a Ray that starts afterwards inherit them.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    surroundings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in surroundings.items():
            patch.setenv(name, value)
        requests.put(f"http://{host}:{port}/bucket", timeout=60).raise_for_status()
        yield "s3://bucket/some/prefix"
    server.stop()
