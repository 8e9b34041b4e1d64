"""`bundle.json`, format 1: what a bundle says about itself, written and read strictly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rayml.errors import BundleError

FORMAT = 1
# The first rayml that reads format 1, and the one that this reader is.
READER_VERSION = (0, 1)
# 10,000 classes, whose names stand in it twice, with the figures of each, take up to 10 MB.
MAX_JSON_BYTES = 1 << 24
MAX_JSON_DEPTH = 32  # What rayml writes is four deep.
MODES = ("features", "end-to-end")

MODEL, HEAD, CARD, RECORD = "model.onnx", "head.npz", "MODEL_CARD.md", "bundle.json"
GOLDEN, GOLDEN_INDEX, GOLDEN_LOGITS = "golden", "golden/index.json", "golden/logits.npy"
GOLDEN_PICTURE = re.compile(r"golden/[A-Za-z0-9_-]{1,64}\.png")

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # stands in URLs and folder names
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FLOOR = re.compile(r">=(\d{1,4})\.(\d{1,4})")
MAX_CLASSES = 10_000
MAX_NAME_CHARACTERS = 200  # of a class
_UPDATE = "Update the repository of rayml, and install it again."


@dataclass(frozen=True)
class Training:
    """How the head came to be.

    Arguments:
        learning_rate: Adam's, above 0.
        epochs: up to and including the chosen one, at least 1.
        seed: of the run.
        data_digest: sha256 hex of the photos, `data.Manifest.digest`.
        mode: "features" or "end-to-end".
    """

    learning_rate: float
    epochs: int
    seed: int
    data_digest: str
    mode: str


@dataclass(frozen=True)
class Record:
    """The content of `bundle.json`; every field is one of its keys, checked on construction.

    Arguments:
        name: 1 to 64 letters, digits, `.`, `_`, `-`.
        version: at least 1.
        created: UTC, e.g. "2026-01-31T12:00:00Z".
        classes: the C names in the order of the logits, at least 2, no two alike.
        preprocessing: `images.preprocessing_id` of the pictures that the head was trained on.
        image_size_px: the key `image_size`.
        backbone_name: the key `backbone.name`.
        weights_sha256: the key `backbone.weights_sha256`.
        size_inner: the key `head.size_inner`.
        dropout: the key `head.dropout`, 0 up to but without 1.
        training: how the head came to be.
        metrics: what it scored; any JSON object of finite numbers, whole ones below 2**63 in size.
        temperature: divides the logits before softmax, 1e-6 to 1e6; rayml's own are 0.05 to 20.
        opset: the key `requires.opset`.
        files: sha256 hex of every other file of the bundle by its relative posix path.

    Raises:
        BundleError: a field is not as it has to be; the message names its key.
    """

    name: str
    version: int
    created: str
    classes: tuple[str, ...]
    preprocessing: str
    image_size_px: int
    backbone_name: str
    weights_sha256: str
    size_inner: int
    dropout: float
    training: Training
    metrics: Mapping[str, Any]
    temperature: float
    opset: int
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        train = self.training
        _expect("name", self.name, _is_text(NAME_PATTERN), "1 to 64 letters, digits, '.', '_' or '-'")
        _expect("version", self.version, _is_int(1), "a whole number from 1")
        _expect("created", self.created, _is_text(_CREATED), "a UTC time such as 2026-01-31T12:00:00Z")
        _expect("classes", list(self.classes), _is_classes, "2 or more different names, none empty")
        _expect("preprocessing", self.preprocessing, _is_line, "a line of text")
        _expect("image_size", self.image_size_px, _is_int(1), "a whole number from 1")
        _expect("backbone.name", self.backbone_name, _is_text(NAME_PATTERN), "a backbone's name")
        _expect("backbone.weights_sha256", self.weights_sha256, _is_text(_SHA256), "64 hexadecimal digits")
        _expect("head.size_inner", self.size_inner, _is_int(1), "a whole number from 1")
        _expect("head.dropout", self.dropout, lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
        _expect("training.learning_rate", train.learning_rate, lambda v: _is_number(v) and v > 0, "a number above 0")
        _expect("training.epochs", train.epochs, _is_int(1), "a whole number from 1")
        _expect("training.seed", train.seed, _is_int(None), "a whole number")
        _expect("training.data_digest", train.data_digest, _is_text(_SHA256), "64 hexadecimal digits")
        _expect("training.mode", train.mode, lambda v: v in MODES, " or ".join(MODES))
        _expect("metrics", dict(self.metrics), _is_finite_json, "JSON with finite numbers")
        _expect("temperature", self.temperature, _is_temperature, "a number from 1e-6 to 1e6")
        _expect("requires.opset", self.opset, _is_int(1), "a whole number from 1")
        _check_files(self.files)

    def to_json(self) -> bytes:
        """`bundle.json`'s bytes: UTF-8, indented, ends in a newline."""
        train = self.training
        content = {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "classes": list(self.classes),
            "preprocessing": self.preprocessing,
            "image_size": self.image_size_px,
            "backbone": {"name": self.backbone_name, "weights_sha256": self.weights_sha256},
            "head": {"size_inner": self.size_inner, "dropout": self.dropout},
            "training": {
                "learning_rate": train.learning_rate,
                "epochs": train.epochs,
                "seed": train.seed,
                "data_digest": train.data_digest,
                "mode": train.mode,
            },
            "metrics": dict(self.metrics),
            "temperature": self.temperature,
            "files": dict(sorted(self.files.items())),
            "requires": {"rayml": f">={READER_VERSION[0]}.{READER_VERSION[1]}", "opset": self.opset},
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Record:
        """Read `bundle.json`.

        Raises:
            BundleError: not strict JSON, a newer format, a key missing, unknown or wrong.
        """
        content = strict_json(data, RECORD)
        if not isinstance(content, dict) or not _is_int(1)(content.get("format")):
            raise BundleError(f"{RECORD} must say which format it has. Received: none")
        if content["format"] != FORMAT:
            raise BundleError(f"{RECORD}: format {FORMAT} was expected. Received: {content['format']}", _UPDATE)
        keys = {
            "": "format name version created classes preprocessing image_size backbone head training metrics "
            "temperature files requires",
            "backbone": "name weights_sha256",
            "head": "size_inner dropout",
            "training": "learning_rate epochs seed data_digest mode",
            "requires": "rayml opset",
        }
        for key, names in keys.items():
            part = content[key] if key else content
            if not isinstance(part, dict) or set(part) != set(names.split()):
                received = sorted(part) if isinstance(part, dict) else type(part).__name__
                where = f"{RECORD}: {key}" if key else RECORD
                raise BundleError(f"{where} must have the keys {', '.join(names.split())}. Received: {received}")
        _expect("classes", content["classes"], _is_list, "a list of names")
        _expect("metrics", content["metrics"], _is_object, "a JSON object")
        _expect("files", content["files"], _is_object, "a JSON object")
        _check_reader(content["requires"]["rayml"])
        return cls(
            name=content["name"],
            version=content["version"],
            created=content["created"],
            classes=tuple(content["classes"]),
            preprocessing=content["preprocessing"],
            image_size_px=content["image_size"],
            backbone_name=content["backbone"]["name"],
            weights_sha256=content["backbone"]["weights_sha256"],
            size_inner=content["head"]["size_inner"],
            dropout=content["head"]["dropout"],
            training=Training(**content["training"]),
            metrics=content["metrics"],
            temperature=content["temperature"],
            opset=content["requires"]["opset"],
            files=content["files"],
        )


def strict_json(data: bytes, file: str) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN or infinity, no key twice, and not so deep that a recursion over it ends.

    Arguments:
        data: the file's bytes.
        file: its name, for the message.

    Raises:
        BundleError: larger than `MAX_JSON_BYTES`, deeper than `MAX_JSON_DEPTH`, or not that.
    """
    if len(data) > MAX_JSON_BYTES:
        raise BundleError(f"{file} must have at most {MAX_JSON_BYTES} bytes. Received: {len(data)}")

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} must be strict JSON. Received: {str(error)[:200]}") from None
    layer = [value]
    for _ in range(MAX_JSON_DEPTH):
        layer = [
            entry
            for part in layer
            if isinstance(part, dict | list)
            for entry in (part.values() if isinstance(part, dict) else part)
        ]
    if layer:
        raise BundleError(f"{file} must be nested at most {MAX_JSON_DEPTH} deep. Received: deeper")
    return value


def _check_reader(floor: object) -> None:
    found = _FLOOR.fullmatch(floor) if isinstance(floor, str) else None
    if found is None:
        raise BundleError(f"{RECORD}: requires.rayml must be such as '>=0.1'. Received: {str(floor)[:100]!r}")
    if (int(found[1]), int(found[2])) > READER_VERSION:
        raise BundleError(f"{RECORD}: requires rayml {found[0]}. Received: a reader of {READER_VERSION}", _UPDATE)


def _check_files(files: Mapping[str, str]) -> None:
    for path, digest in files.items():
        if path not in (MODEL, HEAD, CARD, GOLDEN_INDEX, GOLDEN_LOGITS) and not GOLDEN_PICTURE.fullmatch(path):
            raise BundleError(f"{RECORD}: files must name files of format {FORMAT} only. Received: {path[:200]!r}")
        _expect(f"files[{path!r}]", digest, _is_text(_SHA256), "64 hexadecimal digits")
    missing = [path for path in (MODEL, HEAD, CARD, GOLDEN_INDEX, GOLDEN_LOGITS) if path not in files]
    if missing:
        raise BundleError(f"{RECORD}: files must name {missing[0]}. Received: it does not")


def _expect(key: str, value: object, check: Callable[[Any], bool], expected: str) -> None:
    if not check(value):
        raise BundleError(f"{RECORD}: {key} must be {expected}. Received: {value!r:.200}")


def _is_int(minimum: int | None) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and abs(value) < 1 << 63 and (minimum is None or value >= minimum)


def _is_text(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # NaN is below nothing.


def _is_temperature(value: Any) -> bool:
    return _is_number(value) and 1e-6 <= value <= 1e6  # So that no logit becomes infinite by it.


def _is_line(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARACTERS and value.isprintable()


def _is_classes(value: list[object]) -> bool:
    return 2 <= len(value) <= MAX_CLASSES and all(_is_line(name) for name in value) and len(set(value)) == len(value)


def _is_finite_json(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_finite_json(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(_is_finite_json(entry) for entry in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 1 << 63  # What a float can hold, and other languages' numbers too.
    return value is None or isinstance(value, str)
