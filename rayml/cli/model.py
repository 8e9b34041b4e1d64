"""`rayml evaluate`, `verify` and `predict`: what a bundle does, here or behind a server."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rayml.cli.tables import show_table
from rayml.errors import InputError, UsageError
from rayml.folders import printable

# A picture's file -> label, confidence in 0..1 and the probability of each class.
_Classify = Callable[[Path], tuple[str, float, dict[str, float]]]
# What to do about a picture that was not answered, by status; about most, the same.
_REMEDIES = {401: "Put the server's key into RAYML_API_KEY.", 429: "Try again when the server is less busy."}
_ANOTHER = "Save the picture anew as JPEG, PNG or WebP, or leave it out."
_MAX_SENT_BYTES = 2**30  # The most that a server can be set to take; what this one takes, it says.

engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "openvino", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What runs the model.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object or list on stdout.")
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


@click.command(short_help="Score a bundle on class folders of photos.")
@bundle_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@engine_option
@json_option
def evaluate(bundle: Path, directory: Path, engine: str, as_json: bool) -> None:
    """Score BUNDLE on DIR, a folder of class folders.

    \b
    rayml evaluate run/best photos/validation
    rayml evaluate run/best photos/test --json | jq .accuracy
    """
    from rayml.evaluation import evaluate as run
    from rayml.predictor import Predictor
    from rayml.progress import Progress

    predictor = Predictor(bundle, engine)
    predictor.check_golden()
    figures = run(predictor, directory, Progress())
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"accuracy {figures['accuracy']:.4f} on {figures['n']} pictures, loss {figures['loss']:.4f}")
    click.echo(
        f"expected calibration error {figures['ece']:.4f} ({figures['ece_uncalibrated']:.4f} without temperature), "
        f"{figures['images_per_s']} images/s"
    )
    show_table(
        {"class": "left", "precision": "right", "recall": "right", "n": "right"},
        [
            (label, f"{score['precision']:.3f}", f"{score['recall']:.3f}", str(score["n"]))
            for label, score in figures["per_class"].items()
        ],
    )


@click.command(short_help="Check a bundle's digests and answers.")
@bundle_argument
@engine_option
@json_option
def verify(bundle: Path, engine: str, as_json: bool) -> None:
    """Check every digest of BUNDLE and that this machine reproduces its golden pictures.

    \b
    rayml verify run/best
    rayml verify run/best --engine onnxruntime --json
    """
    from rayml.predictor import Predictor

    predictor = Predictor(bundle, engine)
    difference = predictor.check_golden()
    answer: dict[str, Any] = {
        "bundle": predictor.bundle.digest,
        "name": predictor.bundle.record.name,
        "version": predictor.bundle.record.version,
        "files": len(predictor.bundle.record.files),
        "golden": len(predictor.bundle.golden.pictures),
        "largest_difference": difference,
        "engine": predictor.engine.name,
        "precision": predictor.precision,
    }
    if as_json:
        click.echo(json.dumps(answer))
        return
    click.echo(
        f"{bundle} is whole: {answer['files']} files as sealed, {answer['golden']} golden pictures reproduced by "
        f"{answer['engine']} in {answer['precision']} (largest difference {difference:.1e} of the largest logit)"
    )


@click.command()
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Classify here with this bundle.")
@click.option("--server", metavar="URL", help="Ask this server instead; RAYML_API_KEY may hold its key.")
@engine_option
@json_option
def predict(images: tuple[Path, ...], bundle: Path | None, server: str | None, engine: str, as_json: bool) -> None:
    """Classify IMAGEs with a bundle, or with a running server.

    \b
    rayml predict shirt.jpg --bundle RUN/best
    rayml predict shirt.jpg --server http://127.0.0.1:8000 --json
    """
    if (bundle is None) == (server is None):
        raise UsageError(
            "one of --bundle and --server is needed. Received: " + ("both" if bundle else "neither"),
            "A search writes RUN/best: --bundle RUN/best. A server says its address: --server http://127.0.0.1:8000.",
        )
    for image in images:
        _check_opens(image)
    classify = _classify_here(bundle, engine) if bundle is not None else _classify_there(str(server))
    width = max(len(printable(str(image))) for image in images)
    answers: list[dict[str, Any]] = []
    try:
        for image in images:
            with _naming(image):
                label, confidence, probabilities = classify(image)
            if as_json:
                answers.append(
                    {"file": str(image), "label": label, "confidence": confidence, "probabilities": probabilities}
                )
            else:
                click.echo(f"{printable(str(image)):{width}}  {printable(label)}  {confidence:.3f}")
    finally:  # What was answered before a picture that cannot be read is not lost.
        if as_json:
            click.echo(json.dumps(answers))


def _classify_here(bundle: Path, engine: str) -> _Classify:
    from rayml.predictor import Predictor

    predictor = Predictor(bundle, engine)
    predictor.check_golden()

    def classify(image: Path) -> tuple[str, float, dict[str, float]]:
        (found,) = predictor.predict([_read(image, predictor.limits.max_bytes)])
        return found.label, found.confidence, found.probabilities

    return classify


def _classify_there(server: str) -> _Classify:
    from serving.client import Client

    client = Client(server, api_key=os.environ.get("RAYML_API_KEY") or None)

    def classify(image: Path) -> tuple[str, float, dict[str, float]]:
        reply = client.predict(_read(image, _MAX_SENT_BYTES))
        return reply["label"], reply["confidence"], reply["probabilities"]

    return classify


def _check_opens(path: Path) -> None:
    """Before a model is loaded for the first picture, the last one's name has to be right."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            path.open("rb").close()
        elif not os.access(path, os.R_OK):  # A pipe that was opened and closed has lost its writer.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _not_readable(path, error) from None


def _read(path: Path, max_bytes: int) -> bytes:
    from rayml.images import read_picture

    try:
        return read_picture(path, max_bytes)
    except OSError as error:
        raise _not_readable(path, error) from None


def _not_readable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"IMAGE must be a readable file. Received: {path} ({error.strerror})")


class _naming:
    """Says which file an input error is about: `images` and servers speak of bytes and know no names."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, InputError):
            hint = error.hint or _REMEDIES.get(error.status, _ANOTHER)
            message = f"{self._path}: {error.message}"
            raise InputError(message, status=error.status, code=error.code, hint=hint) from None
