from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayml.errors import SearchError
from rayml.training import HeadTrainer
from tests.tune_jobs.small import vectors
from tune_jobs.trial import CHECKPOINT_FILE, BestEpoch, read_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def trainer() -> HeadTrainer:
    made = HeadTrainer(vectors(), size_inner=4, batch_size=16)
    made.start(seed=1, learning_rate=0.05)
    return made


def test_a_checkpoint_keeps_every_bit(trainer: HeadTrainer, tmp_path: Path) -> None:
    metrics = trainer.run_epoch()
    best = BestEpoch(trainer.completed_epochs, metrics.val_accuracy, trainer.weights())
    trainer.run_epoch()
    write_checkpoint(tmp_path, trainer.state(), best)
    state, read = read_checkpoint(tmp_path)
    assert {name: array.tobytes() for name, array in state.items()} == {
        name: array.tobytes() for name, array in trainer.state().items()
    }
    assert (read.epoch, read.val_accuracy) == (best.epoch, best.val_accuracy)
    for name, array in best.weights.arrays().items():
        np.testing.assert_array_equal(array, read.weights.arrays()[name])
    assert not np.array_equal(read.weights.inner_kernel, trainer.weights().inner_kernel)
    expected = trainer.run_epoch()
    trainer.restore(state)
    assert trainer.run_epoch() == expected


def test_checkpoints_that_are_damaged(trainer: HeadTrainer, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, trainer.state(), BestEpoch(1, 0.5, trainer.weights()))
    file = tmp_path / CHECKPOINT_FILE
    whole = file.read_bytes()
    for damaged in (b"", b"no zip", whole[:100], whole[: len(whole) // 2], whole[:-30]):
        file.write_bytes(damaged)
        with pytest.raises(SearchError, match=r"the checkpoint in .* is damaged"):
            read_checkpoint(tmp_path)
    np.savez(file, best_epoch=np.array(1))
    with pytest.raises(SearchError, match="is damaged"):
        read_checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(SearchError, match="is damaged"):
        read_checkpoint(tmp_path)
