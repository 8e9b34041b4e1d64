"""A model and two of its predictions, whose logits and probabilities nobody can confuse."""

from __future__ import annotations

from rayml.predictor import Prediction
from serving.protocols.base import ModelFacts, ModelIdentity

CLASSES = ("hat", "shoe")
IDENTITY = ModelIdentity(name="shirts", version="3", bundle="ab" * 32)
FACTS = ModelFacts(IDENTITY, CLASSES, image_size_px=4)
PREDICTIONS = (
    Prediction("hat", 0.75, {"hat": 0.75, "shoe": 0.25}, (2.5, -7.0)),
    Prediction("shoe", 0.875, {"hat": 0.125, "shoe": 0.875}, (-3.5, 9.0)),
)
