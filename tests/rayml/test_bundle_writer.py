from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rayml.bundle import Bundle, Golden, Training
from rayml.bundle_json import MAX_CLASSES
from rayml.bundle_writer import write_bundle
from rayml.errors import BundleError, UsageError
from rayml.graph import attach_head
from rayml.head import HeadWeights
from rayml.model_card import CardNotes
from tests.rayml import small

KEYS = ["format", "name", "version", "created", "classes", "preprocessing", "image_size", "backbone", "head"]
KEYS += ["training", "metrics", "temperature", "files", "requires"]


def test_the_format_as_the_design_has_it(tmp_path: Path) -> None:
    write_bundle(tmp_path / "best", small.contents(created="2026-01-31T12:00:00Z"))
    files = small.files_of(tmp_path / "best")
    golden = [f"golden/{name}" for name in ("index.json", "logits.npy", *(f"{i:03d}.png" for i in range(6)))]
    assert sorted(files) == sorted(["bundle.json", "model.onnx", "head.npz", "MODEL_CARD.md", *golden])
    content = json.loads(files["bundle.json"])
    assert list(content) == KEYS
    assert (content["format"], content["created"], content["image_size"]) == (1, "2026-01-31T12:00:00Z", 24)
    assert content["backbone"] == {"name": "small", "weights_sha256": "a" * 64}
    assert content["head"] == {"size_inner": 5, "dropout": 0.0}
    assert list(content["training"]) == ["learning_rate", "epochs", "seed", "data_digest", "mode"]
    assert content["requires"] == {"rayml": ">=0.1", "opset": 17}
    sealed = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "bundle.json"}
    assert content["files"] == sealed
    assert Bundle.open(tmp_path / "best").digest == hashlib.sha256(files["bundle.json"]).hexdigest()
    assert HeadWeights.from_npz(files["head.npz"]).size_inner == 5


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    made = small.contents(created="2026-01-31T12:00:00Z")
    assert write_bundle(tmp_path / "a", made).digest == write_bundle(tmp_path / "b", made).digest


def test_the_model_card_says_what_counts(tmp_path: Path) -> None:
    write_bundle(tmp_path / "best", small.contents())
    card = (tmp_path / "best" / "MODEL_CARD.md").read_text()
    for words in ("dress, hat, shoes", "accuracy: 0.7500", "| hat | 0.5000 | 0.2500 | 4 |", "d" * 64, "## Limits"):
        assert words in card


def test_the_most_classes_fit(tmp_path: Path) -> None:
    """With names of 100 characters, the figures of each, and a card that names each four times."""
    classes = tuple(f"{number:05}_" + "x" * 94 for number in range(MAX_CLASSES))
    per_class = {name: {"precision": 2 / 3, "recall": 1 / 3, "n": 12} for name in classes}
    head = small.head(classes=len(classes))
    logits = head.logits(np.ones((6, small.FEATURES), np.float32))
    made = small.contents(
        classes=classes,
        metrics={"per_class": per_class},
        head=head,
        model=attach_head(small.backbone().SerializeToString(), head),
        notes=CardNotes(counts={"train": dict.fromkeys(classes, 7), "validation": dict.fromkeys(classes, 12)}),
    )
    made = dataclasses.replace(made, golden=Golden(made.golden.pictures, logits))
    assert write_bundle(tmp_path / "best", made).record.classes == classes


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_nothing_is_written_over(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "best"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to("nowhere")
    with pytest.raises(UsageError, match="best, which exists"):
        write_bundle(target, small.contents())
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="must be writable"):
        write_bundle(tmp_path / "missing" / "best", small.contents())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("dress", "hat")}, r"logits\.npy must be \(6, 2\)"),
        ({"classes": ("dress", "hat", "hat")}, "classes must be 2 or more different names"),
        ({"classes": ("dress", "hat", "")}, "classes must be 2 or more different names"),
        ({"name": "../best"}, "name must be"),
        ({"version": 0}, "version must be"),
        ({"version": True}, "version must be"),
        ({"created": "yesterday"}, "created must be"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"weights_sha256": "none"}, "weights_sha256 must be 64"),
        ({"metrics": {"loss": float("inf")}}, "metrics must be"),
        ({"image_size_px": 25}, "image size, classes and opset"),
        ({"training": Training(0.01, 3, 1, "d" * 64, "magic")}, "training.mode must be features or end-to-end"),
        ({"training": Training(0.01, 0, 1, "d" * 64, "features")}, "training.epochs must be"),
        ({"head": small.head(seed=2)}, "must end in the head"),
        ({"head": small.head(classes=4)}, "and 3 classes"),
        ({"model": small.backbone().SerializeToString()}, '"logits" alone'),
        ({"golden": Golden((), np.zeros((0, 3), np.float32))}, "index.json must list"),
    ],
)
def test_contents_that_do_not_belong_together(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        write_bundle(tmp_path / "best", small.contents(**changes))
    assert list(tmp_path.iterdir()) == []


_WRITER = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from tests.rayml import small
    from rayml.bundle_writer import write_bundle

    target, step = Path(sys.argv[1]), int(sys.argv[2])
    made = small.contents()
    steps = 0

    def count(event, arguments):
        global steps
        if event in ("open", "os.mkdir", "os.rename", "os.scandir") and str(target.parent) in str(arguments[0]):
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

    write_bundle(target.with_name("warm"), made)  # loads what is loaded late
    sys.addaudithook(count)
    write_bundle(target, made)
    print(steps)
    """
)


def _write(target: Path, step: int) -> subprocess.CompletedProcess[str]:
    target.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _WRITER, str(target), str(step)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_writer_killed_at_any_step_leaves_all_or_nothing(tmp_path: Path) -> None:
    done = _write(tmp_path / "whole" / "best", -1)
    steps = int(done.stdout)
    assert steps > 20, done.stderr
    outcomes = []
    for step in [1, 2, 5, steps // 4, steps // 2, steps - 25, steps - 12, steps]:
        target = tmp_path / f"killed-{step}" / "best"
        killed = _write(target, step)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        outcomes.append(target.exists())
        if target.exists():
            Bundle.open(target)
        else:
            write_bundle(target, small.contents())  # what the killed one left is in nobody's way
    assert {True, False} == set(outcomes)  # killed both before and after the one step that counts


def test_a_writer_killed_at_random_moments_leaves_all_or_nothing(tmp_path: Path) -> None:
    code = (
        "import itertools, sys\nfrom pathlib import Path\nfrom tests.rayml import small\n"
        "from rayml.bundle_writer import write_bundle\nmade = small.contents()\nprint('ready', flush=True)\n"
        "for i in itertools.count(): write_bundle(Path(sys.argv[1]) / str(i), made)"
    )
    random, seen = np.random.default_rng(), 0
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                process.wait(timeout=float(random.uniform(0.05, 0.6)))
            except subprocess.TimeoutExpired:
                process.kill()
        for path in folder.glob("[0-9]*"):
            Bundle.open(path)
            seen += 1
    assert seen > 0
