"""`rayml evaluate`, `verify` and `predict`: what a bundle does, here or behind a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from rayml.cli.tables import show_table
from rayml.errors import InputError, UsageError

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

    figures = run(Predictor(bundle, engine), directory, Progress())
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
    }
    if as_json:
        click.echo(json.dumps(answer))
        return
    click.echo(
        f"{bundle} is whole: {answer['files']} files as sealed, {answer['golden']} golden pictures reproduced by "
        f"{answer['engine']} (largest difference {difference:.1e} of the largest logit)"
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
        raise UsageError("one of --bundle and --server is needed. Received: " + ("both" if bundle else "neither"))
    contents = [_read(image) for image in images]
    answers: list[dict[str, Any]] = []
    if bundle is not None:
        from rayml.predictor import Predictor

        predictor = Predictor(bundle, engine)
        for image, content in zip(images, contents, strict=True):
            with _naming(image):
                (found,) = predictor.predict([content])
            answers.append(_answer(image, found.label, found.confidence, found.probabilities))
    else:
        from serving.client import Client

        client = Client(str(server), api_key=os.environ.get("RAYML_API_KEY"))
        for image, content in zip(images, contents, strict=True):
            with _naming(image):
                reply = client.predict(content)
            answers.append(_answer(image, reply["label"], reply["confidence"], reply["probabilities"]))
    if as_json:
        click.echo(json.dumps(answers))
        return
    width = max(len(answer["file"]) for answer in answers)
    for answer in answers:
        click.echo(f"{answer['file']:{width}}  {answer['label']}  {answer['confidence']:.3f}")


def _answer(image: Path, label: str, confidence: float, probabilities: dict[str, float]) -> dict[str, Any]:
    return {"file": str(image), "label": label, "confidence": confidence, "probabilities": probabilities}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"IMAGE must be a readable file. Received: {path} ({error.strerror})") from None


class _naming:
    """Says which file an input error is about: `images` and servers speak of bytes and know no names."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, InputError):
            raise InputError(
                f"{self._path}: {error.message}", status=error.status, code=error.code, hint=error.hint
            ) from None
