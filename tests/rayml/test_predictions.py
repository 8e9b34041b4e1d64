from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from rayml.errors import DataError
from rayml.predictions import Predictions

CLASSES = ("a,b", 'quote "', "<script>", "shoes")


def made(count: int = 50) -> Predictions:
    random = np.random.default_rng(4)
    logits = (random.normal(size=(count, 4)) * 10.0 ** random.integers(-20, 20, (count, 1))).astype(np.float32)
    names = ("new\nline.jpg", "caf\udce9.jpg", *(f"{i}.jpg" for i in range(2, count)))
    return Predictions(CLASSES, names, ("0" * 64,) * count, random.integers(0, 4, count), logits)


def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    first = made()
    first.write(tmp_path / "p.csv", temperature=1.5)
    again = Predictions.read(tmp_path / "p.csv")
    assert (again.classes, again.paths, again.sha256) == (first.classes, first.paths, first.sha256)
    np.testing.assert_array_equal(again.labels, first.labels)
    np.testing.assert_array_equal(again.logits, first.logits)
    assert again.logits.dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_the_columns_for_people(tmp_path: Path) -> None:
    logits = np.log(np.array([[1, 2, 1], [8, 1, 1]], np.float32))
    predictions = Predictions(("x", "y", "z"), ("1.jpg", "2.jpg"), ("0", "1"), np.array([1, 2]), logits)
    predictions.write(tmp_path / "p.csv", temperature=1.0)
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["answer"], row["confidence"]) for row in rows] == [
        ("y", "y", "0.500000"),
        ("z", "x", "0.800000"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "path,sha256\n",
        "path,sha256,label,answer,confidence,logit x\n",
        "path,sha256,label,answer,confidence,logit x\na,DIGEST,x,x,1\n",
        "path,sha256,label,answer,confidence,logit x\na,DIGEST,y,x,1,2\n",
        "path,sha256,label,answer,confidence,logit x\na,DIGEST,x,x,1,nan\n",
        "path,sha256,label,answer,confidence,logit x\na,DIGEST,x,x,1,much\n",
        "path,sha256,label,answer,confidence,logit x\na,,x,x,1,2\n",
        "path,sha256,label,answer,confidence,logit x\na,../../secret,x,x,1,2\n",
        "path,sha256,label,answer,confidence,logit x\na,DIGEST/../../secret,x,x,1,2\n",
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text.replace("DIGEST", "0" * 64))
    with pytest.raises(DataError, match="must hold a row for each validation photo"):
        Predictions.read(tmp_path / "p.csv")
    with pytest.raises(DataError, match="No such file"):
        Predictions.read(tmp_path / "none.csv")


def test_a_spreadsheet_takes_no_name_for_a_formula(tmp_path: Path) -> None:
    classes = ("=cmd|' calc'!A0", "-", "+1", "@x", "'80s", "'=x", "''-", "plain=")
    paths = tuple(f"{name}/1.jpg" for name in (*classes, "\t=1"))
    labels = np.array([*range(8), 0])
    logits = -np.ones((9, 8), np.float32) - np.eye(8, dtype=np.float32)[labels]
    Predictions(classes, paths, ("0" * 64,) * 9, labels, logits).write(tmp_path / "p.csv", temperature=1.0)
    with (tmp_path / "p.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    names = [row[column] for row in rows for column in (0, 2, 3)]
    assert not [name for name in (*header, *names) if name[0] in "=+-@\t"]
    assert [row[2] for row in rows[2:7]] == ["'+1", "'@x", "'80s", "''=x", "'''-"]
    assert {cell for row in rows for cell in row[5:]} == {"-1.0", "-2.0"}  # These are numbers, and stay so.
    again = Predictions.read(tmp_path / "p.csv")
    assert (again.classes, again.paths, list(again.labels)) == (classes, paths, list(labels))
