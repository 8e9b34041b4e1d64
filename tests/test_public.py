"""The public surface is exact."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import rayml
from rayml import errors

NAMES = [
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


def test_the_public_names_are_these() -> None:
    assert rayml.__all__ == dir(rayml) == NAMES
    for name in NAMES:
        value = getattr(rayml, name)
        assert value.__name__ == name
        assert value.__module__.startswith("rayml.")
        assert inspect.getdoc(value)


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert {name for name in NAMES if name.endswith("Error")} == tree
    assert all(issubclass(getattr(rayml, name), rayml.RaymlError) for name in tree)
    assert {name: getattr(rayml, name).exit_code for name in tree} == {
        "BundleError": 2,
        "DataError": 2,
        "InputError": 2,
        "RaymlError": 1,
        "RegistryError": 2,
        "SearchError": 1,
        "ServerError": 1,
        "UsageError": 2,
        "WeightsError": 2,
    }
    for name in tree:
        assert f"{name} " in str(errors.__doc__)  # The tree drawn at the top names each.


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'rayml' has no attribute 'train'"):
        _ = rayml.train  # type: ignore[attr-defined]


def test_predicting_loads_no_tensorflow() -> None:
    code = "import sys, rayml; rayml.Predictor, rayml.Bundle; print({'tensorflow', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
