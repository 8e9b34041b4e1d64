"""Ray Tune with plain `model.fit`, as its documentation shows it: FEATURES EPOCHS SIZES RATES, see keras_tuner_search.

Each trial has one processor and reports after each epoch; the data goes once into Ray's object store.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
folder, epochs = Path(sys.argv[1]), int(sys.argv[2])
sizes = [int(part) for part in sys.argv[3].split(",")]
rates = [float(part) for part in sys.argv[4].split(",")]


def train(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """One trial."""
    import keras

    inputs = keras.Input(arrays["train_x"].shape[1:])
    x = keras.layers.Dense(config["size_inner"], activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(int(arrays["train_y"].max()) + 1)(x))
    model.compile(
        keras.optimizers.Adam(config["learning_rate"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    report = keras.callbacks.LambdaCallback(on_epoch_end=lambda _, figures: tune.report(dict(figures)))
    model.fit(
        arrays["train_x"],
        arrays["train_y"],
        epochs=epochs,
        batch_size=32,
        validation_data=(arrays["validation_x"], arrays["validation_y"]),
        callbacks=[report],
        verbose=0,
    )


start = time.monotonic()
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
started = time.monotonic()
with tempfile.TemporaryDirectory() as kept:
    results = tune.Tuner(
        tune.with_parameters(train, arrays={path.stem: np.load(path) for path in folder.glob("*.npy")}),
        param_space={"size_inner": tune.grid_search(sizes), "learning_rate": tune.grid_search(rates)},
        tune_config=tune.TuneConfig(metric="val_accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path=kept, verbose=0),
    ).fit()
    best = results.get_best_result(scope="all").metrics["val_accuracy"]
seconds = time.monotonic() - started
print(json.dumps({"seconds": seconds, "ray_s": started - start, "trials": len(results), "best": best}))
ray.shutdown()
