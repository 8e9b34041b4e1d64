"""`predictions.csv`: what a run's winner answered on every validation photo, a row each, exact to the last bit.

    path,sha256,label,answer,confidence,logit dress,logit hat,...

`label` is the true class. `answer` and `confidence` follow from the logits and the temperature; they are there for
whoever opens the file in a spreadsheet, and are not read back. A path or class that a spreadsheet would take for a
formula has an apostrophe before it.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.errors import DataError
from rayml.metrics import softmax

PREDICTIONS_FILE = "predictions.csv"
_COLUMNS = ["path", "sha256", "label", "answer", "confidence"]
_LOGIT = "logit "
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What begins a formula; apostrophes before it are the name's own.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The logits of M photos of known class.

    Arguments:
        classes: the C names in the order of the logits.
        paths: of the photos, relative to the data's folder.
        sha256: of the photos' bytes.
        labels: int64 (M,), the true classes' places in `classes`.
        logits: float32 (M, C).
    """

    classes: tuple[str, ...]
    paths: tuple[str, ...]
    sha256: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]

    def probabilities(self, temperature: float) -> NDArray[np.float32]:
        """softmax(logits / temperature), float32 (M, C)."""
        return softmax(self.logits.astype(np.float64) / temperature)

    def write(self, path: Path, temperature: float) -> None:
        """Write the file whole, or leave what is there."""
        shares = self.probabilities(temperature)
        draft = path.with_suffix(".csv.tmp")
        # A file's name is bytes; those that are no UTF-8 pass through unchanged.
        with draft.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow([*_COLUMNS, *(_LOGIT + name for name in self.classes)])
            for i, (name, digest) in enumerate(zip(self.paths, self.sha256, strict=True)):
                best = int(self.logits[i].argmax())
                label, answer = self.classes[int(self.labels[i])], self.classes[best]
                known = (_as_text(name), digest, _as_text(label), _as_text(answer), f"{shares[i, best]:.6f}")
                # `str` of a NumPy float32 is the shortest text that reads back to the same float32.
                writer.writerow([*known, *map(str, self.logits[i])])
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Read what `write` wrote.

        Raises:
            DataError: the file is damaged or not there.
        """
        try:
            with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
                header, *rows = csv.reader(file)
            classes = tuple(name.removeprefix(_LOGIT) for name in header[len(_COLUMNS) :])
            if header[: len(_COLUMNS)] != _COLUMNS or any(len(row) != len(header) for row in rows) or not rows:
                raise ValueError(f"columns {header[:6]} and {len(rows)} rows")
            for row in rows:  # They become names of files.
                if not _SHA256.fullmatch(row[1]):
                    raise ValueError(f"{row[1][:100]!a} as sha256")
            logits = np.array([row[len(_COLUMNS) :] for row in rows]).astype(np.float32)
            if not np.isfinite(logits).all():
                raise ValueError("a logit that is not finite")
            places = {name: i for i, name in enumerate(classes)}
            labels = np.array([places[_as_it_was(row[2])] for row in rows], np.int64)
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise DataError(
                f"{path} must hold a row for each validation photo. Received: {error}", "Search again."
            ) from None
        paths = tuple(_as_it_was(row[0]) for row in rows)
        return cls(classes, paths, tuple(row[1] for row in rows), labels, logits)


def _as_text(name: str) -> str:
    """A cell that a spreadsheet shows and does not compute."""
    return f"'{name}" if _FORMULA.match(name) else name


def _as_it_was(cell: str) -> str:
    """The name that `_as_text` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
