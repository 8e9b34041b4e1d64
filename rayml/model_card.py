"""`MODEL_CARD.md`: what a person should know before relying on a bundle (after Mitchell et al. 2019, FAccT)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rayml.bundle_json import Record


def model_card(record: Record) -> str:
    """The card's Markdown, from what `bundle.json` says (`files` is not read)."""
    train = record.training
    shown = {key: value for key, value in record.metrics.items() if isinstance(value, int | float)}
    lines = [
        f"# {record.name}, version {record.version}",
        "",
        f"Puts a photo into one of {len(record.classes)} classes: {', '.join(map(_text, record.classes))}.",
        "",
        "## How it was made",
        "",
        f"A frozen `{record.backbone_name}` at {record.image_size_px} px (weights sha256 "
        f"`{record.weights_sha256}`), then Dense({record.size_inner}, relu) and Dense({len(record.classes)}); "
        f"dropout {record.dropout:g}. Trained for {train.epochs} epochs at learning rate {train.learning_rate:g}, "
        f"seed {train.seed}, mode {train.mode}. Preprocessing: `{record.preprocessing}`.",
        "",
        f"Photos: digest `{train.data_digest}`. Created {record.created}.",
        "",
        "## What it scored",
        "",
        "On the validation photos, by which the best epoch was chosen as well, so expect a little less on new photos. "
        f"Confidences are softmax(logits / {record.temperature:.4g}); the temperature was fitted on the same photos.",
        "",
        *(f"- {_text(key)}: {_number(value)}" for key, value in shown.items()),
    ]
    table = record.metrics.get("per_class")
    if isinstance(table, Mapping):
        lines += ["", "| class | precision | recall | photos |", "|---|---|---|---|"]
        for name in record.classes:
            row: Any = table.get(name)
            if isinstance(row, Mapping):
                cells = (_number(row.get(key, "")) for key in ("precision", "recall", "n"))
                lines.append(f"| {_text(name)} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Limits",
        "",
        "- Every picture gets one of these classes, also one that shows none of them.",
        "- The confidence is honest on photos like those it was fitted on, not on others.",
        "- Precision and recall of a class with few photos say little.",
        "",
        "## How to use it",
        "",
        "```",
        "rayml verify BUNDLE",
        "rayml predict photo.jpg --bundle BUNDLE",
        "rayml serve BUNDLE",
        "```",
        "",
        "The bundle's digest, which a server sends as `x-rayml-bundle`, is the sha256 of `bundle.json`, which holds "
        "the sha256 of every other file.",
        "",
    ]
    return "\n".join(lines)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _text(name: str) -> str:
    """A name that stays text in Markdown and in its table."""
    return "".join(f"\\{char}" if char in r"\`*_[]<>|#&" else char for char in name)
