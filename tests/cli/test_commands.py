"""The commands: what they print, what they end with, and what they say where a person did something wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from rayml import cli, images
from rayml.bundle_writer import write_bundle
from rayml.cli import model
from rayml.clothing import CLASSES
from rayml.images import DEFAULT_LIMITS
from rayml.predictor import Predictor
from rayml.sample import draw, write_sample
from tests.rayml import small
from tests.rayml.report import made

GRID = ("--backbone", "tiny", "--size-inner", "4", "--learning-rate", "0.01", "--epochs", "1", "--grace-period", "1")


def rayml(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it."""
    return subprocess.run(
        [sys.executable, "-m", "rayml", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The same in this process: much quicker, since nothing is imported anew."""

    def called(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["rayml", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code or 0, said.out, said.err)

    return called


def assert_refused(done: subprocess.CompletedProcess[str], code: int, words: str, hint: str = "") -> None:
    """One line of error and one of advice at the end of stderr, nothing on stdout, no traceback."""
    lines = done.stderr.splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith("Error: ")), None)
    assert at is not None, done
    assert (done.returncode, done.stdout) == (code, ""), done
    assert words in lines[at]
    assert len(lines) - at <= 2, done.stderr
    if hint:
        assert hint in lines[at + 1]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    write_sample(folder, train_per_class=2, validation_per_class=1)
    return folder


@pytest.fixture
def copy(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "best", small.contents()).path


# --- tune


def test_a_search_from_the_shell(photos: Path, tmp_path: Path) -> None:
    done = rayml("tune", photos, "--out", tmp_path / "run", *GRID, "--json", RAYML_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)  # one object and nothing else
    assert (len(answer["trials"]), answer["computed"]) == (1, 30)
    assert "features: 30 computed by openvino" in done.stderr
    assert f"check: 10 few photos; rayml data check {photos} tells more" in done.stderr
    assert (tmp_path / "run" / "best" / "bundle.json").is_file()
    checked = rayml("verify", tmp_path / "run" / "best")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "is whole" in checked.stdout


def test_a_search_in_a_table(photos: Path, tmp_path: Path, run: Any, ray_cluster: str) -> None:
    (tmp_path / "c.yaml").write_text("backbone: tiny\nsize_inner: [4, 5]\nlearning_rate: [0.01]\nepochs: 7\n")
    # What is said on the command line goes before the file.
    done = run("tune", photos, "--out", tmp_path / "run", "--config", tmp_path / "c.yaml", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["trial", "size_inner", "learning_rate", "status", "epochs", "val_accuracy"]
    assert [line.split()[:2] for line in lines[1:3]] == [["00000", "4"], ["00001", "5"]]
    assert max(int(line.split()[4]) for line in lines[1:3]) <= 2
    assert sum("<- best" in line for line in lines) == 1
    assert lines[-3:] == [
        "The largest class alone would score 0.1000.",
        f"The report: {tmp_path / 'run' / 'report.html'}",
        f"Next: rayml serve {tmp_path / 'run' / 'best'}",
    ]


def test_photos_that_cannot_be_learned_from(copy: Path, tmp_path: Path, run: Any, ray_cluster: str) -> None:
    out = ("--out", tmp_path / "run", *GRID)
    assert_refused(run("tune", tmp_path / "nowhere", *out), 2, "no such folder", "Expected DATA/train/<class>")
    broken = copy / "train" / "hat" / "broken.jpg"
    broken.write_bytes(b"no picture")
    assert_refused(
        run("tune", copy, *out, "--cache", tmp_path / "cache"),
        2,
        "1 of 31 pictures cannot be read: train/hat/broken.jpg",
        "--skip-unreadable",
    )
    for path in (copy / "train" / "hat").iterdir():
        path.unlink()
    assert_refused(run("tune", copy, *out), 2, "train/hat: expected photos", "Add photos")
    for split in ("train", "validation"):
        for label in CLASSES[1:]:
            shutil.rmtree(copy / split / label)
    assert_refused(run("tune", copy, *out), 2, "at least two classes. Received: only dress", "another one")
    shutil.rmtree(copy / "validation")
    assert_refused(run("tune", copy, *out), 2, "a validation folder beside train", "--validation-fraction")
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_be(photos: Path, tmp_path: Path, run: Any, ray_cluster: str) -> None:
    out = ("--out", tmp_path / "run")
    assert_refused(run("tune", photos, *out, "--backbone", "xeption"), 2, "Received: xeption", "Did you mean xception")
    assert_refused(run("tune", photos, *out, "--image-size", "70"), 2, "71 to 1024 px. Received: 70", "150 px")
    missing = ("--weights", tmp_path / "none.weights.h5")
    assert_refused(run("tune", photos, *out, *missing), 2, "a file that is there", "NAME.weights.h5")
    assert_refused(run("tune", photos, *out, "--epochs", "0"), 2, "epochs must be at least 1. Received: 0")
    assert_refused(run("tune", photos, *out, "--learning-rate", "-1"), 2, "learning_rate must be a number over 0")
    assert_refused(run("tune", photos), 2, "--out RUN is needed", "rayml tune DATA --out RUN")
    assert_refused(run("tune", *out), 2, "DATA is needed", "rayml tune DATA --out RUN")
    (tmp_path / "run").mkdir()
    assert_refused(run("tune", photos, *out), 2, "--out must be a new folder", "Name another, or remove it.")


def test_weights_that_do_not_fit(photos: Path, tmp_path: Path, run: Any, ray_cluster: str) -> None:
    import keras

    path = tmp_path / "small.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(path)
    done = run("tune", photos, "--out", tmp_path / "run", "--backbone", "mobilenet_v3_small", "--weights", path)
    assert_refused(
        done, 2, "--weights do not fit mobilenet_v3_small without top: expected ", "the weights of this very"
    )
    assert "Received: small.weights.h5 with 2 arrays of 15 numbers" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epoch: 3\n", "epoch: is no setting; did you mean epochs? Received: 3"),
        ("epochs: many\n", "epochs: input should be a valid integer. Received: many"),
        ("size_inner: ten\n", "size_inner: input should be a valid integer, a list or a range. Received: ten"),
        ("- 1\n", "must hold `setting: value` lines"),
        ("a: [1\n", "must be YAML"),
    ],
)
def test_files_of_settings_that_cannot_be(photos: Path, tmp_path: Path, run: Any, content: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    done = run("tune", photos, "--out", tmp_path / "run", "--config", tmp_path / "c.yaml")
    assert_refused(done, 2, words)
    assert str(tmp_path / "c.yaml") in done.stderr


def test_a_ray_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    """In a process of its own: this one is connected to a Ray, which would be used."""
    done = rayml("tune", photos, "--out", tmp_path / "run", *GRID, "--address", "127.0.0.1:1")
    assert_refused(done, 1, "no Ray answers at --address 127.0.0.1:1", "leave --address out")
    assert not (tmp_path / "run").exists()


# --- what a bundle does


def picture(folder: Path, number: int) -> Path:
    path = folder / f"{number}.png"
    path.write_bytes(small.png(small.pictures(number + 1)[number]))
    return path


def test_predicting_with_a_bundle(bundle: Path, tmp_path: Path, run: Any) -> None:
    paths = [picture(tmp_path, number) for number in range(3)]
    done = run("predict", *paths, "--bundle", bundle, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    logits = small.head().logits(small.features_of(small.pictures(3)))
    assert [answer["file"] for answer in answers] == [str(path) for path in paths]
    assert [answer["label"] for answer in answers] == [small.CLASSES[best] for best in logits.argmax(axis=1)]
    for answer in answers:
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["confidence"] == answer["probabilities"][answer["label"]]
    plain = run("predict", *paths, "--bundle", bundle).stdout.splitlines()
    assert [line.split()[:2] for line in plain] == [[answer["file"], answer["label"]] for answer in answers]


def test_a_pipe_is_opened_once(bundle: Path, tmp_path: Path, run: Any) -> None:
    pipe, image = tmp_path / "pipe.jpg", picture(tmp_path, 0)
    os.mkfifo(pipe)
    looked = threading.Thread(target=model._check_opens, args=[pipe], daemon=True)
    looked.start()
    looked.join(20)
    if waits := looked.is_alive():
        os.close(os.open(pipe, os.O_RDWR))  # Let it go.
    assert not waits
    writer = threading.Thread(target=pipe.write_bytes, args=[image.read_bytes()])
    writer.start()
    answers = [json.loads(run("predict", path, "--bundle", bundle, "--json").stdout) for path in (pipe, image)]
    writer.join()
    assert answers[0][0]["probabilities"] == answers[1][0]["probabilities"]


def test_evaluating_a_bundle(bundle: Path, tmp_path: Path, run: Any) -> None:
    for number in range(6):
        (tmp_path / small.CLASSES[number % 3]).mkdir(exist_ok=True)
        shutil.move(picture(tmp_path, number), tmp_path / small.CLASSES[number % 3])
    done = run("evaluate", bundle, tmp_path, "--json")
    assert done.returncode == 0
    figures = json.loads(done.stdout)
    names = {"accuracy", "loss", "n", "per_class", "confusion", "ece", "ece_uncalibrated", "images_per_s"}
    assert set(figures) == names
    logits = small.head().logits(small.features_of(small.pictures(6)))
    assert figures["accuracy"] == float((logits.argmax(axis=1) == np.arange(6) % 3).mean())
    assert "evaluation: 6/6 photos" in done.stderr
    plain = run("evaluate", bundle, tmp_path).stdout
    assert f"accuracy {figures['accuracy']:.4f} on 6 pictures" in plain
    assert all(label in plain for label in small.CLASSES)


def test_verifying_a_bundle(bundle: Path, tmp_path: Path, run: Any) -> None:
    done = run("verify", bundle, "--json", "--engine", "onnxruntime")
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert (answer["engine"], answer["golden"], answer["name"]) == ("onnxruntime", 6, "garments")
    assert answer["precision"] == "float32"
    changed = Path(shutil.copytree(bundle, tmp_path / "changed"))
    (changed / "golden" / "000.png").write_bytes(b"another")
    assert_refused(run("verify", changed), 2, "golden/000.png must have sha256", "again")


def test_answers_that_are_not_the_training_paths_are_given_by_no_command(tmp_path: Path, run: Any) -> None:
    made = small.contents()
    wrong = made.golden.logits[:, ::-1].copy()
    write_bundle(tmp_path / "b", replace(made, golden=replace(made.golden, logits=wrong)))
    image = picture(tmp_path, 0)
    for command in (("verify",), ("evaluate",), ("predict", image, "--bundle")):
        rest = (tmp_path,) if command == ("evaluate",) else ()
        done = run(*command, tmp_path / "b", *rest)
        assert_refused(done, 2, "must reproduce the golden logits", "do not serve this bundle here")
        assert not done.stdout


def test_what_is_no_bundle(tmp_path: Path, run: Any) -> None:
    image = picture(tmp_path, 0)
    (tmp_path / "model.keras").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    for path, words in (("nowhere", "does not exist"), ("model.keras", "the file"), ("empty", "bundle.json in it")):
        for command in (("verify",), ("evaluate",), ("predict", image, "--bundle")):
            rest = (tmp_path,) if command == ("evaluate",) else ()
            assert_refused(run(*command, tmp_path / path, *rest), 2, words)


def test_what_is_no_picture(bundle: Path, tmp_path: Path, run: Any) -> None:
    text, empty, gif = tmp_path / "text.jpg", tmp_path / "empty.jpg", tmp_path / "moving.jpg"
    text.write_text("no picture")
    empty.write_bytes(b"")
    Image.fromarray(small.pictures(1)[0]).save(gif, "GIF")
    for path in (text, empty, gif):
        assert_refused(run("predict", path, "--bundle", bundle), 2, f"{path}: ")
    assert_refused(run("predict", tmp_path / "none.jpg", "--bundle", bundle), 2, "IMAGE must be a readable file")
    assert_refused(run("predict", tmp_path, "--bundle", bundle), 2, "Is a directory")


def test_what_was_answered_before_a_picture_that_cannot_be_read_is_printed(
    bundle: Path, tmp_path: Path, run: Any
) -> None:
    good, bad, large = picture(tmp_path, 0), tmp_path / "bad.jpg", tmp_path / "large.jpg"
    bad.write_text("no picture")
    with large.open("wb") as file:
        file.truncate(DEFAULT_LIMITS.max_bytes + 1)
    for path, words in ((bad, "expected a whole JPEG"), (large, f"Received: {DEFAULT_LIMITS.max_bytes + 1} bytes")):
        done = run("predict", good, path, good, "--bundle", bundle)
        assert (done.returncode, [line.split()[0] for line in done.stdout.splitlines()]) == (2, [str(good)])
        assert f"Error: {path}: " in done.stderr and words in done.stderr
        done = run("predict", good, path, good, "--bundle", bundle, "--json")
        assert (done.returncode, [answer["file"] for answer in json.loads(done.stdout)]) == (2, [str(good)])


def test_a_picture_is_not_read_before_its_turn(
    bundle: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, one at a time is in memory."""
    paths, read, opened = [picture(tmp_path, number) for number in range(3)], [], []
    decode = Predictor.decode
    monkeypatch.setattr(images, "read_picture", lambda path, limit: read.append(path) or path.read_bytes())
    monkeypatch.setattr(Predictor, "decode", lambda self, data: opened.append(len(read)) or decode(self, data))
    assert run("predict", *paths, "--bundle", bundle).returncode == 0
    assert (read, opened) == (paths, [1, 2, 3])


def test_names_cannot_speak_to_the_terminal(bundle: Path, tmp_path: Path, run: Any) -> None:
    path = picture(tmp_path, 0).rename(tmp_path / "\x1b[31m\n.png")
    done = run("predict", path, "--bundle", bundle)
    assert done.returncode == 0 and "\\x1b[31m\\n.png  " in done.stdout and "\x1b" not in done.stdout
    path.write_text("no picture")
    for name in (path, tmp_path / "\x1b]0;none", "--\x1b]0;none"):
        done = run("predict", name, "--bundle", bundle)
        assert_refused(done, 2, "\\x1b")
        assert "\x1b" not in done.stderr


def test_a_name_that_is_no_text(bundle: Path, tmp_path: Path, run: Any) -> None:
    path = picture(tmp_path, 0).rename(tmp_path / "\udcff.jpg")
    done = run("predict", path, "--bundle", bundle)
    assert done.returncode == 0 and "\\udcff.jpg" in done.stdout
    assert_refused(run("predict", tmp_path / "\udcfe.jpg", "--bundle", bundle), 2, "\\udcfe.jpg")


def test_a_server_that_is_down(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    image = picture(tmp_path, 0)
    assert_refused(run("predict", image, "--server", url), 1, f"A server must listen on {url}", "rayml serve BUNDLE")
    monkeypatch.setenv("RAYML_API_KEY", "")  # None, then.
    assert_refused(run("predict", image, "--server", url), 1, f"A server must listen on {url}", "rayml serve BUNDLE")
    monkeypatch.setenv("RAYML_API_KEY", "one\ntwo")
    assert_refused(run("predict", image, "--server", url), 2, "an API key must be", "not a file of keys")
    assert_refused(run("predict", image, "--server", "ftp://nonsense"), 2, "a server's address must be such as")
    assert_refused(run("predict", image), 2, "one of --bundle and --server is needed. Received: neither")
    assert_refused(run("predict", image, "--server", url, "--bundle", "x"), 2, "Received: both")


# --- the report


def test_the_report_of_a_run(tmp_path: Path, run: Any) -> None:
    folder = made.finished(tmp_path / "run", made.photos(tmp_path / "photos"))
    done = run("report", folder, "--data", tmp_path / "photos", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Wrote {tmp_path / 'page.html'} (")
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()
    done = run("report", folder, "--watch")
    assert (done.returncode, done.stderr) == (0, f"{folder / 'report.html'}: finished\n")
    assert_refused(run("report", tmp_path / "none"), 2, "RUN must be the folder of a search")
    assert_refused(run("report", tmp_path / "photos"), 2, "holds no run.json", "--watch waits for it")
    assert_refused(run("report", folder, "--out", tmp_path / "no" / "page.html"), 2, "--out must be a file")


# --- data, help and how it is called


def test_the_sample(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayml import sample

    monkeypatch.setattr(sample, "draw", lambda label, seed: draw(label, seed, size_px=16))  # 800 pictures: small ones
    done = run("data", "sample", tmp_path / "photos")
    assert done.returncode == 0
    assert "Wrote 800 drawings" in done.stdout
    assert len(list((tmp_path / "photos").glob("train/*/*.jpg"))) == 600
    assert_refused(run("data", "sample", tmp_path / "photos"), 2, "expected a new or an empty folder")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["tune"],
        ["report"],
        ["evaluate"],
        ["verify"],
        ["predict"],
        ["serve"],
        ["demo"],
        ["data"],
        ["data", "sample"],
    ],
)
def test_help_of_every_command(command: list[str]) -> None:
    result: Result = CliRunner().invoke(cli.rayml, [*command, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")
    assert max(map(len, result.output.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tun"], "No such command 'tun'"),
        (["tune", "--epohcs", "3"], "No such option"),
        (["tune", "--epochs", "many"], "'many' is not a valid integer"),
        (["tune", "--size-inner", "10,x"], "must be whole numbers separated by commas. Received: 10,x"),
        (["tune", "--learning-rate", "fast"], "must be numbers separated by commas. Received: fast"),
        (["verify"], "Missing argument"),
        (["predict"], "Missing argument"),
        (["serve", "x", "--replicas", "0"], "must be auto or a whole number above 0. Received: 0"),
        (["serve", "x", "--port", "70000"], "70000 is not in the range"),
        (["verify", "x", "--engine", "tensorflow"], "'tensorflow' is not one of"),
    ],
)
def test_wrong_usage(run: Any, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: rayml")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_starts_without_tensorflow_and_ray() -> None:
    code = (
        "import sys, rayml.cli; print(sorted({'tensorflow', 'keras', 'ray', 'openvino', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    version = rayml("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("rayml, version ")
