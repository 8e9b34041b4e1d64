from __future__ import annotations

from pathlib import Path

import pytest

from rayml.backbones import backbone_spec
from rayml.errors import SearchError, WeightsError
from rayml.frozen import frozen_folder, load_frozen
from tune_jobs.freezing import Freezing

SPEC = backbone_spec("tiny")


def test_it_is_made_once_and_shared(tmp_path: Path) -> None:
    storage = str(tmp_path / "shared")
    with Freezing(SPEC, tmp_path / "here", storage) as freezing:
        assert not freezing.found
        made = freezing.result()
        assert freezing.result() == made
    assert load_frozen(frozen_folder(SPEC, tmp_path / "here")) == made
    with Freezing(SPEC, tmp_path / "here") as freezing:
        assert freezing.found
        assert freezing.result() == made
    with Freezing(SPEC, tmp_path / "there", storage) as freezing:
        assert freezing.found
        assert freezing.result().graph_sha256 == made.graph_sha256


def test_what_is_wrong_comes_back_as_it_was(tmp_path: Path) -> None:
    weights = tmp_path / "other.weights.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\nno more")
    with (
        Freezing(backbone_spec("mobilenet_v2", str(weights), 96), tmp_path / "cache") as freezing,
        pytest.raises(WeightsError, match="damaged") as caught,
    ):
        freezing.result()
    assert caught.value.hint


def test_a_process_that_dies_is_said(tmp_path: Path) -> None:
    with Freezing(SPEC, tmp_path) as freezing:
        assert freezing._process is not None
        freezing._process.kill()
        with pytest.raises(SearchError, match="ended with -9"):
            freezing.result()


def test_nobody_waits_for_what_is_not_wanted(tmp_path: Path) -> None:
    with Freezing(SPEC, tmp_path) as freezing:
        process = freezing._process
    assert process is not None
    assert process.returncode == -9
    assert not (tmp_path / "backbones").exists()
