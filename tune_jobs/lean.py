"""Importing Keras in a process that does nothing but train."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

# Imported by Keras for its drawings and by TensorFlow for its converter to TensorFlow Lite, where they are installed:
# a third of the processor time that a trial's process takes to begin. Both do without where they are not.
_UNUSED = ("matplotlib", "jax")


def import_keras() -> ModuleType:
    """Keras on the backend that KERAS_BACKEND names, without packages that training never uses.

    They can be imported afterwards, but Keras' own drawing functions stay without them: for processes of ours alone.
    """
    needed = os.environ.get("KERAS_BACKEND")
    hidden = [name for name in _UNUSED if needed == "tensorflow" and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an import of it says it is not there.
    try:
        return importlib.import_module("keras")
    finally:
        for name in hidden:
            del sys.modules[name]
