from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rayml.errors import UsageError
from tune_jobs.config import SearchSettings, make_settings, read_settings

GIVEN: dict[str, Any] = {"data": "photos", "out": "run"}


def test_the_defaults_are_the_lessons() -> None:
    settings = make_settings(GIVEN, "options")
    assert (settings.backbone, settings.weights, settings.image_size) == ("xception", None, None)
    assert settings.size_inner == (10, 100, 1000)
    assert settings.learning_rate == (0.0001, 0.001, 0.01, 0.1)
    assert (settings.trials, settings.epochs, settings.batch_size, settings.seed) == (12, 10, 32, 1)
    assert (settings.dropout, settings.scheduler, settings.address) == (0.0, "asha", "local")
    assert (settings.data, settings.out) == (Path("photos"), Path("run"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.epochs = 3  # type: ignore[misc]


def test_plain_values_become_settings() -> None:
    values = {**GIVEN, "size_inner": [5], "learning_rate": ["1e-3", 1], "epochs": 2, "grace_period": 1}
    settings = make_settings(values, "config.yaml")
    assert (settings.size_inner, settings.learning_rate) == ((5,), (0.001, 1.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size_inner": []}, "size_inner must be one or more values, each once"),
        ({"size_inner": [10, 10]}, r"Received: \[10, 10\]"),
        ({"size_inner": [0]}, "size_inner must be at least 1. Received: 0"),
        ({"learning_rate": [0.1, -0.1]}, "learning_rate must be a number over 0. Received: -0.1"),
        ({"learning_rate": [float("nan")]}, "learning_rate must be a number over 0. Received: nan"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_concurrent": 0}, "max_concurrent must be at least 1"),
        ({"seed": -1}, "seed must be 0 to"),
        ({"seed": 2**31}, "seed must be 0 to"),
        ({"validation_fraction": 0}, "validation_fraction must be between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1"),
        ({"scheduler": "pbt"}, "scheduler must be one of asha, sync, none. Received: pbt"),
        ({"grace_period": 0}, "grace_period must be 1 to epochs=10. Received: 0"),
        ({"grace_period": 11}, "Received: 11"),
        ({"reduction_factor": 1}, "reduction_factor must be at least 2"),
        ({"reduction_factor": float("inf")}, "reduction_factor must be at least 2"),
        ({"reduction_factor": float("nan")}, "reduction_factor must be at least 2"),
        ({"trial_cpus": 0}, "trial_cpus must be over 0"),
        ({"trial_gpus": -1}, "trial_gpus must be at least 0"),
        ({"feature_gpus": -0.1}, "feature_gpus must be 0 to 1. Received: -0.1"),
        ({"feature_gpus": 2}, "feature_gpus must be 0 to 1. Received: 2"),
        ({"feature_gpus": float("nan")}, "feature_gpus must be 0 to 1. Received: nan"),
        ({"epochs": "many"}, "c.yaml: epochs: "),
        ({"epochs": 2.5}, "c.yaml: epochs: "),
        ({"size_inner": "10"}, "c.yaml: size_inner: "),
        ({"size_iner": [10]}, "c.yaml: size_iner: "),
        ({"data": None}, "c.yaml: data: "),
    ],
    ids=str,
)
def test_values_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_settings({**GIVEN, **changes}, "c.yaml")
    assert "\n" not in caught.value.message


def test_all_faults_are_named_at_once_and_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        make_settings({"data": "photos", "epoch": 3, "epochs": "x"}, "c.yaml")
    for fault in ("epoch: ", "epochs: ", "out: "):
        assert fault in caught.value.message
    for field in dataclasses.fields(SearchSettings):
        assert field.name in caught.value.hint


def test_a_file_of_settings(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: photos\nout: run\nlearning_rate: [0.1, 1e-2]\nbackbone: tiny\n")
    settings = make_settings(read_settings(path), str(path))
    assert (settings.learning_rate, settings.backbone) == ((0.1, 0.01), "tiny")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", "must be YAML"),
        (b"- 1\n", "must hold `setting: value` lines. Received: list"),
        (b"", "Received: NoneType"),
        (b"a: \xff\xfe", "must be YAML"),
        (b"a: !!python/object/apply:os.getcwd []", "must be YAML"),
    ],
)
def test_files_that_hold_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_settings(path)
    assert "\n" not in caught.value.message
    with pytest.raises(UsageError, match="must be a readable file"):
        read_settings(tmp_path)


def test_what_is_recorded_names_no_place(tmp_path: Path) -> None:
    weights, photos = tmp_path / "a.weights.h5", tmp_path / "photos"
    settings = SearchSettings(data=photos, out=tmp_path / "run", weights=str(weights), cache=tmp_path / "cache")
    plain = settings.to_json()
    assert str(tmp_path) not in json.dumps(plain)
    assert (plain["data"], plain["out"], plain["weights"]) == ("photos", "run", "a.weights.h5")
    assert plain["size_inner"] == (10, 100, 1000)
    assert plain["storage_path"] is None
    folder = SearchSettings(data=photos, out=tmp_path / "run", storage_path=str(tmp_path / "shared"))
    assert str(tmp_path) not in json.dumps(folder.to_json())
    bucket = SearchSettings(data=photos, out=tmp_path / "run", storage_path="s3://bucket/prefix")
    assert bucket.to_json()["storage_path"] == "s3://bucket/prefix"
