from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rayml.backbones import backbone_spec
from rayml.data import Manifest, scan_labelled
from rayml.engines import load_engine
from rayml.errors import DataError
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone, freeze
from rayml.images import load_pixels
from rayml.sample import CLASSES, draw
from tests.tune_jobs.small import QUIET, nodes
from tune_jobs.features import PassResult, feature_pass

SPEC = backbone_spec("tiny")
LABELS = CLASSES[:3]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> FrozenBackbone:
    return freeze(SPEC, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of each of three classes."""
    for label in LABELS:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for seed in range(4):
            draw(label, seed).save(tmp_path / "photos" / label / f"{seed}.jpg")
    return tmp_path / "photos"


class Pass:
    """Runs passes on the cluster into one bank."""

    def __init__(self, frozen: FrozenBackbone, cache: Path, address: str) -> None:
        self.frozen, self.cache, self.address = frozen, cache, address

    def bank(self) -> FeatureBank:
        return FeatureBank.of(self.frozen, self.cache)

    def __call__(self, manifest: Manifest, *, skip_unreadable: bool = False, progress: Any = QUIET) -> PassResult:
        return feature_pass(
            manifest,
            self.frozen,
            self.bank(),
            nodes(self.address),
            spec=SPEC,
            skip_unreadable=skip_unreadable,
            progress=progress,
        )


@pytest.fixture
def run(frozen: FrozenBackbone, tmp_path: Path, ray_cluster: str) -> Pass:
    return Pass(frozen, tmp_path / "cache", ray_cluster)


def test_only_what_is_missing_is_computed(run: Pass, photos: Path) -> None:
    manifest = scan_labelled(photos, LABELS)
    first = run(manifest)
    assert (first.computed, first.cached, first.unreadable, first.engine) == (12, 0, {}, "openvino")
    pixels = np.stack([load_pixels((photos / photo.path).read_bytes(), 64) for photo in manifest.photos])
    rows = run.bank().rows([photo.sha256 for photo in manifest.photos])
    np.testing.assert_array_equal(rows, load_engine(run.frozen.graph(), threads=1)(pixels))

    second = run(manifest)
    assert (second.computed, second.cached, second.engine) == (0, 12, "")

    # The same picture under two more names costs nothing, a changed one itself alone.
    shutil.copy(photos / LABELS[0] / "0.jpg", photos / LABELS[0] / "copy.jpg")
    shutil.copy(photos / LABELS[0] / "0.jpg", photos / LABELS[1] / "copy.jpg")
    draw(LABELS[0], 99).save(photos / LABELS[0] / "1.jpg")
    third = run(scan_labelled(photos, LABELS))
    assert (third.computed, third.cached) == (1, 11)


def test_the_same_new_picture_twice_is_computed_once(run: Pass, photos: Path) -> None:
    for number in range(5):
        shutil.copy(photos / LABELS[2] / "3.jpg", photos / LABELS[2] / f"copy{number}.jpg")
    result = run(scan_labelled(photos, LABELS))
    assert (result.computed, result.cached) == (12, 0)


def test_unreadable_pictures_are_named_and_the_others_kept(run: Pass, photos: Path) -> None:
    (photos / LABELS[1] / "text.jpg").write_bytes(b"no picture")
    (photos / LABELS[2] / "cut.jpg").write_bytes((photos / LABELS[2] / "0.jpg").read_bytes()[:700])
    shutil.copy(photos / LABELS[1] / "text.jpg", photos / LABELS[2] / "again.jpg")
    manifest = scan_labelled(photos, LABELS)
    gone = photos / LABELS[0] / "2.jpg"
    gone.unlink()  # After it was seen.
    with pytest.raises(DataError) as caught:
        run(manifest)
    assert caught.value.message.startswith("4 of 15 pictures cannot be read: ")
    for path in (f"{LABELS[0]}/2.jpg", f"{LABELS[1]}/text.jpg", f"{LABELS[2]}/cut.jpg", f"{LABELS[2]}/again.jpg"):
        assert f"{path} (" in caught.value.message
    assert "--skip-unreadable" in caught.value.hint
    assert len(run.bank()) == 11

    result = run(manifest, skip_unreadable=True)
    assert sorted(result.unreadable) == sorted(
        [f"{LABELS[0]}/2.jpg", f"{LABELS[1]}/text.jpg", f"{LABELS[2]}/cut.jpg", f"{LABELS[2]}/again.jpg"]
    )
    assert (result.computed, result.cached) == (0, 11)


def test_a_killed_worker_is_started_again(run: Pass, photos: Path) -> None:
    """A picture that is a pipe holds the worker in the middle of a chunk until it is killed."""
    manifest = scan_labelled(photos, LABELS)
    held = photos / manifest.photos[5].path
    content = held.read_bytes()
    held.unlink()
    os.mkfifo(held)
    killed: list[int] = []

    def kill() -> None:
        for _ in range(600):
            workers = [p for p in psutil.process_iter() if name_of(p).startswith("ray::FeatureWorker.compute")]
            if workers:
                time.sleep(0.5)  # Into the chunk: it waits at the pipe.
                held.unlink()
                held.write_bytes(content)
                workers[0].kill()
                killed.append(workers[0].pid)
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(manifest)
    killer.join()
    assert len(killed) == 1
    assert (result.computed, len(run.bank())) == (12, 12)


def name_of(process: psutil.Process) -> str:
    """What `ps` shows; Ray writes the method that an actor runs there."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_no_worker_is_left(run: Pass, photos: Path) -> None:
    import ray

    run(scan_labelled(photos, LABELS))
    for _ in range(100):
        if ray.available_resources().get("CPU") == 2:
            return
        time.sleep(0.1)
    pytest.fail(f"processors are still taken: {ray.available_resources()}")
