"""KerasTuner's GridSearch over heads: FEATURES EPOCHS SIZES RATES; prints the seconds of the search and its best.

FEATURES is a folder of train_x.npy (N, D), train_y.npy (N,), validation_x.npy, validation_y.npy; or, with a seventh
argument, the name of a backbone in keras.applications: then they hold photos (N, H, W, 3), and the whole network is
searched, frozen, as in the lesson.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np

folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
sizes = [int(part) for part in sys.argv[3].split(",")]
rates = [float(part) for part in sys.argv[4].split(",")]
arrays = {path.stem: np.load(path) for path in folder.glob("*.npy")}


def build(parameters: Any) -> keras.Model:
    """The lesson's head, or with a backbone its whole network."""
    shape = arrays["train_x"].shape[1:]
    inputs = x = keras.Input(shape)
    if len(shape) == 3:
        base = getattr(keras.applications, sys.argv[5])(include_top=False, weights=None, input_shape=shape)
        base.trainable = False
        x = keras.layers.GlobalAveragePooling2D()(base(keras.layers.Rescaling(1 / 127.5, -1)(inputs), training=False))
    x = keras.layers.Dense(parameters.Choice("size_inner", sizes), activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(int(arrays["train_y"].max()) + 1)(x))
    model.compile(
        keras.optimizers.Adam(parameters.Choice("learning_rate", rates)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


start = time.monotonic()
with tempfile.TemporaryDirectory() as kept:
    tuner = keras_tuner.GridSearch(build, objective="val_accuracy", max_trials=len(sizes) * len(rates), directory=kept)
    tuner.search(
        arrays["train_x"],
        arrays["train_y"],
        epochs=epochs,
        batch_size=32,
        validation_data=(arrays["validation_x"], arrays["validation_y"]),
        verbose=0,
    )
    trials = list(tuner.oracle.trials.values())
    assert all(trial.status == "COMPLETED" for trial in trials), trials[0].message  # It goes on over failed trials.
    scored = [trial.score for trial in trials]
print(json.dumps({"seconds": time.monotonic() - start, "trials": len(scored), "best": max(scored)}))
