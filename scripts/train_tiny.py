"""Run `python scripts/train_tiny.py`: trains the built-in network `tiny` and writes rayml/assets/tiny.npz.

It draws 20,000 garments, trains 8 epochs with a linear classifier on the average-pooled features, and keeps the
network without the classifier. Costs 9 minutes of CPU time, so about 5 minutes where two cores are idle; no GPU.
Reaches an accuracy of 0.974 on 1,000 fresh drawings. The seeds are fixed, so one machine with one TensorFlow writes
the same file again; another may differ in the last bits. `--per-class 20 --epochs 1 --out FILE` tries it in seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rayml import tiny
from rayml.clothing import CLASSES
from rayml.sample import SAMPLE_SEEDS_END, draw

ASSET = Path(tiny.__file__).parent / "assets" / "tiny.npz"
# Drawings of seeds SAMPLE_SEEDS_END + 0, 1, 2, ... are for training; `write_sample` and tests stay below that.
TRAINING_SEEDS_START = SAMPLE_SEEDS_END
FRESH_SEEDS_START = SAMPLE_SEEDS_END + 2**30  # For the accuracy printed at the end: never trained on.
FRESH_PER_CLASS = 100
BATCH_SIZE = 64
LEARNING_RATE = 0.003  # Falls to 0 along a cosine (Loshchilov and Hutter, 2017).
WEIGHT_DECAY = 0.02
DROPOUT = 0.2
SHIFT_PX = 4
SEED = 1

Pictures = NDArray[np.uint8]  # (N, H, W, 3)
Labels = NDArray[np.int64]  # (N,)


def _picture(task: tuple[str, int]) -> Pictures:
    size = (tiny.TINY_IMAGE_SIZE_PX, tiny.TINY_IMAGE_SIZE_PX)
    return np.asarray(draw(*task).resize(size, Image.Resampling.BILINEAR))


def drawings(per_class: int, start: int) -> tuple[Pictures, Labels]:
    """`per_class` drawings of each class of the seeds from `start` on, class by class."""
    tasks = [(label, start + index) for label in CLASSES for index in range(per_class)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pictures = np.stack(pool.map(_picture, tasks, chunksize=100))
    return pictures, np.repeat(np.arange(len(CLASSES)), per_class)


def train(pictures: Pictures, labels: Labels, epochs: int) -> Any:
    """The network with a linear classifier behind its average-pooled features, trained from random weights."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    size_px = tiny.TINY_IMAGE_SIZE_PX

    def augmented(images: Any, labels: Any) -> tuple[Any, Any]:
        images = tf.pad(images, [[0, 0], [SHIFT_PX, SHIFT_PX], [SHIFT_PX, SHIFT_PX], [0, 0]], mode="REFLECT")
        images = tf.image.random_crop(images, [tf.shape(images)[0], size_px, size_px, 3], seed=SEED)
        return tf.cast(tf.image.random_flip_left_right(images, seed=SEED), tf.float32), labels

    data = tf.data.Dataset.from_tensor_slices((pictures, labels))
    data = data.shuffle(len(labels), seed=SEED).batch(BATCH_SIZE, drop_remainder=True).map(augmented).prefetch(2)

    images = keras.Input((size_px, size_px, 3))
    features = keras.layers.GlobalAveragePooling2D()(tiny.feature_map(images, batch_normalization=True))
    logits = keras.layers.Dense(len(CLASSES), name="classifier")(keras.layers.Dropout(DROPOUT)(features))
    model = keras.Model(images, logits)
    steps = epochs * (len(labels) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=LEARNING_RATE, warmup_steps=steps // 20)
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(data, epochs=epochs, verbose=2)
    return model


def folded(model: Any) -> dict[str, NDArray[np.float16]]:
    """The trained arrays without the classifier, each batch normalisation folded into the convolution before it.

    y = gamma (Wx - mean) / s + beta = (gamma / s) Wx + (beta - gamma mean / s), s = sqrt(variance + epsilon).
    """
    arrays: dict[str, NDArray[np.float16]] = {}
    for layer in tiny.build_tiny(weights=False).layers:
        if not layer.weights:
            continue
        kernel = model.get_layer(layer.name).get_weights()[0]
        if len(layer.weights) == 2:  # A kernel and a bias: a convolution with normalisation behind it.
            norm = model.get_layer(f"{layer.name}_bn")
            gamma, beta, mean, variance = norm.get_weights()
            factor = gamma / np.sqrt(variance + norm.epsilon)
            kernel, bias = kernel * factor, beta - mean * factor
            arrays[f"{layer.name}/bias"] = bias.astype(np.float16)
        arrays[f"{layer.name}/{layer.weights[0].name}"] = kernel.astype(np.float16)
    return arrays


def main() -> None:
    """Train, write the asset, and print the trained network's accuracy on fresh drawings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=2000, help="drawings for each class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ASSET)
    options = parser.parse_args()
    start_s = time.perf_counter()
    pictures, labels = drawings(options.per_class, TRAINING_SEEDS_START)
    print(f"{len(labels)} drawings: {time.perf_counter() - start_s:.0f} s")
    model = train(pictures, labels, options.epochs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.out, **folded(model))  # type: ignore[arg-type]
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, {time.perf_counter() - start_s:.0f} s")

    fresh, truth = drawings(FRESH_PER_CLASS, FRESH_SEEDS_START)
    trained = model.predict(fresh.astype(np.float32), verbose=0).argmax(axis=1)
    print(f"accuracy on {len(truth)} fresh drawings: {np.mean(trained == truth):.3f}")
    for number, label in enumerate(CLASSES):
        print(f"  {label}: {np.mean(trained[truth == number] == number):.2f}")


if __name__ == "__main__":
    main()
