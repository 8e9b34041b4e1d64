"""TensorBoard's event files of a search: RUN/tensorboard/TRIAL/, the figures of each epoch and what the trial is.

They follow from history.csv: a search that goes on writes them anew, so that they hold each epoch once, whatever was
killed before. The events are TensorBoard's own protocol buffers, which come with tensorboardX, as Ray Tune asks for it;
its writers, which start a thread for each trial and hold what they have for two minutes, are not used.
"""

from __future__ import annotations

import shutil
import struct
import time
from pathlib import Path
from typing import Any

from tune_jobs.records import EpochRow
from tune_jobs.tracker import FIGURES, Tracker

_FILE = "events.out.tfevents.0.rayml"  # TensorBoard reads files with "tfevents" in their name.


class TensorBoard(Tracker):
    """Writes the event files.

    Arguments:
        folder: RUN/tensorboard; what is in it is removed.

    Raises:
        OSError: it cannot be removed.
    """

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        self._folder = folder

    def begin(self, number: str, cell: dict[str, Any]) -> None:
        """See `Tracker`."""
        from tensorboardX.summary import hparams

        (self._folder / number).mkdir(parents=True)
        experiment, start, _ = hparams(cell, dict.fromkeys(FIGURES, 0.0))
        self._write(number, _event(file_version="brain.Event:2"))
        for summary in (experiment, start):
            self._write(number, _event(summary=summary))

    def epoch(self, row: EpochRow) -> None:
        """See `Tracker`."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=getattr(row.metrics, name)) for name in FIGURES]
        self._write(row.trial_id, _event(summary=Summary(value=values), step=row.epoch))

    def end(self, number: str, status: str) -> None:
        """See `Tracker`."""
        from tensorboardX.proto.api_pb2 import Status
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
        from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

        how = Status.Value("STATUS_FAILURE" if status == "failed" else "STATUS_SUCCESS")
        content = HParamsPluginData(session_end_info=SessionEndInfo(status=how), version=0).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=content)
        value = Summary.Value(tag="_hparams_/session_end_info", metadata=SummaryMetadata(plugin_data=plugin))
        self._write(number, _event(summary=Summary(value=[value])))

    def _write(self, number: str, event: bytes) -> None:
        """One record of TensorFlow's TFRecord format: length, its checksum, content, its checksum."""
        from tensorboardX.record_writer import masked_crc32c

        length = struct.pack("<Q", len(event))
        checked = (struct.pack("<I", masked_crc32c(part)) for part in (length, event))
        with (self._folder / number / _FILE).open("ab") as file:
            file.write(b"".join((length, next(checked), event, next(checked))))


def _event(**content: Any) -> bytes:
    from tensorboardX.proto.event_pb2 import Event

    return bytes(Event(wall_time=time.time(), **content).SerializeToString())
