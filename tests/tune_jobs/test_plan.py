from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayml.backbones import backbone_spec
from rayml.data import Manifest, Photo
from rayml.errors import SearchError
from rayml.gathered import Recipe
from rayml.graph import Sizes
from rayml.pixels import PixelRecipe
from tests.tune_jobs.small import settings
from tune_jobs import plan as module
from tune_jobs.cluster import Node
from tune_jobs.plan import LARGEST_VALUES, NETWORK_PROCESS_BYTES, PROCESS_BYTES, Need, Plan, _check_disk, make_plan

GB = 10**9
ONE = Node("a", 2, 0, 8 * GB)
PHOTOS, FEATURES, CLASSES = 1000, 2048, 10
GRAPH_BYTES = 5000


def manifest() -> Manifest:
    photos = [Photo(f"train/{n % CLASSES}/{n}.jpg", str(n % CLASSES), "train", f"{n:064}") for n in range(PHOTOS)]
    return Manifest(Path("photos"), tuple(map(str, range(CLASSES))), tuple(photos), ())


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone in the cache that gives 2,048 features; no photo has any yet."""
    (tmp_path / "backbone.onnx").write_bytes(bytes(GRAPH_BYTES))
    found = SimpleNamespace(features=FEATURES, folder=tmp_path)
    monkeypatch.setattr(module, "find_frozen", lambda spec, cache, storage: found)
    empty = SimpleNamespace(has=lambda digests: np.zeros(len(digests), bool), folder=Path("key"))
    monkeypatch.setattr(module, "FeatureBank", SimpleNamespace(of=lambda frozen, cache, storage, dtype: empty))


def plan(tmp_path: Path, nodes: tuple[Node, ...] = (ONE,), **changes: Any) -> Plan:
    chosen = settings(tmp_path, **{"size_inner": (10, 100), "learning_rate": (0.01, 0.1, 1), "epochs": 10, **changes})
    spec = backbone_spec("tiny", None, chosen.image_size)
    return make_plan(chosen, manifest(), spec, nodes, tmp_path / "run", tmp_path / "cache")


def test_what_a_search_takes(frozen: None, tmp_path: Path) -> None:
    found = plan(tmp_path, (ONE, Node("b", 4, 0, 16 * GB)), scheduler="asha")
    assert (found.trials, found.epochs, found.most_epochs, found.rungs) == (6, 10, 60, (2, 6))
    assert (found.cpus, found.at_once, found.machines, found.machine_cpus) == (1, 6, 2, 6)
    assert (found.photos, found.to_compute, found.exact, found.notes) == (1000, 1000, True, ())
    small, large = (FEATURES * size + size + size * CLASSES + CLASSES for size in (10, 100))
    vectors = PHOTOS * FEATURES * 4
    needed = [need.needed for need in found.needs]
    # Weights, Adam's two moments and the best epoch's weights, float32; twice, since two checkpoints are kept, and a
    # third one lies there while it is written. The bundle has the head in its graph and in a file of its own.
    assert needed[0] == 2 * 4 * 4 * 3 * (small + large) + 6 * 4 * 4 * large + 2 * 4 * large + GRAPH_BYTES
    # In the bank, and once more brought together; in memory once for all trials of a machine.
    assert needed[1] == 2 * vectors
    assert needed[2] == vectors + 4 * (PROCESS_BYTES + 4 * (12 * large + 4 * small))
    assert found.needs[0].free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert found.needs[2].free == 16 * GB
    json.dumps(found.to_json(), allow_nan=False)
    lines = found.lines()
    assert lines[0] == "trials: 6 of at most 10 epochs, compared after epoch 2, 6; at most 60 epochs in all"
    assert lines[1] == "at once: 6, with 1 CPUs and 0 GPUs each, on 2 machines with 6 CPUs and 0 GPUs"
    assert lines[2] == "photos: 1000, features of 1000 to be computed"
    assert lines[4].startswith("disk for the cache: 16.4 MB of ")


def test_what_is_on_the_disk_already_is_not_written_again(frozen: None, tmp_path: Path) -> None:
    """Neither the vectors that an earlier run brought together nor the checkpoints of the run that goes on."""
    before = [need.needed for need in plan(tmp_path).needs]
    recipe = Recipe.of(manifest(), SimpleNamespace(folder=Path("key")), tmp_path / "cache" / "training")  # type: ignore[arg-type]
    for name, size in (("train.npy", 3000), (".train.npy-left-by-a-killed-process", 500)):
        recipe.place.mkdir(parents=True, exist_ok=True)
        (recipe.place / name).write_bytes(bytes(size))
    (tmp_path / "run" / "checkpoints" / "00000").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "00000" / "00001.npz").write_bytes(bytes(2000))
    after = [need.needed for need in plan(tmp_path).needs]
    assert after == [before[0] - 2000, before[1] - 3000, before[2]]
    (recipe.place / "train.npy").write_bytes(bytes(PHOTOS * FEATURES * 4 + 128))
    assert [need.needed for need in plan(tmp_path).needs][1] == PHOTOS * FEATURES * 4
    (bucket,) = [need for need in plan(tmp_path, storage_path="s3://bucket").needs if "each machine" in need.what]
    assert bucket.needed == 0  # Nor is anything to be copied.


def test_where_the_features_go(frozen: None, tmp_path: Path) -> None:
    """Also what is needed there, and on each machine for copies and for the vectors brought together."""
    folder = plan(tmp_path, storage_path=str(tmp_path / "shared")).lines()
    assert folder[4].startswith(f"disk for features, in {tmp_path / 'shared'}: 8.2 MB of ")
    assert folder[5].startswith("disk for the cache, on each machine: 8.2 MB of ")
    bucket = plan(tmp_path, storage_path="s3://bucket/prefix").lines()
    assert bucket[4] == "features, in s3://bucket/prefix: 8.2 MB"
    assert bucket[5].startswith("disk for the cache, on each machine: 16.4 MB of ")
    half = plan(tmp_path, storage_path="s3://bucket/prefix", feature_dtype="float16").lines()
    assert half[4] == "features, in s3://bucket/prefix: 4.1 MB"
    assert half[5].startswith("disk for the cache, on each machine: 12.3 MB of ")  # Brought together in float32.


def test_a_process_keeps_heads_of_other_kinds(frozen: None, tmp_path: Path) -> None:
    """Up to eight kinds, which the sizes, dropouts and batch sizes of the grid make; rates make none."""

    def heads(**changes: Any) -> int:
        found = plan(tmp_path, max_concurrent=1, **changes)
        return found.needs[2].needed - PHOTOS * FEATURES * 4 - PROCESS_BYTES

    def numbers(size: int) -> int:
        return FEATURES * size + size + size * CLASSES + CLASSES

    assert heads(size_inner=500) == 4 * 12 * numbers(500)
    assert heads(size_inner=500, batch_size=(16, 32), dropout=(0.0, 0.1)) == 4 * (12 + 3 * 4) * numbers(500)
    many = tuple(range(500, 512))
    assert heads(size_inner=many) == 4 * (12 * numbers(511) + 4 * sum(map(numbers, range(504, 511))))


def test_trials_that_cannot_read_the_bank_are_sent_the_vectors(frozen: None, tmp_path: Path) -> None:
    vectors = PHOTOS * FEATURES * 4
    here, sent = (plan(tmp_path, address=address).needs for address in ("local", "auto"))
    assert sent[1].needed == here[1].needed - vectors == vectors
    assert sent[2].needed == here[2].needed + 2 * vectors  # two trials


def test_a_network_in_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of 7 MB, whose largest value is 5 MB a photo; the trained top has 6 MB of values and 1 MB of weights."""
    graph = bytes(7 * 10**6)
    (tmp_path / "backbone.onnx").write_bytes(graph)
    found = SimpleNamespace(features=FEATURES, folder=tmp_path, graph=lambda: graph)
    monkeypatch.setattr(module, "find_frozen", lambda *arguments: found)
    mega = 10**6
    monkeypatch.setattr(
        module, "sizes", lambda model, top: Sizes(5 * mega, 6 * mega, mega) if top else Sizes(5 * mega, 0, 0)
    )
    chosen: dict[str, Any] = {"mode": "end-to-end", "batch_size": 64, "image_size": 100}
    head = 4 * (FEATURES * 100 + 100 + 100 * CLASSES + CLASSES)
    bundled = 2 * head + len(graph)
    frozen, pixels = plan(tmp_path, **chosen), PHOTOS * 3 * 100 * 100
    needed = [need.needed for need in frozen.needs]
    one = NETWORK_PROCESS_BYTES + len(graph) + 64 * LARGEST_VALUES * 5 * 10**6 + 12 * head
    assert needed == [(2 * 6 + 2) * 4 * head + bundled, pixels, pixels + 2 * one]
    assert (frozen.photos, frozen.to_compute, frozen.exact) == (1000, 0, True)
    assert frozen.lines()[2] == "photos: 1000"
    # A step has no more photos than there are, and pictures that are decoded already take no more room.
    place = PixelRecipe.of(manifest(), 100, tmp_path / "cache" / "pixels").place
    place.mkdir(parents=True)
    (place / "train.npy").write_bytes(bytes(1000))
    large = [
        need.needed for need in plan(tmp_path, (Node("a", 2, 0, 64 * GB),), **{**chosen, "batch_size": 10**6}).needs
    ]
    assert large[1:] == [pixels - 1000, pixels + 2 * (one + (PHOTOS - 64) * LARGEST_VALUES * 5 * 10**6)]
    shutil.rmtree(place)
    # Activations of the top are kept for the gradients, and a checkpoint holds its weights.
    tuned = plan(tmp_path, unfreeze=2, **chosen)
    needed = [need.needed for need in tuned.needs]
    one += 64 * 2 * 6 * mega + 4 * mega
    assert needed == [(2 * 6 + 2) * 4 * (head + mega) + bundled + len(graph), pixels, pixels + 2 * one]
    with pytest.raises(
        SearchError, match=r"one trial needs 2\.6 GB of memory .* at 64 photos a step. Received: at most 2"
    ):
        plan(tmp_path, (Node("a", 2, 0, 2 * GB),), **chosen)
    monkeypatch.setattr(module, "find_frozen", lambda *arguments: None)
    assert "the network's memory and disk are not in it" in plan(tmp_path, **chosen).notes[-1]


def test_nothing_is_written(frozen: None, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    plan(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_sync_takes_exactly_what_halving_leaves(frozen: None, tmp_path: Path) -> None:
    found = plan(tmp_path, scheduler="sync", reduction_factor=3.0)
    # Six to epoch 2, two to epoch 6, one (two thirds of one, at least one) to epoch 10.
    assert (found.rungs, found.most_epochs) == ((2, 6), 6 * 2 + 2 * 4 + 1 * 4)


def test_an_unknown_backbone_is_reckoned_at_its_most(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert not found.exact
    assert found.needs[1].needed == 2 * PHOTOS * 4096 * 4
    assert "(at most; the backbone is not in the cache yet)" in found.lines()[3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scheduler": "asha", "max_concurrent": 1}, "asha: one trial at a time: each is compared only with those"),
        ({"scheduler": "asha", "grace_period": 10}, "asha: no trial is stopped early"),
        ({"scheduler": "sync", "epochs": 2}, "would come after epoch 2 of 2"),
        ({"nodes": (Node("a", 12, 0, GB),)}, "memory: 6 trials at once may want 5."),
    ],
)
def test_what_a_person_should_know(frozen: None, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (note,) = plan(tmp_path, **changes).notes
    assert words in note
    assert "\n" not in note


@pytest.mark.parametrize("mode", ["features", "end-to-end"])
def test_a_head_that_no_bundle_holds(frozen: None, tmp_path: Path, mode: str) -> None:
    size = 2**30 // 4 // (FEATURES + 1 + CLASSES)  # Its numbers alone are a gibibyte.
    with pytest.raises(SearchError, match=rf"at most 1\.1 GB.* 1\.1 GB with --size-inner {size} and 10 classes"):
        plan(tmp_path, size_inner=(10, size), mode=mode)


def test_what_no_backbone_makes_good_is_refused_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SearchError, match="a bundle holds a head of at most"):
        plan(tmp_path, size_inner=2**30 // 4 // (1 + 1 + CLASSES))
    monkeypatch.setattr(module, "MAX_CLASSES", CLASSES - 1)
    with pytest.raises(SearchError, match=r"a bundle has at most 9 classes\. Received: 10"):
        plan(tmp_path)


def test_what_cannot_be_done_ends_with_the_arithmetic(
    frozen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "autoscaler_maximum", lambda: None)
    with pytest.raises(SearchError, match=r"a trial needs 64 CPUs and 0 GPUs on one machine\. Received: at most 2 "):
        plan(tmp_path, trial_cpus=64)
    monkeypatch.setattr(module, "autoscaler_maximum", lambda: (128, 0))
    with pytest.raises(SearchError, match="a trial needs 64 CPUs") as caught:
        plan(tmp_path, trial_cpus=64)
    assert caught.value.hint == "The cluster may grow to 128 CPUs and 0 GPUs; wait for it: scale_up_timeout_s."
    with pytest.raises(SearchError, match="a trial needs 64 CPUs") as caught:
        plan(tmp_path, trial_cpus=64, address="auto", scale_up_timeout_s=900)
    grown = "The cluster may grow to 128 CPUs and 0 GPUs; the search would wait up to 900 s for it."
    assert caught.value.hint == grown
    with pytest.raises(SearchError, match=r"one trial needs 9.* MB of memory .*: 900\.0 MB for TensorFlow, 8\.2 "):
        plan(tmp_path, (Node("a", 2, 0, GB // 2),))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SearchError, match=r"RUN needs 30\.0 MB and disk for the cache needs .* Received: 1 kB free"):
        plan(tmp_path)


def test_what_goes_to_one_disk_has_to_fit_there_together() -> None:
    run, cache, bucket = Need("disk for RUN", 6 * GB, 10 * GB), Need("cache", 5 * GB, 10 * GB), Need("s3", GB, None)
    _check_disk({run: 1, cache: 2, bucket: None})
    with pytest.raises(SearchError) as caught:
        _check_disk({run: 1, cache: 1, bucket: None})
    said = "disk for RUN needs 6.0 GB and cache needs 5.0 GB. Received: 10.0 GB free on that file system"
    assert caught.value.message == said
    assert "--out, --cache" in caught.value.hint
    with pytest.raises(SearchError) as caught:
        _check_disk({run: 1, Need("cache", 11 * GB, 10 * GB): 2, Need("nothing", 0, 10 * GB): 2})
    assert caught.value.message == "cache needs 11.0 GB. Received: 10.0 GB free on that file system"
