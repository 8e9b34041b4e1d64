from __future__ import annotations

from pathlib import Path
from typing import Any

from rayml.training import EpochMetrics
from tune_jobs.records import EpochRow
from tune_jobs.tensorboard import TensorBoard

CELL = {"size_inner": 10, "learning_rate": 0.01, "dropout": 0.0}


def events(folder: Path) -> list[Any]:
    """Read by TensorFlow itself, which checks each record's sums."""
    import tensorflow as tf

    (file,) = folder.iterdir()
    return [
        event
        for record in tf.data.TFRecordDataset(str(file))
        for event in [tf.compat.v1.Event.FromString(record.numpy())]
    ]


def row(trial: str, epoch: int) -> EpochRow:
    return EpochRow(trial, epoch, EpochMetrics(1.0 / epoch, 0.1 * epoch, 2.0 / epoch, 0.2 * epoch), float(epoch))


def plugin(event: Any) -> Any:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    (value,) = event.summary.value
    assert value.metadata.plugin_data.plugin_name == "hparams"
    return HParamsPluginData.FromString(value.metadata.plugin_data.content)


def test_what_tensorboard_reads(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "tensorboard")
    board.begin("00003", CELL)
    for epoch in (1, 2):
        board.epoch(row("00003", epoch))
    board.end("00003", "stopped")
    version, experiment, start, *epochs, end = events(tmp_path / "tensorboard" / "00003")
    assert version.file_version == "brain.Event:2"
    metrics = {info.name.tag for info in plugin(experiment).experiment.metric_infos}
    assert metrics == {"val_accuracy", "val_loss", "accuracy", "loss"}
    shown = {name: value.number_value for name, value in plugin(start).session_start_info.hparams.items()}
    assert shown == CELL
    assert [event.step for event in epochs] == [1, 2]
    values = {value.tag: value.simple_value for value in epochs[1].summary.value}
    assert values == {"val_accuracy": 0.4000000059604645, "val_loss": 1.0, "accuracy": 0.20000000298023224, "loss": 0.5}
    assert plugin(end).session_end_info.status == 1  # success
    assert version.wall_time > 1.6e9


def test_a_failed_trial_and_a_second_one(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path / "tensorboard")
    board.begin("00000", CELL)
    board.begin("00001", CELL)
    board.end("00000", "failed")
    assert plugin(events(tmp_path / "tensorboard" / "00000")[-1]).session_end_info.status == 2
    assert len(events(tmp_path / "tensorboard" / "00001")) == 3


def test_a_search_that_goes_on_writes_them_anew(tmp_path: Path) -> None:
    for _ in range(2):
        board = TensorBoard(tmp_path / "tensorboard")
        board.begin("00000", CELL)
        board.epoch(row("00000", 1))
        assert len(events(tmp_path / "tensorboard" / "00000")) == 4
