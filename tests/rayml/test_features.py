from __future__ import annotations

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from rayml.errors import RaymlError
from rayml.features import DTYPES, FeatureBank, bank_key
from rayml.frozen import FrozenBackbone

D = 5


def digests(*names: str) -> list[str]:
    return [hashlib.sha256(name.encode()).hexdigest() for name in names]


def vectors(count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)


def backbone(**changes: object) -> FrozenBackbone:
    made = FrozenBackbone(Path("anywhere"), "tiny", 64, "a" * 64, "b" * 64, "c" * 64, D)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def bank(tmp_path: Path) -> FeatureBank:
    return FeatureBank(tmp_path / "bank", D)


def test_what_was_written_is_read_in_the_order_asked_for(bank: FeatureBank) -> None:
    first, second = vectors(3, 1), vectors(2, 2)
    bank.write(digests("a", "b", "c"), first)
    bank.write(digests("d", "e"), second)
    for opened in (bank, FeatureBank(bank.folder, D)):
        assert len(opened) == 5
        assert digests("d")[0] in opened
        assert digests("z")[0] not in opened
        rows = opened.rows(digests("e", "a", "d", "a", "c"))
        np.testing.assert_array_equal(rows, np.stack([second[1], first[0], second[0], first[0], first[2]]))
        assert rows.dtype == np.float32
        assert opened.rows([]).shape == (0, D)
    with pytest.raises(KeyError, match=digests("z")[0]):
        bank.rows(digests("a", "z"))


def test_a_bank_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert len(FeatureBank(tmp_path / "none", D)) == 0
    assert not (tmp_path / "none").exists()


def shard(bank: FeatureBank, suffix: str) -> Path:
    (path,) = (path for path in bank.folder.iterdir() if path.name.endswith(suffix))
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda bank: shard(bank, ".npy").unlink(),
        lambda bank: shard(bank, ".sha256").unlink(),
        lambda bank: shard(bank, ".npy").write_bytes(b""),
        lambda bank: shard(bank, ".sha256").write_bytes(b""),
        lambda bank: shard(bank, ".npy").write_bytes(shard(bank, ".npy").read_bytes()[:-4]),
        lambda bank: shard(bank, ".npy").write_bytes(shard(bank, ".npy").read_bytes()[:50]),
        lambda bank: shard(bank, ".npy").write_bytes(b"not an array at all"),
        lambda bank: shard(bank, ".sha256").write_bytes(bytes.fromhex("".join(digests("a", "b")))),
        lambda bank: shard(bank, ".sha256").write_bytes(b"\xff\xfe"),
        lambda bank: np.save(shard(bank, ".npy"), np.zeros((3, D))),
        lambda bank: np.save(shard(bank, ".npy"), np.zeros((3, D + 1), np.float32)),
    ],
    ids=[
        "array gone",
        "index gone",
        "array empty",
        "index empty",
        "array cut",
        "header cut",
        "no array",
        "index short",
        "index cut",
        "float64",
        "other width",
    ],
)
def test_a_shard_that_is_not_whole_counts_as_not_there(
    bank: FeatureBank, damage: Callable[[FeatureBank], object]
) -> None:
    names = digests("a", "b", "c")
    bank.write(names, vectors(3))
    damage(bank)
    opened = FeatureBank(bank.folder, D)
    assert len(opened) == 0
    opened.write(names, vectors(3))
    np.testing.assert_array_equal(FeatureBank(bank.folder, D).rows(names), vectors(3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(bank: FeatureBank, value: float) -> None:
    wrong = vectors(2)
    wrong[1, 3] = value
    with pytest.raises(RaymlError, match="not finite numbers"):
        bank.write(digests("a", "b"), wrong)
    assert not bank.folder.exists()


def test_another_shape_or_type_is_a_mistake_of_the_caller(bank: FeatureBank) -> None:
    for wrong in (vectors(3), vectors(2).astype(np.float64), vectors(2)[:, :4]):
        with pytest.raises(ValueError, match=r"expected float32 \(2, 5\)"):
            bank.write(digests("a", "b"), wrong)


def test_a_folder_that_cannot_be_written(bank: FeatureBank) -> None:
    bank.folder.write_text("a file where the folder should be")
    with pytest.raises(RaymlError, match="features could not be written") as caught:
        bank.write(digests("a"), vectors(1))
    assert "--cache" in caught.value.hint


def test_a_full_disk_keeps_what_was_finished(tmp_path: Path) -> None:
    """A limit on a file's size fails the write in the middle, as a full disk does."""
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from rayml.errors import RaymlError\nfrom rayml.features import FeatureBank\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "bank = FeatureBank(Path(sys.argv[1]), 5)\n"
        "bank.write(['a' * 64], np.ones((1, 5), np.float32))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    bank.write([f'{i:064}' for i in range(500)], np.ones((500, 5), np.float32))\n"
        "except RaymlError as error:\n    print(error.message)\n"
    )
    folder = tmp_path / "bank"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("features could not be written: ")
    assert done.stdout.endswith(": File too large\n")
    assert len(FeatureBank(folder, D)) == 1
    assert len(list(folder.iterdir())) == 2  # no draft is left


def test_what_decides_the_vectors_names_the_bank(tmp_path: Path) -> None:
    keys = {
        bank_key(changed)
        for changed in (
            backbone(),
            backbone(graph_sha256="c" * 64),
            backbone(image_size_px=65),
        )
    }
    assert len(keys) == 3
    assert all(len(key) == 64 for key in keys)
    # Where it lies does not.
    assert bank_key(backbone(folder=Path("elsewhere"))) == bank_key(backbone())
    FeatureBank.of(backbone(), tmp_path).write(digests("a"), vectors(1))
    assert digests("a")[0] in FeatureBank.of(backbone(), tmp_path)
    assert digests("a")[0] not in FeatureBank.of(backbone(graph_sha256="c" * 64), tmp_path)


def test_a_header_that_is_damaged_is_named(bank: FeatureBank) -> None:
    """The size alone cannot tell; that is all that opening a bank looks at, since it reads no arrays."""
    bank.write(digests("a"), vectors(1))
    path = shard(bank, ".npy")
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(RaymlError, match="cannot be read") as caught:
        bank.rows(digests("a"))
    assert f"Remove {path.stem}.*" in caught.value.hint


def test_the_same_picture_in_two_shards(bank: FeatureBank) -> None:
    bank.write(digests("a", "b"), vectors(2))
    bank.write(digests("b", "c"), vectors(3)[1:])
    assert len(bank) == 3
    np.testing.assert_array_equal(bank.rows(digests("c", "b", "a")), vectors(3)[::-1])
    assert bank.has(digests("c", "z", "a")).tolist() == [True, False, True]


def test_digests_that_end_in_zeros_are_told_apart(bank: FeatureBank) -> None:
    names = ["00" * 32, "ab" + "00" * 31, "ab00cd" + "00" * 29, "00" * 31 + "01"]
    bank.write(names, vectors(4))
    np.testing.assert_array_equal(bank.rows(names[::-1]), vectors(4)[::-1])
    assert "cd" + "00" * 31 not in bank


def test_what_others_have_written_can_be_noted(bank: FeatureBank) -> None:
    """Without a look at the folder, which a network may show as it was a minute ago."""
    elsewhere = pickle.loads(pickle.dumps(bank))
    assert len(bank) == 0
    elsewhere.write(digests("a", "b"), vectors(2))
    assert len(bank) == 0
    bank.note(digests("a", "b"))
    np.testing.assert_array_equal(bank.rows(digests("b", "a")), vectors(2)[::-1])


def test_what_others_write_can_be_waited_for(bank: FeatureBank, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = pickle.loads(pickle.dumps(bank))
    looks = iter([lambda: None, lambda: elsewhere.write(digests("a"), vectors(1))])
    monkeypatch.setattr("rayml.features.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: next(looks)()))
    bank.wait_for(digests("a"), 1.0)
    assert digests("a")[0] in bank
    bank.wait_for(digests("z"), 0.0)
    assert digests("z")[0] not in bank


def test_a_bank_travels_as_its_address(bank: FeatureBank) -> None:
    bank.write(digests("a"), vectors(1))
    travelled = pickle.dumps(bank)
    assert len(travelled) < 1000
    bank.write(digests("b"), vectors(1, 2))
    assert pickle.loads(travelled).has(digests("a", "b")).all()


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom rayml.features import FeatureBank\n"
        "bank = FeatureBank(Path(sys.argv[1]), 5)\n"
        "for i in range(100):\n"
        "    shard = [f'{10 * i + j:064}' for j in range(10)]\n"
        "    bank.write(shard, np.full((10, 5), i, np.float32))\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    bank = FeatureBank(tmp_path, D)
    assert len(bank) == 1000
    np.testing.assert_array_equal(bank.rows([f"{i:064}" for i in range(1000)])[:, 0], np.repeat(np.arange(100), 10))


def test_half_the_room(tmp_path: Path) -> None:
    names = digests("a", "b", "c")
    whole, half = (FeatureBank(tmp_path / dtype, D, dtype) for dtype in DTYPES)
    for bank in (whole, half):
        bank.write(names, vectors(3))
    expected = vectors(3).astype(np.float16).astype(np.float32)
    for opened in (half, pickle.loads(pickle.dumps(half)), FeatureBank(tmp_path / "float16", D, "float16")):
        found = opened.rows(names[::-1])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found[::-1], expected)
    sizes = [next(bank.folder.glob("*.npy")).stat().st_size - 128 for bank in (whole, half)]
    assert sizes == [3 * D * 4, 3 * D * 2]
    assert not FeatureBank(tmp_path / "float16", D).has(names).any()  # A bank of another dtype is none.
    with pytest.raises(RaymlError, match=r"at most 65504 to be kept in float16. Received: 70000") as caught:
        half.write(digests("d"), np.full((1, D), 70000, np.float32))
    assert "--feature-dtype float32" in caught.value.hint and len(half) == 3


def test_each_dtype_has_a_bank_of_its_own() -> None:
    assert len({bank_key(backbone(), dtype) for dtype in DTYPES}) == 2
    assert bank_key(backbone()) == bank_key(backbone(), "float32")
