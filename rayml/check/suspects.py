"""Labels that a trained bundle does not believe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rayml.check.findings import Finding
from rayml.check.layout import Place
from rayml.errors import InputError
from rayml.predictor import Predictor
from rayml.progress import Advance

SURE = 0.9  # Confidence in another class ...
DOUBT = 0.05  # ... and in the photo's own, from which on the label is suspected.
_BATCH = 32  # Pictures decoded side by side before the engine sees them.


def suspect_labels(predictor: Predictor, root: Path, places: Sequence[Place], advance: Advance) -> Iterable[Finding]:
    """Photos that the bundle puts into another class with great confidence, the surest first.

    A bundle has learned the labels of its own training photos, wrong ones as well, so what it still doubts there weighs
    more than on other photos; that it believes a label proves nothing.

    Arguments:
        predictor: the bundle.
        root: the checked folder.
        places: photos that can be decoded, of any class.
        advance: told of each.
    """
    known = predictor.bundle.record.classes
    foreign = sorted({place.label for place in places} - set(known))
    if foreign:
        yield Finding("unknown_class", (), f"the bundle does not know {', '.join(foreign)}; not compared with it")
    suspects: list[tuple[float, Finding]] = []
    with ThreadPoolExecutor() as pool:
        for at in range(0, len(places), _BATCH):
            batch = [place for place in places[at : at + _BATCH] if place.label in known]
            pixels = list(pool.map(lambda place: _pixels(predictor, root / place.path), batch))
            read = [(place, picture) for place, picture in zip(batch, pixels, strict=True) if picture is not None]
            if read:
                answers = predictor.answers(predictor.predict_pixels(np.stack([picture for _, picture in read])))
                for (place, _), answer in zip(read, answers, strict=True):
                    own = answer.probabilities[place.label]
                    if answer.confidence >= SURE and own <= DOUBT:
                        detail = f"looks like {answer.label} ({answer.confidence:.2f}), not {place.label} ({own:.2f})"
                        suspects.append((answer.confidence, Finding("suspect_label", (place.path,), detail)))
            advance(min(_BATCH, len(places) - at))
    yield from (finding for _, finding in sorted(suspects, key=lambda pair: (-pair[0], pair[1].paths)))


def _pixels(predictor: Predictor, path: Path) -> NDArray[np.uint8] | None:
    try:
        return predictor.decode(path.read_bytes())
    except (InputError, OSError):  # Gone or changed since it was looked at.
        return None
