"""Writing a bundle (see `rayml.bundle`): whole under its name, or nothing there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rayml import arrays, graph
from rayml.bundle import Bundle, Golden
from rayml.bundle_json import CARD, GOLDEN, GOLDEN_INDEX, GOLDEN_LOGITS, HEAD, MODEL, RECORD, Record, Training
from rayml.durable import sync_folder, write_durably
from rayml.errors import BundleError, UsageError
from rayml.head import HeadWeights
from rayml.model_card import CardNotes, model_card


@dataclass(frozen=True, eq=False)
class BundleContents:
    """All that `write_bundle` puts into a bundle.

    Arguments:
        name, version, classes, preprocessing, image_size_px, backbone_name, weights_sha256, dropout, training,
            metrics, temperature, created: as in `bundle_json.Record`; `created` empty means now.
        notes: what the model card says beyond that.
        model: ONNX from `graph.attach_head`.
        head: what was attached.
        golden: pictures, with logits from the training path, which is Keras', not from the engine that is to be
            checked; for a backbone in int8 there is no other path than an engine.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: str
    image_size_px: int
    backbone_name: str
    weights_sha256: str
    dropout: float
    training: Training
    metrics: Mapping[str, Any]
    temperature: float
    model: bytes = field(repr=False)
    head: HeadWeights = field(repr=False)
    golden: Golden = field(repr=False)
    version: int = 1
    created: str = ""
    notes: CardNotes = field(default_factory=CardNotes)


def write_bundle(path: str | Path, contents: BundleContents) -> Bundle:
    """Write a bundle: whole under its name, or nothing there.

    Everything is written into a hidden folder beside it, forced to disk, opened and verified as any reader would, and
    then renamed in one step (POSIX `rename`). A writer that is killed leaves at most that hidden folder,
    `.NAME.partial-...`, which can be deleted.

    Arguments:
        path: a folder that does not exist yet; its parent does.
        contents: what to write.

    Raises:
        UsageError: something is at `path` already.
        BundleError: the contents do not belong together, or the disk refused.
    """
    target = Path(path).absolute()
    if os.path.lexists(target):
        raise UsageError(f"a new folder was expected. Received: {target}, which exists", "choose another name")
    files = _files(contents)
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(8)}")
    try:
        partial.mkdir()
        (partial / GOLDEN).mkdir()
        for name, data in files.items():
            write_durably(partial / name, data)
        sync_folder(partial / GOLDEN)
        sync_folder(partial)
        written = Bundle.open(partial)
        partial.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise BundleError(
            f"{target} must be writable. Received: {reason}", "free space or choose another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial)
    return replace(written, path=target.resolve())


def _files(contents: BundleContents) -> dict[str, bytes]:
    """Every file of the bundle by its path, `bundle.json` last."""
    golden, c = contents.golden, contents
    names = [f"{i:03d}.png" for i in range(len(golden.pictures))]
    if golden.logits.shape != (len(names), len(c.classes)):
        raise BundleError(
            f"{GOLDEN_LOGITS} must be {(len(names), len(c.classes))}, a row for each picture. "
            f"Received: {golden.logits.shape}"
        )
    index = {
        "classes": list(c.classes),
        "pictures": [
            {"file": name, "label": c.classes[int(best)]}
            for name, best in zip(names, golden.logits.argmax(axis=1), strict=True)
        ],
    }
    files = {
        MODEL: c.model,
        HEAD: c.head.to_npz(),
        GOLDEN_LOGITS: arrays.write_npy(golden.logits),
        GOLDEN_INDEX: json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n",
        **{f"{GOLDEN}/{name}": data for name, data in zip(names, golden.pictures, strict=True)},
    }

    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    unsealed = Record(
        name=c.name,
        version=c.version,
        created=c.created or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        classes=c.classes,
        preprocessing=c.preprocessing,
        image_size_px=c.image_size_px,
        backbone_name=c.backbone_name,
        weights_sha256=c.weights_sha256,
        size_inner=c.head.size_inner,
        dropout=c.dropout,
        training=c.training,
        metrics=c.metrics,
        temperature=c.temperature,
        opset=graph.check_graph(c.model).opset,
        files={**digests, CARD: "0" * 64},  # The card is made from all but `files`, and is one of them.
    )
    files[CARD] = model_card(unsealed, c.notes).encode()
    sealed = replace(unsealed, files={**digests, CARD: hashlib.sha256(files[CARD]).hexdigest()})
    files[RECORD] = sealed.to_json()
    return files
