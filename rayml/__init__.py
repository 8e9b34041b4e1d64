"""Folders of labelled photos -> features once -> a Ray Tune search -> a sealed bundle -> Ray Serve over HTTP.

The names below are the public ones; each is imported when it is first used, so that importing rayml loads neither
TensorFlow nor an engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayml.bundle import Bundle
    from rayml.errors import (
        BundleError,
        DataError,
        InputError,
        RaymlError,
        RegistryError,
        SearchError,
        ServerError,
        UsageError,
        WeightsError,
    )
    from rayml.head import make_model
    from rayml.predictor import Prediction, Predictor

_HOMES = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "DataError": "errors",
    "InputError": "errors",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "RaymlError": "errors",
    "RegistryError": "errors",
    "SearchError": "errors",
    "ServerError": "errors",
    "UsageError": "errors",
    "WeightsError": "errors",
    "make_model": "head",
}

__all__ = [
    "Bundle",
    "BundleError",
    "DataError",
    "InputError",
    "Prediction",
    "Predictor",
    "RaymlError",
    "RegistryError",
    "SearchError",
    "ServerError",
    "UsageError",
    "WeightsError",
    "make_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rayml' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rayml.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
