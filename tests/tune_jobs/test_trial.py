"""What a trial's process keeps between trials; what a trial does is tested with the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayml.training import HeadTrainer
from tests.tune_jobs.small import vectors
from tune_jobs import trial


def test_kinds_of_head_share_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = vectors(), vectors(seed=2)
    kept: dict[tuple[Any, ...], Any] = {(other.digest, None, 4, 0.0, 16): HeadTrainer(other, size_inner=4)}
    monkeypatch.setattr(trial, "_trainers", kept)

    def trainer(size_inner: int) -> Any:
        return trial._trainer({"cell": {"size_inner": size_inner, "dropout": 0.0, "batch_size": 16}}, data)

    small, large = trainer(4), trainer(8)
    assert small is trainer(4) and small is not large
    assert large._train is small._train and large._validation is small._validation
    np.testing.assert_array_equal(small._train[0], data.train_features)
