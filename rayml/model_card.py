"""`MODEL_CARD.md`: what a person should know before relying on a bundle (after Mitchell et al. 2019, FAccT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayml.backbones import TINY
from rayml.bundle_json import Record
from rayml.folders import printable
from rayml.metrics import wilson_interval

LICENCE_FILES = ("license", "licence", "copying")
_LICENCE_BYTES = 4096  # The title stands at the top.
_LICENCE_CHARACTERS = 160
_FEW_PHOTOS = 20  # Below, the 95 % interval of a share of one half is wider than 0.4.
_PAIRS = 5


@dataclass(frozen=True)
class CardNotes:
    """What the card says and `bundle.json` does not hold; each may be unknown.

    Arguments:
        counts: photos by split and class.
        weights: the backbone's: `imagenet`, `none`, `builtin` or a file's name; empty where it is not known.
        data_licence: what `data_licence` found.
        versions: by package.
        trained_layers: how many of the backbone's last layers were trained with the head.
        augmentation: of the training pictures, as `rayml.augmentation.Augmentation` writes it.
        precision: what the backbone computes in.
    """

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    weights: str = ""
    data_licence: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    trained_layers: int = 0
    augmentation: str = ""
    precision: str = "float32"


def data_licence(root: Path) -> str:
    """The name and the first two lines of the licence file beside the photos; "" where there is none."""
    try:
        found = sorted(path for path in root.iterdir() if path.stem.lower() in LICENCE_FILES and path.is_file())
        if not found:
            return ""
        with found[0].open("rb") as file:
            text = file.read(_LICENCE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    title = "".join(char for char in ": ".join(lines[:2]) if char.isprintable())
    name = printable(found[0].name)
    return f"{name} ({title[:_LICENCE_CHARACTERS]})" if title else name


def model_card(record: Record, notes: CardNotes | None = None) -> str:
    """The card's Markdown, from what `bundle.json` says (`files` is not read) and from the notes."""
    notes = notes or CardNotes()
    lines = [
        f"# {record.name}, version {record.version}",
        "",
        f"Puts a photo into one of {len(record.classes)} classes: {', '.join(map(_text, record.classes))}.",
        *_made(record, notes),
        *_intended(),
        *_data(record, notes),
        *_scores(record),
        *_by_class(record),
        *_calibration(record),
        *_limits(record),
        *_licences(record, notes),
        *_use(record),
        *_provenance(record, notes),
        "",
    ]
    return "\n".join(lines)


def _made(record: Record, notes: CardNotes) -> list[str]:
    train = record.training
    trained = f", its last {notes.trained_layers} layers trained further" if notes.trained_layers else ""
    changed = f", each picture of a step changed a little ({_text(notes.augmentation)})" if notes.augmentation else ""
    return [
        "",
        "## How it was made",
        "",
        f"A {'' if trained else 'frozen '}`{record.backbone_name}` at {record.image_size_px} px"
        + (f" with the weights {_code(notes.weights)}" if notes.weights else "")
        + (f", quantized to {notes.precision} before the head learned from it" if notes.precision != "float32" else "")
        + trained
        + f", then Dense({record.size_inner}, relu) and Dense({len(record.classes)}); dropout {record.dropout:g}. "
        f"Trained for {train.epochs} epochs at learning rate {train.learning_rate:g}{changed}, seed {train.seed}, "
        f"mode {train.mode}; chosen by validation accuracy from a search over sizes and learning rates.",
    ]


def _intended() -> list[str]:
    return [
        "",
        "## What it is for",
        "",
        "Sorting photos like those that it learned from, where a person or a later step can put a mistake right. It "
        "is not for decisions about people, nor for photos of another kind, camera or place without measuring it "
        "there first: `rayml evaluate BUNDLE PHOTOS`.",
    ]


def _data(record: Record, notes: CardNotes) -> list[str]:
    lines = ["", "## Photos", "", f"Digest of the data: `{record.training.data_digest}`."]
    splits = list(notes.counts)
    if not splits:
        return [*lines, "How many of each class is not recorded."]
    rows = [(name, *(str(notes.counts[split].get(name, 0)) for split in splits)) for name in record.classes]
    total = ("all", *(str(sum(notes.counts[split].values())) for split in splits))
    return [*lines, "", *_table(("class", *splits), [*rows, total])]


def _scores(record: Record) -> list[str]:
    metrics = record.metrics
    shown = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    lines = [
        "",
        "## What it scored",
        "",
        "On the validation photos, by which the trial and its epoch were chosen as well, so expect a little less on "
        "new photos.",
        "",
        *(f"- {_text(key)}: {_number(value)}" for key, value in shown.items()),
    ]
    n, accuracy = shown.get("n"), shown.get("accuracy")
    if isinstance(n, int) and n > 0 and accuracy is not None and 0 <= accuracy <= 1:
        low, high = wilson_interval(round(accuracy * n), n)
        lines.append(f"- 95 % interval of the accuracy, for {n} photos: {low:.3f} to {high:.3f}")
    return lines


def _by_class(record: Record) -> list[str]:
    table = record.metrics.get("per_class")
    if not isinstance(table, Mapping):
        return []
    rows = []
    for name in record.classes:
        row: Any = table.get(name)
        if isinstance(row, Mapping):
            rows.append((name, *(_number(row.get(key, "")) for key in ("precision", "recall", "n"))))
    lines = ["", "### By class", "", *_table(("class", "precision", "recall", "photos"), rows)]
    if pairs := _confused(record):
        lines += ["", "Mistaken most often: " + "; ".join(pairs) + "."]
    return lines


def _confused(record: Record) -> list[str]:
    """The most frequent mistakes in words; none where neither they nor a confusion matrix are recorded."""
    if listed := record.metrics.get("mistaken"):  # By `metrics.frequent_mistakes`, where the matrix is too large.
        return [f"{_text(true)} for {_text(answer)} ({count})" for true, answer, count in listed[:_PAIRS]]
    matrix, classes = record.metrics.get("confusion"), record.classes
    if not isinstance(matrix, Sequence) or len(matrix) != len(classes):
        return []
    wrong = [
        (-count, i, j)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and isinstance(count, int) and count > 0 and j < len(classes)
    ]
    return [f"{_text(classes[i])} for {_text(classes[j])} ({-count})" for count, i, j in sorted(wrong)[:_PAIRS]]


def _calibration(record: Record) -> list[str]:
    line = (
        f"Confidences are softmax(logits / {record.temperature:.4g}); the temperature was fitted on the validation "
        "photos (Guo et al. 2017)."
    )
    before, after = record.metrics.get("ece_uncalibrated"), record.metrics.get("ece")
    if isinstance(before, float) and isinstance(after, float):
        line += (
            f" On them the expected calibration error, the mean distance of confidence from accuracy, is {after:.4f}; "
            f"without the temperature it would be {before:.4f}."
        )
    return ["", "## How sure it is", "", line]


def _limits(record: Record) -> list[str]:
    lines = [
        "",
        "## Limits",
        "",
        "- Every picture gets one of these classes, also one that shows none of them.",
        "- The confidence is honest on photos like those it was fitted on, not on others.",
        "- Precision and recall of a class with few photos say little.",
    ]
    table = record.metrics.get("per_class")
    if isinstance(table, Mapping):
        counts = {name: table[name].get("n", 0) for name in record.classes if isinstance(table.get(name), Mapping)}
        few = [f"{_text(name)} ({n})" for name, n in counts.items() if isinstance(n, int) and n < _FEW_PHOTOS]
        if few:
            lines[-1] = f"- Figures of classes with under {_FEW_PHOTOS} validation photos say little: {', '.join(few)}."
    return [*lines, "- Who and what the photos leave out is not measured here."]


def _licences(record: Record, notes: CardNotes) -> list[str]:
    data = (
        f"the folder of photos holds {_text(notes.data_licence)}"
        if notes.data_licence
        else "unknown: no licence file lay beside the photos"
    )
    return [
        "",
        "## Licences",
        "",
        f"- Backbone's weights: {_weights_licence(record.backbone_name, notes.weights)}",
        f"- Photos: {data}.",
        "- The head's weights were learned from the photos; what that means for their use, the photos' licence says.",
    ]


def _weights_licence(backbone: str, weights: str) -> str:
    if backbone == TINY:
        return "made for rayml from drawings, under rayml's own licence (MIT)."
    if weights == "none":
        return "random numbers, nothing that a licence could cover."
    if weights == "imagenet":
        return (
            "those that Keras publishes, learned from ImageNet. Keras' documentation names the licence of each "
            "network's; ImageNet's pictures were given for research that is not commercial."
        )
    return "unknown: they were read from a file." if weights else "unknown."


def _use(record: Record) -> list[str]:
    return [
        "",
        "## How to use it",
        "",
        "```",
        "rayml verify BUNDLE",
        "rayml predict photo.jpg --bundle BUNDLE",
        "rayml serve BUNDLE",
        "curl --data-binary @photo.jpg -H 'content-type: image/jpeg' http://127.0.0.1:8000/predict",
        "```",
        "",
        "```python",
        "from rayml import Predictor",
        "",
        'answer = Predictor("BUNDLE").predict([open("photo.jpg", "rb").read()])[0]',
        "print(answer.label, answer.confidence)",
        "```",
        "",
        f"Without rayml: `model.onnx` takes uint8 (N, {record.image_size_px}, {record.image_size_px}, 3) and gives "
        f"float32 logits (N, {len(record.classes)}) in the order of the classes in `bundle.json`. Pixels are to be "
        f"made as `{record.preprocessing}` says; `golden/` holds pictures and the logits that have to come out.",
    ]


def _provenance(record: Record, notes: CardNotes) -> list[str]:
    lines = [
        "",
        "## Which one it is",
        "",
        f"Created {record.created}. Weights of the backbone: sha256 `{record.weights_sha256}`.",
        "",
        "The bundle's digest, which a server sends as `x-rayml-bundle`, is the sha256 of `bundle.json`, which holds "
        "the sha256 of every other file.",
    ]
    if notes.versions:
        lines += ["", "Made with " + ", ".join(f"{_text(k)} {_text(v)}" for k, v in notes.versions.items()) + "."]
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(map(_text, columns))} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(map(_text, row))} |" for row in rows),
    ]


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    """A file's name as code; its own backticks cannot end it."""
    return f"`{printable(text).replace('`', chr(39))}`"


def _text(name: str) -> str:
    """A name that stays text in Markdown and in its table."""
    return "".join(f"\\{char}" if char in r"\`*_[]<>|#&" else char for char in name)
