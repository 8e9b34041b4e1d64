from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayml.data import Manifest, Photo
from rayml.errors import RaymlError
from rayml.features import FeatureBank, array_header, packed
from rayml.gathered import GatheredData, Recipe, gather
from rayml.storage import alone, open_store
from rayml.training import HeadTrainer, TrainingData
from tests.rayml.test_features import D, digests, vectors

CLASSES = ("one", "two")
NAMES = digests(*(f"picture {number}" for number in range(60)))


def recipe(folder: Path, bank: FeatureBank, digest: str = "d" * 64, **changes: Any) -> Recipe:
    labels = (np.arange(60) % 2).astype(np.int32)
    parts = {
        "train": packed(NAMES[:50][::-1]),
        "train_labels": labels[:50],
        "validation": packed(NAMES[50:]),
        "validation_labels": labels[50:],
        **changes,
    }
    return Recipe(bank=bank, folder=folder, classes=CLASSES, digest=digest, **parts)


@pytest.fixture
def bank(tmp_path: Path) -> FeatureBank:
    """Sixty pictures in three shards."""
    made = FeatureBank(tmp_path / "bank", D)
    for start in range(0, 60, 20):
        made.write(NAMES[start : start + 20], vectors(60)[start : start + 20])
    return made


def test_the_recipe_of_a_data_set(bank: FeatureBank, tmp_path: Path) -> None:
    photos = tuple(
        Photo(f"{split}/{CLASSES[number % 2]}/{number}.jpg", CLASSES[number % 2], split, NAMES[number])
        for split, numbers in (("train", (3, 1, 2)), ("validation", (50, 4)))
        for number in numbers
    )
    made = Recipe.of(Manifest(tmp_path, CLASSES, photos, ()), bank, tmp_path / "training")
    assert [one.hex() for one in made.train] == [NAMES[number] for number in (3, 1, 2)]
    assert [one.hex() for one in made.validation] == [NAMES[50], NAMES[4]]
    assert (made.train_labels.tolist(), made.validation_labels.tolist()) == ([1, 1, 0], [0, 0])
    assert (made.bank, made.folder, made.classes) == (bank, tmp_path / "training", CLASSES)
    assert made.digest != Recipe.of(Manifest(tmp_path, CLASSES, photos[1:], ()), bank, tmp_path).digest


def test_a_photo_under_another_name_takes_its_row_with_it(bank: FeatureBank, tmp_path: Path) -> None:
    def found(names: tuple[str, ...]) -> TrainingData:
        photos = [Photo("train/a/1.jpg", CLASSES[0], "train", NAMES[0])]
        photos += [Photo(f"validation/a/{n}.jpg", CLASSES[0], "validation", name) for n, name in enumerate(names)]
        return gather(Recipe.of(Manifest(tmp_path, CLASSES, tuple(photos), ()), bank, tmp_path / "training"))

    before, after = found((NAMES[7], NAMES[9])), found((NAMES[9], NAMES[7]))
    assert (before.validation_features[0] != before.validation_features[1]).any()
    np.testing.assert_array_equal(after.validation_features, before.validation_features[::-1])


def test_both_splits_come_in_their_order(bank: FeatureBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayml.gathered._BLOCK_BYTES", 4 * D * 7)
    data = gather(recipe(tmp_path / "training", bank))
    np.testing.assert_array_equal(data.train_features, vectors(60)[:50][::-1])
    np.testing.assert_array_equal(data.validation_features, vectors(60)[50:])
    assert isinstance(data.train_features, np.memmap)
    assert (data.classes, data.digest) == (CLASSES, "d" * 64)


def test_it_travels_as_its_recipe(bank: FeatureBank, tmp_path: Path) -> None:
    data = gather(recipe(tmp_path / "training", bank))
    travelled = pickle.dumps(data)
    assert len(travelled) < data.train_features.nbytes + 60 * 40 + 2000
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "training").rglob("*.npy")}
    again = pickle.loads(travelled)
    assert isinstance(again, GatheredData)
    np.testing.assert_array_equal(again.train_features, data.train_features)
    assert {path: path.stat().st_mtime_ns for path in files} == files  # Not brought together a second time.


def test_another_machine_brings_it_together_from_the_bucket(s3: str, tmp_path: Path) -> None:
    shared = FeatureBank(open_store(s3, "features/gathered", tmp_path / "here"), D)
    shared.write(NAMES, vectors(60))
    there = FeatureBank(open_store(s3, "features/gathered", tmp_path / "there"), D)
    data = gather(recipe(tmp_path / "training there", there))
    np.testing.assert_array_equal(data.validation_features, vectors(60)[50:])


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_file_is_made_again(bank: FeatureBank, tmp_path: Path, damage: bytes | None) -> None:
    made = recipe(tmp_path / "training", bank)
    gather(made)
    file = tmp_path / "training" / made.digest[:32] / "train.npy"
    file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
    np.testing.assert_array_equal(gather(made).train_features, vectors(60)[:50][::-1])


def test_the_data_sets_used_last_are_kept(bank: FeatureBank, tmp_path: Path) -> None:
    for digest in "abcd":
        gather(recipe(tmp_path / "training", bank, digest * 64))
    gather(recipe(tmp_path / "training", bank, "b" * 64))
    gather(recipe(tmp_path / "training", bank, "e" * 64))
    left = {path.name[0] for path in (tmp_path / "training").iterdir() if path.is_dir()}
    assert left == {"b", "d", "e"}


def test_what_cannot_be_brought_together(bank: FeatureBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayml.gathered._WAIT_S", 0.0)
    with pytest.raises(KeyError):
        gather(recipe(tmp_path / "training", bank, validation=packed(digests(*"0123456789"))))
    (tmp_path / "file").write_text("")
    with pytest.raises(RaymlError, match="could not be made"):
        gather(recipe(tmp_path / "file", bank))


def test_vectors_larger_than_memory_are_said_so(bank: FeatureBank, tmp_path: Path) -> None:
    """Linux refuses to map more pages that can be written to than there is memory; here a limit of our own does."""
    code = (
        "import pickle, resource, sys\nfrom rayml.errors import RaymlError\nfrom rayml.gathered import gather\n"
        "recipe = pickle.load(open(sys.argv[1], 'rb'))\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))\n"
        "try:\n    gather(recipe)\nexcept RaymlError as error:\n    print(error.message, error.hint, sep='\\n')"
    )
    made = recipe(tmp_path / "training", FeatureBank(tmp_path / "bank", 2**20))
    place = tmp_path / "training" / made.digest[:32]
    place.mkdir(parents=True)
    for split, count in (("train", 50), ("validation", 10)):
        with (place / f"{split}.npy").open("wb") as file:
            file.write(array_header(count, 2**20))
            file.truncate(file.tell() + count * 4 * 2**20)
    (tmp_path / "recipe").write_bytes(pickle.dumps(made))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "recipe")], capture_output=True, text=True, check=True, timeout=120
    )
    message, hint = done.stdout.splitlines()
    assert message == f"{place / 'train.npy'} needs 0.2 GB of memory, which this machine does not give"
    assert hint == "Use a machine with more, or fewer photos."


def test_a_head_learns_the_same_from_mapped_vectors(bank: FeatureBank, tmp_path: Path) -> None:
    mapped = gather(recipe(tmp_path / "training", bank))
    copied = TrainingData(
        np.array(mapped.train_features),
        mapped.train_labels,
        np.array(mapped.validation_features),
        mapped.validation_labels,
        CLASSES,
        "copied",
    )
    curves = []
    for data in (mapped, copied):
        trainer = HeadTrainer(data, size_inner=4, batch_size=16)
        trainer.start(seed=1, learning_rate=0.01)
        curves.append([trainer.run_epoch() for _ in range(3)])
    assert curves[0] == curves[1]


def test_trials_share_the_vectors(tmp_path: Path) -> None:
    """What TensorFlow takes of a mapped file is the file's pages, not memory of the process's own."""
    code = (
        "import sys, numpy as np, psutil\nfrom rayml.training import device_vectors\n"
        "import tensorflow as tf\n"
        "array = np.load(sys.argv[1], mmap_mode='c')\n"
        "device_vectors(np.zeros((2, 2), np.float32))\n"
        "before = psutil.Process().memory_full_info().uss\n"
        "tensor = device_vectors(array)\n"
        "total = float(tf.reduce_sum(tf.gather(tensor, [0, len(array) - 1])))\n"
        "print(psutil.Process().memory_full_info().uss - before, total)\n"
    )
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (20000, 1024))  # 80 MB
    array[[0, -1]] = 1
    array.flush()
    command = [sys.executable, "-c", code, str(tmp_path / "a.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    grown, total = done.stdout.split()
    assert float(total) == 2048
    assert int(grown) < array.nbytes / 2


def test_a_data_set_that_is_being_made_is_not_forgotten(bank: FeatureBank, tmp_path: Path) -> None:
    for number in range(4):
        gather(recipe(tmp_path / "training", bank, f"{number}" * 64))
    oldest = tmp_path / "training" / ("1" * 32)
    with alone(tmp_path / "training", oldest.name):
        gather(recipe(tmp_path / "training", bank, "5" * 64))
        assert oldest.is_dir()
    gather(recipe(tmp_path / "training", bank, "6" * 64))
    assert not oldest.exists()


def test_what_a_killed_process_left_is_removed(bank: FeatureBank, tmp_path: Path) -> None:
    made = recipe(tmp_path / "training", bank)
    made.place.mkdir(parents=True)
    (made.place / ".train.npy-0123").write_bytes(b"half")
    gather(made)
    assert sorted(path.name for path in made.place.iterdir()) == ["train.npy", "validation.npy"]
