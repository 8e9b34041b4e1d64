"""Augmentation: each picture of a training step a little changed, by Keras' own layers.

Written as one line, which travels through settings and records: `flip,shift=0.1,zoom=0.1,rotation=0.05`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayml.errors import UsageError

EXAMPLE = "flip,shift=0.1,zoom=0.1,rotation=0.05"
_SHARES = ("shift", "zoom", "rotation")


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a picture; each kind is drawn anew for each picture and step.

    Arguments:
        flip: mirror half of the pictures, left to right.
        shift: move by up to this share of the side, in both directions, 0 to below 1.
        zoom: in or out by up to this share, the aspect kept, 0 to below 1.
        rotation: turn by up to this share of a full turn, either way, 0 to 0.5.

    Raises:
        UsageError: a share out of range.
    """

    flip: bool = False
    shift: float = 0.0
    zoom: float = 0.0
    rotation: float = 0.0

    def __post_init__(self) -> None:
        for name in _SHARES:
            value = getattr(self, name)
            within = 0 <= value <= 0.5 if name == "rotation" else 0 <= value < 1
            if not within:
                range_ = "0 to 0.5, a share of a full turn" if name == "rotation" else "at least 0 and below 1"
                raise UsageError(f"augment: {name} must be {range_}. Received: {value}")

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """Read `flip,shift=0.1`: kinds separated by commas, each once; the empty text is no augmentation.

        Raises:
            UsageError: an unknown kind, one that stands twice, or a share that is no number or out of range.
        """
        found: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = part.partition("=")
            hint = f"For example: {EXAMPLE}"
            if name not in ("flip", *_SHARES) or name in found or (name == "flip") != (part == "flip"):
                raise UsageError(
                    f"augment must be of flip, shift=SHARE, zoom=SHARE, rotation=SHARE, each once. Received: {text}",
                    hint,
                )
            try:
                found[name] = True if name == "flip" else float(value)
            except ValueError:
                raise UsageError(f"augment: {name} must be a number. Received: {value or 'nothing'}", hint) from None
        return cls(**found)

    def __str__(self) -> str:
        shares = [f"{name}={getattr(self, name):g}" for name in _SHARES if getattr(self, name)]
        return ",".join([*(["flip"] if self.flip else []), *shares])

    def layers(self) -> list[Any]:
        """The Keras layers, in the order in which they are applied to float32 pixels (N, H, W, 3)."""
        from keras import layers

        # What comes into view is the border's own colour: photos of goods lie on plain grounds more often than not.
        fill = {"fill_mode": "nearest"}
        made = []
        if self.flip:
            made.append(layers.RandomFlip("horizontal", seed=0))
        if self.shift:
            made.append(layers.RandomTranslation(self.shift, self.shift, seed=0, **fill))
        if self.zoom:
            made.append(layers.RandomZoom(self.zoom, seed=0, **fill))
        if self.rotation:
            made.append(layers.RandomRotation(self.rotation, seed=0, **fill))
        return made
