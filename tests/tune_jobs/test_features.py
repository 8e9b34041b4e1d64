from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayml.backbones import backbone_spec
from rayml.clothing import CLASSES
from rayml.data import Manifest, Photo, scan_labelled
from rayml.engines import load_engine
from rayml.errors import DataError, RaymlError, SearchError
from rayml.features import FeatureBank
from rayml.frozen import FrozenBackbone, freeze
from rayml.images import load_pixels, stack_pixels
from rayml.progress import Progress
from rayml.sample import draw
from tests.conftest import ROOT
from tests.tune_jobs.small import QUIET, nodes
from tune_jobs.cluster import Node
from tune_jobs.feature_worker import Done, FeatureWorker
from tune_jobs.features import STARTS, PassResult, _Chunk, _Chunks, _Crew, _hand_out, _Slot, _slots, feature_pass

SPEC = backbone_spec("tiny")
LABELS = CLASSES[:3]
WAIT_S = 300.0  # For another process, on a machine under load.


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

    def __call__(
        self,
        manifest: Manifest,
        *,
        skip_unreadable: bool = False,
        progress: Any = QUIET,
        shared: bool = False,
        bank: FeatureBank | None = None,
    ) -> PassResult:
        return feature_pass(
            manifest,
            self.frozen,
            self.bank() if bank is None else bank,
            nodes(self.address),
            spec=SPEC,
            skip_unreadable=skip_unreadable,
            progress=progress,
            shared=shared,
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


class Waits(Progress):
    """Fails where the pass waits."""

    def say(self, message: str) -> None:
        assert "waiting" not in message


def test_a_machine_takes_part_where_others_use_some_of_it(
    run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr("tune_jobs.features.SAY_WAITING_AFTER_S", 45.0)
    taken = placement_group([{"CPU": 1}])
    try:
        ray.get(taken.ready(), timeout=WAIT_S)
        assert run(scan_labelled(photos, LABELS), progress=Waits(quiet=True)).computed == 12
    finally:
        remove_placement_group(taken)


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
    bad = [f"{LABELS[1]}/text.jpg", f"{LABELS[2]}/cut.jpg", f"{LABELS[2]}/again.jpg"]
    with pytest.raises(DataError) as caught:
        run(manifest)
    assert caught.value.message.startswith("3 of 15 pictures cannot be read: ")
    assert all(f"{path} (" in caught.value.message for path in bad)
    assert "--skip-unreadable" in caught.value.hint
    assert len(run.bank()) == 12

    result = run(manifest, skip_unreadable=True)
    assert sorted(result.unreadable) == sorted(bad)
    assert (result.computed, result.cached) == (0, 12)


@pytest.mark.parametrize("skip_unreadable", [False, True])
def test_a_machine_that_does_not_see_the_photos_ends_the_pass(run: Pass, photos: Path, skip_unreadable: bool) -> None:
    """As does a photo that went away since it was seen: neither is a bad picture that could be skipped."""
    manifest = scan_labelled(photos, LABELS)
    (photos / LABELS[0] / "2.jpg").unlink()
    with pytest.raises(
        RaymlError, match=r"2\.jpg must be on every machine as it was .* Received: No such .* on [0-9.]+$"
    ) as caught:
        run(manifest, skip_unreadable=skip_unreadable)
    assert "DATA under the same path" in caught.value.hint
    assert len(run.bank()) == 0


def test_a_picture_that_was_replaced_does_not_get_into_the_bank(run: Pass, photos: Path) -> None:
    """Neither under its own digest nor under that of the picture that was there when the data set was read."""
    manifest = scan_labelled(photos, LABELS)
    draw(LABELS[0], 99).save(photos / LABELS[0] / "2.jpg")
    with pytest.raises(DataError, match=r"2\.jpg must stay as it was when the photos were read\. Received: another"):
        run(manifest)
    assert len(run.bank()) == 0


class Held(FeatureWorker):
    """Leaves its process id beside the photos and waits there to be killed, once in a pass."""

    def compute(self, paths: Sequence[str], digests: Sequence[str]) -> Done:
        place = Path(paths[0]).parents[1].with_name("process")
        draft = place.with_name(f"process-{os.getpid()}")
        draft.write_text(str(os.getpid()))
        with suppress(FileExistsError):
            os.link(draft, place)
            time.sleep(WAIT_S)
        return super().compute(paths, digests)


def test_a_killed_worker_is_started_again(run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.features.FeatureWorker", Held)
    place = photos.with_name("process")
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + WAIT_S
        while not place.exists() and time.monotonic() < end:
            time.sleep(0.1)
        killed.append(int(place.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(scan_labelled(photos, LABELS))
    killer.join()
    assert len(killed) == 1
    assert (result.computed, len(run.bank())) == (12, 12)
    assert len(list(photos.parent.glob("process-*"))) == 2


DEADLY = "deadly"


class Mortal(FeatureWorker):
    """Dies over pictures of a certain name, as a decoder that crashes would."""

    def compute(self, paths: Sequence[str], digests: Sequence[str]) -> Done:
        if any(DEADLY in path for path in paths):
            os._exit(1)
        return super().compute(paths, digests)


def test_a_picture_that_kills_its_worker_is_named(run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.features.FeatureWorker", Mortal)
    monkeypatch.setattr("tune_jobs.features.MIN_CHUNK", 4)
    (photos / LABELS[1] / "2.jpg").rename(photos / LABELS[1] / f"{DEADLY}.jpg")
    manifest = scan_labelled(photos, LABELS)
    result = run(manifest, skip_unreadable=True)
    assert result.unreadable == {f"{LABELS[1]}/{DEADLY}.jpg": "the process that reads it dies"}
    assert (result.computed, len(run.bank())) == (11, 11)


class Stillborn(FeatureWorker):
    """Dies before it is ready, as where a library is missing or memory is too small for the backbone."""

    def load(self, *needed: Any) -> str:
        os._exit(1)


def test_workers_that_never_get_ready_end_the_pass(run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.features.FeatureWorker", Stillborn)
    given_up = "the last one is given up, whose workers died 3 times before they were ready"
    with pytest.raises(SearchError, match=f"no machine is left for the feature pass: {given_up}") as caught:
        run(scan_labelled(photos, LABELS))
    assert "\n" not in caught.value.message
    assert "memory" in caught.value.hint


@pytest.mark.parametrize("alive", [False, True])
def test_a_machine_that_lives_is_not_said_to_be_gone(alive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeID": "a", "Alive": alive}])
    monkeypatch.setattr("ray.kill", lambda worker: None)
    crew: Any = _Crew.__new__(_Crew)
    slot, other = (_Slot(Node("a", 1, 0), 1, 0.0, starts=STARTS - 1, running={"load": None}) for _ in range(2))
    crew._slots, crew._deaths_in_a_row, crew._progress = [slot, other], 0, SimpleNamespace(say=said.append)
    crew._collect = lambda slot, ref: RuntimeError("it died")
    crew._bury(slot, _Chunks([], 1), RuntimeError("it died"))
    words = "is given up, whose workers died 3 times before they were ready" if alive else "is gone"
    assert said == [f"features: a machine {words}; the others go on (it died)"]
    with pytest.raises(SearchError, match=f"the last one {words}") as caught:
        crew._bury(other, _Chunks([], 1), RuntimeError("it died"))
    assert ("memory" in caught.value.hint) == alive


class Doomed(FeatureWorker):
    """Dies over everything, as where other programs take the memory."""

    def compute(self, paths: Sequence[str], digests: Sequence[str]) -> Done:
        os._exit(1)


def test_workers_that_always_die_end_the_pass(run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.features.FeatureWorker", Doomed)
    monkeypatch.setattr("tune_jobs.features.DEATHS_IN_A_ROW", 3)
    with pytest.raises(SearchError, match="died 3 times in a row") as caught:
        run(scan_labelled(photos, LABELS))
    assert "memory" in caught.value.hint


class Crooked(FeatureWorker):
    """A machine whose engine computes something else."""

    def load(self, graph: bytes, pictures: Any, expected: Any, *rest: str) -> str:
        return super().load(graph, pictures, expected * 1.01, *rest)


def test_a_machine_that_computes_something_else_is_found(
    run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_jobs.features.FeatureWorker", Crooked)
    with pytest.raises(SearchError, match="must come out the same on every machine"):
        run(scan_labelled(photos, LABELS))
    assert len(run.bank()) == 0


def test_workers_write_to_shared_storage_themselves(run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.features.store", None)  # The driver's.
    manifest, bank = scan_labelled(photos, LABELS), run.bank()
    result = run(manifest, shared=True, bank=bank)
    assert (result.computed, len(run.bank())) == (12, 12)
    # The driver's own bank knows without having looked again.
    monkeypatch.setattr(bank.store, "sizes", None)
    assert bank.has([photo.sha256 for photo in manifest.photos]).all()


class Elsewhere(FeatureWorker):
    """A machine on which the shared folder is not mounted."""

    def load(self, *needed: Any) -> str:
        assert self._bank is not None
        self._bank = FeatureBank(self._bank.folder.with_name("elsewhere"), self._bank.features)
        return super().load(*needed)


def test_a_machine_that_sees_another_storage_is_found(run: Pass, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.features.FeatureWorker", Elsewhere)
    with pytest.raises(
        RaymlError, match=r"on [0-9.:a-f]+, .*elsewhere must be the same place on every machine"
    ) as caught:
        run(scan_labelled(photos, LABELS), shared=True)
    assert "mounted" in caught.value.hint
    assert len(run.bank()) == 0


def pictures(count: int) -> list[Photo]:
    return [Photo(f"{number}.jpg", "x", "train", f"{number:064x}") for number in range(count)]


def test_chunks_come_back_halved_until_one_picture_is_left() -> None:
    photos = pictures(5)
    chunks = _Chunks(photos, 4)
    first, second = chunks.take(idle=True), chunks.take(idle=False)
    assert first is not None and second is not None and chunks.take(idle=True) is None
    assert [len(first.photos), len(second.photos)] == [4, 1]
    chunks.give_back(second)
    assert chunks.killed(first) is None
    assert [chunks.take(idle=False), chunks.take(idle=False)] == [second, first]
    named = chunks.killed(first)
    while chunk := chunks.take(idle=True):
        if photos[2] in chunk.photos:
            assert named is None
            named = chunks.killed(chunk)
    assert named == photos[2]


def test_a_single_picture_is_named_only_when_it_was_alone() -> None:
    """It may have been the other chunk that the worker had in hand, whose answer came before the worker died."""
    (photo,) = pictures(1)
    chunks = _Chunks([photo], 4)
    chunk = chunks.take(idle=False)
    for _ in range(2):
        assert chunk is not None and not chunk.alone
        assert chunks.killed(chunk) is None
        chunk = chunks.take(idle=True)
    assert chunk is not None and chunk.alone
    chunks.give_back(chunk)
    assert chunks.take(idle=False) is None
    assert chunks.take(idle=True) is chunk
    assert chunks.killed(chunk) == photo


def test_a_suspect_is_computed_by_a_worker_with_nothing_else_in_hand() -> None:
    busy, free = (_Slot(Node(name, 1, 0), 1, 0.0, ready=True) for name in "ab")
    chunks = _Chunks(pictures(6), 1)

    def hand_out() -> list[list[str]]:
        _hand_out([busy, free], chunks, lambda slot, chunk: object())
        return [[chunk.photos[0].path for chunk in slot.running.values() if chunk] for slot in (busy, free)]

    assert hand_out() == [["0.jpg", "2.jpg"], ["1.jpg", "3.jpg"]]
    suspect = free.running.popitem()[1]
    assert suspect is not None
    suspect.deaths = 1
    assert chunks.killed(suspect) is None and suspect.alone
    free.running.clear()  # The fresh ones come first.
    assert hand_out() == [["0.jpg", "2.jpg"], ["4.jpg", "5.jpg"]]
    busy.running.popitem()  # One in hand is one too many.
    assert hand_out() == [["0.jpg"], ["4.jpg", "5.jpg"]]
    busy.running.clear()
    assert hand_out() == [["3.jpg"], ["4.jpg", "5.jpg"]]
    chunks.give_back(_Chunk(pictures(1)))
    assert hand_out() == [["3.jpg"], ["4.jpg", "5.jpg"]]  # It gets nothing else until it is done.
    free.running.popitem()
    assert hand_out() == [["3.jpg"], ["4.jpg", "0.jpg"]]


def test_int8_is_computed_on_processors(
    frozen: FrozenBackbone, photos: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = backbone_spec("tiny", precision="int8")
    int8 = freeze(spec, tmp_path / "cache")
    manifest, bank = scan_labelled(photos, LABELS), FeatureBank.of(int8, tmp_path / "cache")
    given: list[tuple[int, float]] = []

    def slots(node: Node, share: float) -> list[_Slot]:
        given.append((node.gpus, share))
        return _slots(replace(node, gpus=0), share)

    monkeypatch.setattr("tune_jobs.features._slots", slots)
    here = [replace(node, gpus=1) for node in nodes(ray_cluster)]
    result = feature_pass(manifest, int8, bank, here, spec=spec, skip_unreadable=False, progress=QUIET)
    assert (result.computed, result.engine, given) == (12, "openvino", [(1, 0.0)])
    pixels = np.stack([load_pixels((photos / photo.path).read_bytes(), 64) for photo in manifest.photos])
    rows = bank.rows([photo.sha256 for photo in manifest.photos])
    np.testing.assert_allclose(rows, load_engine(int8.graph(), threads=1)(pixels), rtol=0, atol=1e-5)
    # Bit by bit it need not be the same on every machine, but nearly.
    worker = FeatureWorker(64, 1, None, None)
    pictures, expected = int8.golden()
    known = stack_pixels(pictures.values(), 64)
    assert worker.load(int8.graph(), known, frozen.golden()[1], "", "int8") == "openvino"
    words = r"to 0\.25 of what tells the pictures apart\. .* by openvino in int8 on .*"
    with pytest.raises(SearchError, match=words) as caught:
        worker.load(int8.graph(), known, expected[::-1].copy(), "", "int8")
    assert "VNNI" in caught.value.hint


class Sums:
    """An engine whose vector of a picture is the sum of its pixels; notes what it is given."""

    name = "sums"

    def __init__(self) -> None:
        self.given: list[int] = []

    def __call__(self, pixels: Any) -> Any:
        self.given.append(len(pixels))
        return pixels.reshape(len(pixels), -1).sum(axis=1, keepdims=True).astype(np.float32)


def test_a_graphics_processor_is_given_large_batches_that_all_threads_decode(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(3)

    def decode(data: bytes, side: int) -> Any:
        together.wait(WAIT_S)  # Passes only where three pictures are decoded at once.
        return load_pixels(data, side)

    monkeypatch.setattr("tune_jobs.feature_worker.load_pixels", decode)
    manifest = scan_labelled(photos, LABELS)
    paths, digests = [str(photos / photo.path) for photo in manifest.photos], [p.sha256 for p in manifest.photos]
    expected = Sums()(np.stack([load_pixels(Path(path).read_bytes(), 64) for path in paths]))
    # Fewer pictures than a batch; batches; and no more pictures in memory than there is room for.
    for batch, held, given in ((128, 12, [12]), (5, 12, [5, 5, 2]), (5, 9, [5, 4, 3])):
        monkeypatch.setattr("tune_jobs.feature_worker.GPU_BATCH", batch)
        monkeypatch.setattr("tune_jobs.feature_worker.PIXEL_BYTES", held * 64 * 64 * 3)
        worker, engine = FeatureWorker(64, 3, SPEC, None), Sums()
        worker._engine = engine
        np.testing.assert_array_equal(worker.compute(paths, digests).vectors, expected)
        assert engine.given == given


def test_what_cannot_be_decoded_on_a_graphics_processor(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_jobs.feature_worker.node_name", lambda: "10.0.0.7")
    (photos / LABELS[0] / "1.jpg").write_bytes(b"no picture")
    manifest = scan_labelled(photos, LABELS)
    paths, digests = [str(photos / photo.path) for photo in manifest.photos], [p.sha256 for p in manifest.photos]
    worker = FeatureWorker(64, 2, SPEC, None)
    worker._engine = Sums()
    done = worker.compute(paths, digests)
    assert list(done.unreadable) == [1] and done.vectors is not None and len(done.vectors) == 12
    Path(paths[7]).unlink()
    with pytest.raises(RaymlError, match=r"on 10\.0\.0\.7$"):
        worker.compute(paths, digests)


def test_slots_share_a_nodes_processors_out() -> None:
    def shape(node: Node, share: float) -> list[tuple[int, float]]:
        return [(slot.threads, slot.gpus) for slot in _slots(node, share)]

    assert shape(Node("a", 8, 0), 1.0) == [(8, 0.0)]
    assert shape(Node("a", 8, 2), 0.0) == [(8, 0.0)]
    assert shape(Node("a", 8, 2), 1.0) == [(4, 1.0)] * 2
    assert shape(Node("a", 8, 2), 0.5) == [(2, 0.5)] * 4
    assert shape(Node("a", 8, 1), 0.1) == [(1, 0.1)] * 8
    assert shape(Node("a", 8, 2), 0.6) == [(4, 0.6)] * 2  # A worker is not spread over two graphics processors.
    assert shape(Node("a", 1, 4), 1.0) == [(1, 1.0)]


@pytest.mark.slow
def test_many_nodes(frozen: FrozenBackbone, tmp_path: Path) -> None:
    """Four nodes, one with a graphics processor that it only says it has; one node and one worker are lost."""
    command = [sys.executable, "-m", "tests.tune_jobs.many_nodes", str(frozen.folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["computed"] == said["kept"] == said["photos"]
    assert said["nodes_at_work"] == 4
    assert said["engine"] == "openvino, tensorflow"
    assert said["lost"] == ["node", "worker"]
    assert said["difference"] <= 1e-5


def test_no_worker_is_left(run: Pass, photos: Path) -> None:
    import ray

    run(scan_labelled(photos, LABELS))
    for _ in range(100):
        if ray.available_resources().get("CPU") == 2:
            return
        time.sleep(0.1)
    pytest.fail(f"processors are still taken: {ray.available_resources()}")
