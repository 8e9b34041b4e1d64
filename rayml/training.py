"""One head trained on cached features: an epoch is one compiled call.

`Model.fit` pays Python and callbacks for each batch; on vectors that is most of its time. Here the loop over the
batches is inside one `tf.function`, compiled by XLA once for each head size and used again for every trial of that
size: a new trial sets the weights, Adam's state and its learning rate and calls it. The arithmetic is Keras' own:
its layers, its loss, its Adam, its way of averaging over batches; tests hold it against `fit` step by step.

Where Keras runs on JAX (`KERAS_BACKEND=jax`) `rayml.training_jax` compiles the same epoch; `head_trainer` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.errors import UsageError
from rayml.head import HeadWeights, build_head, check_head_settings, head_weights

VALIDATION_BATCH = 1024  # Bounds the memory of the inner layer on large validation sets.


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Feature vectors and labels of both splits.

    Arguments:
        train_features: float32 (N, D).
        train_labels: int32 (N,), 0 to C - 1.
        validation_features: float32 (M, D).
        validation_labels: int32 (M,).
        classes: the C class names.
        digest: identifies the vectors and labels; trainers are kept by it.
    """

    train_features: NDArray[np.float32]
    train_labels: NDArray[np.int32]
    validation_features: NDArray[np.float32]
    validation_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class EpochMetrics:
    """What Keras' `fit` would report for an epoch: mean loss and accuracy over training, and on validation after it."""

    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float


def head_trainer(
    data: TrainingData,
    *,
    size_inner: int,
    dropout: float = 0.0,
    batch_size: int = 32,
    beside: HeadTrainer | None = None,
) -> HeadTrainer:
    """The trainer for the backend that Keras runs on; arguments and errors as `HeadTrainer`.

    Raises:
        UsageError: Keras runs on another backend than TensorFlow and JAX.
    """
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        return HeadTrainer(data, size_inner=size_inner, dropout=dropout, batch_size=batch_size, beside=beside)
    if backend == "jax":
        from rayml.training_jax import JaxHeadTrainer

        return JaxHeadTrainer(data, size_inner=size_inner, dropout=dropout, batch_size=batch_size, beside=beside)
    raise UsageError(f"KERAS_BACKEND must be tensorflow or jax. Received: {backend}")


class HeadTrainer:
    """Trains heads of one size on one set of features, one at a time, with Keras on TensorFlow.

    Arguments:
        data: both splits; copied to the device once, unless `beside` has done it.
        size_inner: S, at least 1.
        dropout: 0 <= dropout < 1.
        batch_size: pictures a step, at least 1; the last step of an epoch takes what is left, as in `fit`.
        beside: another trainer on the same data.

    Raises:
        UsageError: a value out of range.
    """

    def __init__(
        self,
        data: TrainingData,
        *,
        size_inner: int,
        dropout: float = 0.0,
        batch_size: int = 32,
        beside: HeadTrainer | None = None,
    ) -> None:
        import keras

        check_head_settings(learning_rate=1.0, size_inner=size_inner, dropout=dropout)
        self.data = data
        self.completed_epochs = 0
        self._seed = 0
        self._shape = (data.train_features.shape[1], size_inner, len(data.classes), dropout)
        self._model = build_head(*self._shape, seed=0)
        self._optimizer = keras.optimizers.AdamW(weight_decay=0.0)
        self._optimizer.build(self._model.trainable_variables)
        self._loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        self._batch_size = min(batch_size, len(data.train_labels))
        there = (beside._train, beside._validation) if beside else self._on_device()
        self._train: tuple[Any, Any] = there[0]
        self._validation: tuple[Any, Any] = there[1]
        self._prepare()

    def _on_device(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Vectors and labels, one-hot, of both splits on the device."""
        import tensorflow as tf

        data, depth = self.data, len(self.data.classes)
        return (
            (device_vectors(data.train_features), tf.one_hot(data.train_labels, depth)),
            (device_vectors(data.validation_features), tf.one_hot(data.validation_labels, depth)),
        )

    def _prepare(self) -> None:
        """Make what `_compiled_epoch` needs beside the data."""
        import tensorflow as tf

        # Variables, so that one compiled epoch serves every rate of a search; at 0 both leave each bit as it is.
        self._smoothing = tf.Variable(0.0)
        self._optimizer.weight_decay = tf.Variable(0.0)
        self._compiled_epoch = tf.function(self._epoch, jit_compile=True, autograph=False)

    def _regularise(self, weight_decay: float, label_smoothing: float) -> None:
        """Set both for the epochs to come."""
        self._optimizer.weight_decay.assign(weight_decay)
        self._smoothing.assign(label_smoothing)

    def _sums(self, order: NDArray[np.int32]) -> tuple[Any, Any, Any, Any]:
        """Train an epoch: the sums of losses and of right answers, in training and in validation."""
        import tensorflow as tf

        found: tuple[Any, Any, Any, Any] = self._compiled_epoch(tf.constant(order))
        return found

    def start(
        self, *, seed: int, learning_rate: float, weight_decay: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        """Begin a new head: fresh weights of that seed, Adam at zero.

        Arguments:
            seed: of the weights, of dropout and of the order of the pictures.
            learning_rate: over 0.
            weight_decay: of AdamW (Loshchilov and Hutter 2019), at least 0: each step takes this share, times the
                learning rate, of every weight and bias.
            label_smoothing: the share of a label that is spread over all classes, at least 0 and below 1. It is part
                of the training loss; the validation loss stays the plain one, so that trials can be compared.

        Raises:
            UsageError: a value out of range.
        """
        check_head_settings(
            learning_rate=learning_rate,
            size_inner=self._shape[1],
            dropout=self._shape[3],
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
        )
        self._seed = seed
        self.completed_epochs = 0
        fresh = build_head(*self._shape, seed=seed)
        self._model.set_weights(fresh.get_weights())
        for ours, theirs in zip(self._model.non_trainable_variables, fresh.non_trainable_variables, strict=True):
            ours.assign(theirs)  # The dropout layer's random state.
        for variable in self._optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        self._optimizer.learning_rate = learning_rate
        self._regularise(weight_decay, label_smoothing)

    def run_epoch(self) -> EpochMetrics:
        """Train one more epoch over every picture, in an order of its own that the seed and the epoch decide."""
        order = epoch_order(self._seed, self.completed_epochs, len(self.data.train_labels))
        loss, hits, val_loss, val_hits = (float(value) for value in self._sums(order))
        self.completed_epochs += 1
        trained, validated = len(self.data.train_labels), len(self.data.validation_labels)
        # Divided in float64, so that an accuracy is the very fraction that counting the answers gives.
        return EpochMetrics(loss / trained, hits / trained, val_loss / validated, val_hits / validated)

    def weights(self) -> HeadWeights:
        """The head as it is now."""
        return head_weights(self._model)

    def validation_logits(self) -> NDArray[np.float32]:
        """The logits of the validation pictures as the head is now, float32 (M, C)."""
        return np.asarray(self._model(self._validation[0], training=False))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that changes from epoch to epoch, as plain arrays: weights, Adam's state, random state, epochs done."""
        arrays = {f"model_{i}": np.asarray(variable) for i, variable in enumerate(self._model.variables)}
        arrays |= {f"optimizer_{i}": np.asarray(variable) for i, variable in enumerate(self._optimizer.variables)}
        return arrays | {"seed": np.array(self._seed), "completed_epochs": np.array(self.completed_epochs)}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave, after `start`; the learning rate is part of it.

        Raises:
            ValueError: arrays of another head.
            KeyError: arrays missing.
        """
        for i, variable in enumerate(self._model.variables):
            variable.assign(state[f"model_{i}"])
        for i, variable in enumerate(self._optimizer.variables):
            variable.assign(state[f"optimizer_{i}"])
        self._seed = int(state["seed"])
        self.completed_epochs = int(state["completed_epochs"])

    def _epoch(self, order: Any) -> tuple[Any, Any, Any, Any]:
        """The compiled call: int32 (N,) -> sum of losses and right answers in training and validation, float32."""
        import tensorflow as tf

        features, one_hot = self._train
        count, size = int(one_hot.shape[0]), self._batch_size
        full = count // size

        def step(at: Any, loss: Any, hits: Any) -> tuple[Any, Any, Any]:
            batch = tf.slice(order, [at * size], [size])
            batch_loss, batch_hits = self._step(tf.gather(features, batch), tf.gather(one_hot, batch))
            return at + 1, loss + batch_loss, hits + batch_hits

        start = (tf.constant(0), tf.constant(0.0), tf.constant(0.0))
        _, loss, hits = tf.while_loop(lambda at, *_: at < full, step, start)
        if rest := count - full * size:
            batch = order[-rest:]
            batch_loss, batch_hits = self._step(tf.gather(features, batch), tf.gather(one_hot, batch))
            loss, hits = loss + batch_loss, hits + batch_hits
        return loss, hits, *self._validate()

    def _step(self, features: Any, one_hot: Any) -> tuple[Any, Any]:
        """One batch: float32 (B, D) and (B, C) -> the sum of its losses and its right answers before the update."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = self._model(features, training=True)
            # As Keras smooths: keras.losses.categorical_crossentropy.
            loss = self._loss(one_hot * (1.0 - self._smoothing) + self._smoothing / one_hot.shape[1], logits)
        variables = self._model.trainable_variables
        self._optimizer.apply(tape.gradient(loss, variables), variables)
        return loss * float(features.shape[0]), _hits(one_hot, logits)

    def _validate(self) -> tuple[Any, Any]:
        """In parts, in a loop as training has it: an epoch takes no longer to compile where there are more of them."""
        import tensorflow as tf

        features, one_hot = self._validation
        (count, classes), size = one_hot.shape, VALIDATION_BATCH
        full = count // size

        def score(part: Any, truth: Any) -> tuple[Any, Any]:
            logits = self._model(part, training=False)
            return self._loss(truth, logits) * float(part.shape[0]), _hits(truth, logits)

        def step(at: Any, loss: Any, hits: Any) -> tuple[Any, Any, Any]:
            part = tf.slice(features, [at * size, 0], [size, features.shape[1]])
            part_loss, part_hits = score(part, tf.slice(one_hot, [at * size, 0], [size, classes]))
            return at + 1, loss + part_loss, hits + part_hits

        loss, hits = tf.constant(0.0), tf.constant(0.0)
        if full:
            _, loss, hits = tf.while_loop(lambda at, *_: at < full, step, (tf.constant(0), loss, hits))
        if rest := count - full * size:
            part_loss, part_hits = score(features[-rest:], one_hot[-rest:])
            loss, hits = loss + part_loss, hits + part_hits
        return loss, hits


def device_vectors(vectors: NDArray[np.float32]) -> Any:
    """Vectors as TensorFlow's: on a processor those of a mapped file as they are, so that trials share its pages."""
    import tensorflow as tf

    if isinstance(vectors, np.memmap) and vectors.size and not tf.config.list_physical_devices("GPU"):
        return tf.experimental.dlpack.from_dlpack(vectors.__dlpack__())
    return tf.constant(vectors)


def _hits(one_hot: Any, logits: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_sum(tf.cast(tf.argmax(one_hot, -1) == tf.argmax(logits, -1), tf.float32))


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int32]:
    """The order in which an epoch sees the pictures: a permutation of 0 to count - 1, int32."""
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int32)
