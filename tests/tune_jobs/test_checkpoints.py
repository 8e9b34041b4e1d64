from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from rayml.errors import SearchError
from rayml.training import HeadTrainer
from tests.tune_jobs.small import vectors
from tune_jobs.checkpoints import BestEpoch, Checkpoint, newest_checkpoint, read_checkpoint, write_checkpoint
from tune_jobs.records import EpochRow


@pytest.fixture(scope="module")
def trainer() -> HeadTrainer:
    return HeadTrainer(vectors(), size_inner=4, dropout=0.3, batch_size=16)


@pytest.fixture
def written(trainer: HeadTrainer, tmp_path: Path) -> list[Checkpoint]:
    """The checkpoints of four epochs, the first the best of them, written one after the other."""
    trainer.start(seed=1, learning_rate=0.05)
    history: list[EpochRow] = []
    made: list[Checkpoint] = []
    for epoch in range(1, 5):
        history.append(EpochRow("00007", epoch, trainer.run_epoch(), epoch / 3))
        best = made[0].best if made else BestEpoch(1, history[0].metrics.val_accuracy, trainer.weights())
        made.append(Checkpoint(trainer.state(), best, tuple(history)))
        write_checkpoint(tmp_path / "00007", made[-1])
    return made


def test_a_checkpoint_keeps_every_bit(trainer: HeadTrainer, written: list[Checkpoint], tmp_path: Path) -> None:
    read, damaged = newest_checkpoint(tmp_path / "00007")
    assert read is not None and damaged == ()
    assert {name: array.tobytes() for name, array in read.state.items()} == {
        name: array.tobytes() for name, array in written[-1].state.items()
    }
    assert read.history == written[-1].history
    assert (read.best.epoch, read.best.val_accuracy) == (1, written[0].best.val_accuracy)
    for name, array in written[0].best.weights.arrays().items():
        np.testing.assert_array_equal(array, read.best.weights.arrays()[name])
    # Goes on to the bit, dropout's random state included, also in a trainer that has done something else since.
    expected = trainer.run_epoch()
    trainer.start(seed=9, learning_rate=0.9)
    trainer.run_epoch()
    trainer.restore(read.state)
    assert trainer.run_epoch() == expected


def test_the_newest_two_are_kept(written: list[Checkpoint], tmp_path: Path) -> None:
    assert sorted(path.name for path in (tmp_path / "00007").iterdir()) == ["00003.npz", "00004.npz"]
    assert newest_checkpoint(tmp_path / "00001") == (None, ())


def test_what_a_killed_process_left_goes_with_the_next_checkpoint(written: list[Checkpoint], tmp_path: Path) -> None:
    left = tmp_path / "00007" / ".00004.npz-1"
    left.write_bytes(b"half")
    write_checkpoint(tmp_path / "00007", written[-1])
    assert sorted(path.name for path in (tmp_path / "00007").iterdir()) == ["00003.npz", "00004.npz"]


def test_every_kind_of_damage_is_found_and_the_one_before_serves(written: list[Checkpoint], tmp_path: Path) -> None:
    newest = tmp_path / "00007" / "00004.npz"
    whole = newest.read_bytes()
    chance = random.Random(1)
    damages = [b"", b"no zip", *(whole[: len(whole) * part // 10] for part in range(1, 10)), whole[:-1]]
    for damage in damages:
        newest.write_bytes(damage)
        read, damaged = newest_checkpoint(tmp_path / "00007")
        assert read is not None and len(read.history) == 3
        assert len(damaged) == 1 and damaged[0].startswith("the checkpoint 00007/00004.npz is damaged (")
    # A flipped bit is found, or it lay where it changes nothing.
    for _ in range(300):
        at = chance.randrange(len(whole))
        newest.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :])
        read, damaged = newest_checkpoint(tmp_path / "00007")
        assert read is not None
        expected = written[len(read.history) - 1]
        assert len(read.history) == (3 if damaged else 4)
        assert read.history == expected.history
        for name, array in expected.state.items():
            np.testing.assert_array_equal(read.state[name], array)
    (tmp_path / "00007" / "00003.npz").write_bytes(b"")
    newest.write_bytes(b"")
    read, damaged = newest_checkpoint(tmp_path / "00007")
    assert read is None and len(damaged) == 2


def test_what_is_no_checkpoint(written: list[Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"00009\.npz is damaged"):
        read_checkpoint(tmp_path / "00007" / "00009.npz")
    np.savez(tmp_path / "00007" / "00005.npz", best_epoch=np.array(1))
    (tmp_path / "00007" / "00004.npz").rename(tmp_path / "00007" / "00006.npz")
    read, damaged = newest_checkpoint(tmp_path / "00007")
    assert read is not None and len(read.history) == 3
    assert ["00006" in damaged[0], "00005" in damaged[1]] == [True, True]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(written: list[Checkpoint], tmp_path: Path) -> None:
    folder = tmp_path / "00007"
    folder.chmod(0o500)
    try:
        with pytest.raises(OSError, match="denied"):
            write_checkpoint(folder, written[0])
    finally:
        folder.chmod(0o700)
    assert sorted(path.name for path in folder.iterdir()) == ["00003.npz", "00004.npz"]


def test_a_full_disk_leaves_the_old_ones(
    written: list[Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path / "00007", written[-1])
    assert sorted(path.name for path in (tmp_path / "00007").iterdir()) == ["00003.npz", "00004.npz"]
