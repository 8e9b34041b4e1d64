from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import tune_jobs
from rayml.end_to_end import FineTuning
from rayml.errors import UsageError
from tune_jobs.config import SearchSettings, make_settings, read_settings

GIVEN: dict[str, Any] = {"data": "photos", "out": "run"}
WHOLE = {"mode": "end-to-end"}
TWO = {"num_samples": 2}
CONFIGS = Path(tune_jobs.__file__).parent / "configs"


def test_the_defaults_are_the_lessons() -> None:
    settings = make_settings(GIVEN, "options")
    assert (settings.backbone, settings.weights, settings.image_size) == ("xception", None, None)
    assert settings.size_inner == (10, 100, 1000)
    assert settings.learning_rate == (0.0001, 0.001, 0.01, 0.1)
    assert (settings.trials, settings.epochs, settings.batch_size, settings.seed) == (12, 10, (32,), 1)
    assert (settings.dropout, settings.scheduler, settings.address) == ((0.0,), "asha", "local")
    assert (settings.weight_decay, settings.label_smoothing) == ((0.0,), (0.0,))
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
        ({"size_inner": []}, "size_inner: must be one or more values, each once"),
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
        ({"trial_cpus": 0}, "trial_cpus must be at least 0.0001"),
        ({"trial_gpus": -1}, "trial_gpus must be 0, a share of 0.0001 to 1, or whole. Received: -1"),
        ({"trial_gpus": 1.5}, "trial_gpus must be 0, a share of 0.0001 to 1, or whole. Received: 1.5"),
        ({"trial_gpus": 0.00001}, "trial_gpus must be 0, a share of 0.0001 to 1, or whole. Received: 1e-05"),
        ({"trial_gpus": float("inf")}, "trial_gpus must be 0, a share of 0.0001 to 1, or whole. Received: inf"),
        ({"trial_cpus": 0.00001}, "trial_cpus must be at least 0.0001. Received: 1e-05"),
        ({"precision": "int4"}, "precision must be one of float32, int8. Received: int4"),
        ({"precision": "int8", "mode": "end-to-end"}, "precision needs mode features. Received: int8 in mode end-to-"),
        ({"feature_dtype": "bfloat16"}, "feature_dtype must be one of float32, float16. Received: bfloat16"),
        ({"feature_dtype": "float16", "mode": "end-to-end"}, "feature_dtype needs mode features. Received: float16"),
        ({"feature_gpus": -0.1}, "feature_gpus must be 0, or a share of 0.0001 to 1. Received: -0.1"),
        ({"feature_gpus": 2}, "feature_gpus must be 0, or a share of 0.0001 to 1. Received: 2"),
        ({"feature_gpus": float("nan")}, "feature_gpus must be 0, or a share of 0.0001 to 1. Received: nan"),
        ({"mode": "whole"}, "mode must be one of features, end-to-end. Received: whole"),
        ({"augment": "flip"}, "augment needs mode end-to-end, since cached features are those of unchanged pictures"),
        ({"unfreeze": 3}, "unfreeze needs mode end-to-end, since cached features come from the backbone as it was"),
        ({"fine_tune_epochs": 0}, "fine_tune_epochs needs mode end-to-end, .* Received: 0 in mode features"),
        ({"fine_tune_learning_rate": 0.1}, "fine_tune_learning_rate needs mode end-to-end"),
        ({"mixed_precision": True}, "mixed_precision needs mode end-to-end, since a head on cached features is"),
        ({**WHOLE, "augment": "spin"}, "augment must be of flip, .* Received: spin"),
        ({**WHOLE, "unfreeze": -1}, "unfreeze must be at least 0. Received: -1"),
        ({**WHOLE, "fine_tune_epochs": 2}, "fine_tune_epochs needs layers to train. Received: 2 with unfreeze 0"),
        ({**WHOLE, "fine_tune_learning_rate": 1}, "fine_tune_learning_rate needs layers to train"),
        ({**WHOLE, "unfreeze": 1, "fine_tune_epochs": 10}, "must be 1 to 9, .* Received: 10 of 10 epochs"),
        ({**WHOLE, "unfreeze": 1, "epochs": 1}, "must be 1 to 0, since the head learns alone before"),
        ({**WHOLE, "unfreeze": 1, "fine_tune_learning_rate": 0}, "fine_tune_learning_rate must be a number over 0"),
        ({"epochs": "many"}, "c.yaml: epochs: input should be a valid integer. Received: many$"),
        ({"epochs": True}, "c.yaml: epochs: input should be a number. Received: True$"),
        ({"trial_gpus": True}, "c.yaml: trial_gpus: input should be a number. Received: True$"),
        ({"grace_period": False, "max_concurrent": True}, "grace_period: .* False; max_concurrent: .* Received: True$"),
        ({"backbone": True}, "c.yaml: backbone: input should be a valid string. Received: True$"),
        ({"epochs": 2.5}, r"c.yaml: epochs: input should be a valid integer. Received: 2\.5$"),
        (
            {"size_inner": "ten"},
            "c.yaml: size_inner: input should be a valid integer, a list or a range. Received: ten$",
        ),
        ({"size_inner": [1.5]}, r"size_inner: input should be a valid integer, a list or a range. Received: \[1\.5\]$"),
        ({"dropout": True}, "dropout: input should be a valid number, a list or a range. Received: True$"),
        ({"size_iner": [10]}, r"c.yaml: size_iner: is no setting; did you mean size_inner\? Received: \[10\]$"),
        ({"epoch": 3}, r"c.yaml: epoch: is no setting; did you mean epochs\? Received: 3$"),
        ({"qqq": 3}, "c.yaml: qqq: is no setting. Received: 3$"),
        ({"data": None}, "c.yaml: data: input is not a valid path. Received: None"),
        ({"out": 2024}, "c.yaml: out: input is not a valid path. Received: 2024"),
        ({"out": "s3://bucket/run"}, "out must be a folder. Received: s3:/bucket/run, which is an address"),
        ({"cache": "gs://bucket/cache"}, "cache must be a folder. Received: gs:/bucket/cache, which is an address"),
        ({"weight_decay": [-1]}, "weight_decay must be a number of at least 0. Received: -1"),
        ({"label_smoothing": 1}, "label_smoothing must be at least 0 and below 1. Received: 1"),
        ({"learning_rate": {"loguniform": [0.1, 0.01]}}, "the ends of loguniform must be finite, the lower one first"),
        ({"learning_rate": {"uniform": [0, 1]}, **TWO}, "learning_rate must be a number over 0. Received: 0"),
        ({"learning_rate": {"loguniform": [0, 1]}}, "the ends of loguniform must be over 0. Received: {'loguniform'"),
        ({"size_inner": {"uniform": [1, 9]}}, "a range must be one of quniform, randint, lograndint, with its numbers"),
        ({"learning_rate": {"normal": [1, 9]}}, "a range must be one of uniform, loguniform, quniform, with its"),
        (
            {"dropout": {"uniform": [0.1]}},
            r"dropout: uniform needs \[lowest, highest\]\. Received: {'uniform",
        ),
        ({"dropout": {"quniform": [0, 0.5, 2]}}, "the step of quniform must be over 0 and at most"),
        ({"batch_size": {"randint": [0, 9]}, **TWO}, "batch_size must be at least 1. Received: 0"),
        ({"dropout": {"uniform": [0, 0.5]}}, "num_samples must say how often to draw from a range. Received: none"),
        (TWO, "num_samples needs a range to draw from. Received: 2, with lists alone"),
    ],
    ids=str,
)
def test_values_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_settings({**GIVEN, **changes}, "c.yaml")
    assert "\n" not in caught.value.message


def test_the_last_epochs_are_for_fine_tuning() -> None:
    chosen = make_settings({**GIVEN, **WHOLE, "unfreeze": 4}, "options")
    assert chosen.fine_tuning == FineTuning(layers=4, after_epoch=5, learning_rate=1e-5)
    more = {"epochs": 3, "fine_tune_epochs": 2, "fine_tune_learning_rate": 1e-4}
    assert make_settings({**GIVEN, **WHOLE, "unfreeze": 1, **more}, "options").fine_tuning == FineTuning(1, 1, 1e-4)
    assert make_settings({**GIVEN, **WHOLE}, "options").fine_tuning is None


def test_all_faults_are_named_at_once_and_what_there_is() -> None:
    with pytest.raises(UsageError) as caught:
        make_settings({"data": "photos", "epoch": 3, "epochs": "x"}, "c.yaml")
    assert caught.value.message == (
        "c.yaml: out: is needed; epochs: input should be a valid integer. Received: x; "
        "epoch: is no setting; did you mean epochs? Received: 3"
    )
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
        (b"out: 2026-02-30\n", "must be YAML. Received: day is out of range for month"),
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
    assert (plain["size_inner"], plain["dropout"], plain["batch_size"]) == ((10, 100, 1000), 0.0, 32)
    assert plain["storage_path"] is None
    folder = SearchSettings(data=photos, out=tmp_path / "run", storage_path=str(tmp_path / "shared"))
    assert str(tmp_path) not in json.dumps(folder.to_json())
    bucket = SearchSettings(data=photos, out=tmp_path / "run", storage_path="s3://bucket/prefix")
    assert bucket.to_json()["storage_path"] == "s3://bucket/prefix"


def test_what_is_recorded_gives_the_same_settings_again(tmp_path: Path) -> None:
    ranges = {
        "learning_rate": {"loguniform": ["1e-5", 0.1]},
        "dropout": [0, 0.5],
        "batch_size": {"quniform": [8, 64, 8]},
    }
    settings = make_settings({**GIVEN, **ranges, "num_samples": 5}, "c.yaml")
    assert settings.trials == 3 * 2 * 5
    plain = json.loads(json.dumps(settings.to_json()))
    assert plain["learning_rate"] == {"loguniform": [1e-5, 0.1]}
    assert plain["batch_size"] == {"quniform": [8, 64, 8]}
    assert make_settings(plain, "run.json") == settings


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_can_be_read(path: Path) -> None:
    assert make_settings(read_settings(path), path.name).trials >= 12
