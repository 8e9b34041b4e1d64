"""The lesson's way, literally: the whole network on pictures in every step, with augmentation and fine-tuning.

Where the backbone stays frozen and no picture is changed, this gives what `rayml.training` gives from cached features,
at a hundred times the cost. It is for what needs the pictures: augmentation, and training the backbone's top layers
after the head. The interface is that of `HeadTrainer`.

Letters in comments: N, M pictures, B of one step, H and W pixels, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rayml.augmentation import Augmentation
from rayml.backbones import BackboneSpec, build_base, preprocess_input
from rayml.errors import UsageError
from rayml.head import HeadWeights, build_head, check_head_settings, head_weights
from rayml.training import EpochMetrics, epoch_order

if TYPE_CHECKING:
    import keras

VALIDATION_BATCH = 32  # More is no faster on a processor and takes more memory.


@dataclass(frozen=True, eq=False)
class PixelData:
    """Pictures and labels of both splits, as `rayml.images` reads them.

    Arguments:
        train_pixels: uint8 (N, H, W, 3).
        train_labels: int32 (N,), 0 to C - 1.
        validation_pixels: uint8 (M, H, W, 3).
        validation_labels: int32 (M,).
        classes: the C class names.
        digest: identifies pictures and labels; trainers are kept by it.
    """

    train_pixels: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    validation_pixels: NDArray[np.uint8]
    validation_labels: NDArray[np.int32]
    classes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class FineTuning:
    """Training of the backbone's top layers together with the head, once the head has learned by itself.

    Arguments:
        layers: how many of the backbone's last layers with weights, at least 1. Batch normalisation is not counted
            and stays as it is, as Keras' guide to transfer learning has it: moving its moments undoes the rest.
        after_epoch: epochs of the head alone before it, at least 1.
        learning_rate: of Adam, which begins anew; over 0, and far below the head's.

    Raises:
        UsageError: a value out of range.
    """

    layers: int
    after_epoch: int
    learning_rate: float

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("after_epoch", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"fine-tuning: {name} must be at least {least}. Received: {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"fine_tune_learning_rate must be a number over 0. Received: {self.learning_rate}")


@dataclass(frozen=True)
class Network:
    """All of a network but its head.

    Arguments:
        spec: the backbone, at the size of the pictures.
        augmentation: of the training pictures.
        fine_tuning: None to leave the backbone frozen.
        mixed_precision: see `EndToEndTrainer`.
    """

    spec: BackboneSpec
    augmentation: Augmentation = field(default_factory=Augmentation)
    fine_tuning: FineTuning | None = None
    mixed_precision: bool = False


class EndToEndTrainer:
    """Trains classifiers of one kind on one set of pictures, one at a time.

    Arguments:
        data: both splits; they may be memory-mapped, a step copies its own pictures.
        network: what is before the head. Mixed precision runs the training backbone in bfloat16, which needs no
            scaling of the loss; weights, Adam, the head, validation and what is exported stay float32.
        size_inner, dropout, batch_size: as in `HeadTrainer`.

    Raises:
        UsageError: a value out of range, or more layers to fine-tune than there are.
        WeightsError: as `rayml.backbones.build_base`.
    """

    def __init__(
        self,
        data: PixelData,
        network: Network,
        *,
        size_inner: int,
        dropout: float = 0.0,
        batch_size: int = 32,
    ) -> None:
        import keras
        import tensorflow as tf

        check_head_settings(learning_rate=1.0, size_inner=size_inner, dropout=dropout)
        self.data = data
        self.completed_epochs = 0
        self._seed = 0
        self._batch_size = min(batch_size, len(data.train_labels))
        spec, mixed_precision = network.spec, network.mixed_precision
        self._fine_tuning = fine_tuning = network.fine_tuning
        self._base = _build(spec, "mixed_bfloat16" if mixed_precision else "float32")
        # Validation speaks of what will be served, hence in float32; its copy follows the weights that are trained.
        self._exact_base = _build(spec, "float32") if mixed_precision else self._base
        self._features = _from_pixels(spec, self._base)
        self._exact_features = _from_pixels(spec, self._exact_base) if mixed_precision else self._features
        self._augment = network.augmentation.layers()
        self._shape = (int(self._features.output_shape[-1]), size_inner, len(data.classes), dropout)
        self._head = build_head(*self._shape, seed=0)
        self._tuned = top_variables(self._base, fine_tuning.layers) if fine_tuning else {}
        self._pretrained = {index: np.asarray(variable) for index, variable in self._tuned.items()}
        self._loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        self._smoothing = tf.Variable(0.0)
        self._weight_decay = tf.Variable(0.0)
        self._phases = [_Phase(self, list(self._head.trainable_variables))]
        if fine_tuning:
            self._phases.append(_Phase(self, [*self._head.trainable_variables, *self._tuned.values()]))
        pixels = tf.TensorSpec((None, *data.train_pixels.shape[1:]), tf.uint8)
        self._compiled_logits = tf.function(self._logits, input_signature=[pixels], autograph=False)

    def start(
        self, *, seed: int, learning_rate: float, weight_decay: float = 0.0, label_smoothing: float = 0.0
    ) -> None:
        """Begin anew, as `HeadTrainer.start`: a fresh head, the backbone as it was loaded, Adam at zero.

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
        import keras

        self._seed = seed
        self.completed_epochs = 0
        fresh = build_head(*self._shape, seed=seed)
        self._head.set_weights(fresh.get_weights())
        for ours, theirs in zip(self._head.non_trainable_variables, fresh.non_trainable_variables, strict=True):
            ours.assign(theirs)  # The dropout layer's random state.
        for number, layer in enumerate(self._augment):
            state = keras.random.SeedGenerator((seed * len(self._augment) + number) % 2**31).state
            layer.non_trainable_variables[0].assign(state)
        for index, variable in self._tuned.items():
            variable.assign(self._pretrained[index])
        rates = [learning_rate, *([self._fine_tuning.learning_rate] if self._fine_tuning else [])]
        for phase, rate in zip(self._phases, rates, strict=True):
            phase.reset(rate)
        self._weight_decay.assign(weight_decay)
        self._smoothing.assign(label_smoothing)

    def run_epoch(self) -> EpochMetrics:
        """Train one more epoch over every picture, in the order in which `HeadTrainer` would take them."""
        data, phase = self.data, self._phase
        order = epoch_order(self._seed, self.completed_epochs, len(data.train_labels))
        sums = []
        for at in range(0, len(order), self._batch_size):
            batch = order[at : at + self._batch_size]
            # Not read before the epoch's end, so that a graphics processor never waits for this loop.
            sums.append(phase.step(data.train_pixels[batch], self._one_hot(data.train_labels[batch])))
        loss, hits = (sum(float(part[which]) for part in sums) for which in (0, 1))
        self.completed_epochs += 1
        truth, logits = self._one_hot(data.validation_labels), self.validation_logits()
        val_loss = float(self._loss(truth, logits))
        val_hits = int((logits.argmax(axis=1) == data.validation_labels).sum())
        trained, validated = len(data.train_labels), len(data.validation_labels)
        return EpochMetrics(loss / trained, hits / trained, val_loss, val_hits / validated)

    def weights(self) -> HeadWeights:
        """The head as it is now."""
        return head_weights(self._head)

    def tuned(self) -> dict[int, NDArray[np.float32]]:
        """The backbone's weights that are no longer those it was loaded with, by their place in its `variables`."""
        if self._fine_tuning is None or self.completed_epochs <= self._fine_tuning.after_epoch:
            return {}
        return {index: np.asarray(variable) for index, variable in self._tuned.items()}

    def validation_logits(self) -> NDArray[np.float32]:
        """The logits of the validation pictures as the network is now, float32 (M, C)."""
        if self._exact_base is not self._base:
            for index, variable in self._tuned.items():
                self._exact_base.variables[index].assign(variable)
        pixels = self.data.validation_pixels
        parts = [
            np.asarray(self._compiled_logits(np.ascontiguousarray(pixels[at : at + VALIDATION_BATCH])))
            for at in range(0, len(pixels), VALIDATION_BATCH)
        ]
        return np.concatenate(parts)

    def state(self) -> dict[str, NDArray[Any]]:
        """All that changes from epoch to epoch, as plain arrays; of the backbone only what has been fine-tuned."""
        lists = {
            "head": self._head.variables,
            "random": self._random_states,
            "optimizer": self._phase.optimizer.variables,
        }
        arrays = {
            f"{name}_{i}": np.asarray(variable) for name, each in lists.items() for i, variable in enumerate(each)
        }
        arrays |= {f"tuned_{index}": array for index, array in self.tuned().items()}
        return arrays | {"seed": np.array(self._seed), "completed_epochs": np.array(self.completed_epochs)}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave, after `start`; the learning rate is part of it.

        Raises:
            ValueError: arrays of another network.
            KeyError: arrays missing.
        """
        self._seed = int(state["seed"])
        self.completed_epochs = int(state["completed_epochs"])
        lists = {
            "head": self._head.variables,
            "random": self._random_states,
            "optimizer": self._phase.optimizer.variables,
        }
        for name, each in lists.items():
            for i, variable in enumerate(each):
                variable.assign(state[f"{name}_{i}"])
        for index in self.tuned():
            self._tuned[index].assign(state[f"tuned_{index}"])

    @property
    def _phase(self) -> _Phase:
        """What the next epoch trains: the head alone, or the top of the backbone with it."""
        tuning = self._fine_tuning is not None and self.completed_epochs >= self._fine_tuning.after_epoch
        return self._phases[1 if tuning else 0]

    @property
    def _random_states(self) -> list[Any]:
        return [layer.non_trainable_variables[0] for layer in self._augment]

    def _one_hot(self, labels: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.eye(len(self.data.classes), dtype=np.float32)[labels]

    def _logits(self, pixels: Any) -> Any:
        """uint8 (B, H, W, 3) -> float32 (B, C), as served."""
        import tensorflow as tf

        return self._head(self._exact_features(tf.cast(pixels, tf.float32), training=False), training=False)

    def training_logits(self, pixels: Any) -> Any:
        """uint8 (B, H, W, 3) -> float32 (B, C), augmented and with dropout, inside a step."""
        import tensorflow as tf

        images = tf.cast(pixels, tf.float32)
        for layer in self._augment:
            images = layer(images, training=True)
        # The backbone itself is called with training=False inside, as the lesson calls it.
        return self._head(tf.cast(self._features(images), tf.float32), training=True)

    def training_loss(self, one_hot: Any, logits: Any) -> Any:
        """The mean loss of a step, float32, smoothed as `HeadTrainer` smooths."""
        return self._loss(one_hot * (1.0 - self._smoothing) + self._smoothing / one_hot.shape[1], logits)


class _Phase:
    """One Adam over the variables that a part of the training moves, and its compiled step."""

    def __init__(self, trainer: EndToEndTrainer, variables: list[Any]) -> None:
        import keras
        import tensorflow as tf

        self._trainer = trainer
        self._variables = variables
        self.optimizer = keras.optimizers.AdamW(weight_decay=0.0)
        self.optimizer.weight_decay = trainer._weight_decay
        self.optimizer.build(variables)
        pixels = tf.TensorSpec((None, *trainer.data.train_pixels.shape[1:]), tf.uint8)
        one_hot = tf.TensorSpec((None, len(trainer.data.classes)), tf.float32)
        self.step = tf.function(self._step, input_signature=[pixels, one_hot], autograph=False)

    def reset(self, learning_rate: float) -> None:
        """Adam at zero."""
        for variable in self.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        self.optimizer.learning_rate = learning_rate

    def _step(self, pixels: Any, one_hot: Any) -> tuple[Any, Any]:
        """uint8 (B, H, W, 3) and float32 (B, C) -> the sum of the losses and the right answers before the update."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = self._trainer.training_logits(pixels)
            loss = self._trainer.training_loss(one_hot, logits)
        self.optimizer.apply(tape.gradient(loss, self._variables), self._variables)
        hits = tf.reduce_sum(tf.cast(tf.argmax(one_hot, -1) == tf.argmax(logits, -1), tf.float32))
        return loss * tf.cast(tf.shape(one_hot)[0], tf.float32), hits


def top_variables(base: keras.Model, layers: int) -> dict[int, Any]:
    """Unfreeze the last layers of a backbone.

    Arguments:
        base: from `rayml.backbones.build_base`.
        layers: how many with weights of their own, counted from the top, batch normalisation left out.

    Returns:
        Their trainable variables by their place in `base.variables`, which every process builds in one order, unlike
        names: Keras numbers those of nameless layers through.

    Raises:
        UsageError: the backbone has fewer.
    """
    import keras

    places = {id(variable): index for index, variable in enumerate(base.variables)}
    found: list[list[Any]] = []
    for layer in reversed(base.layers):
        if len(found) == layers:
            break
        if layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = True
            if layer.trainable_variables:
                found.append(layer.trainable_variables)
    if len(found) < layers:
        raise UsageError(f"unfreeze must be at most {len(found)}, the layers of {base.name}. Received: {layers}")
    return {places[id(variable)]: variable for variables in reversed(found) for variable in variables}


def _build(spec: BackboneSpec, policy: str) -> keras.Model:
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return build_base(spec)
    finally:
        keras.config.set_dtype_policy(before)


def _from_pixels(spec: BackboneSpec, base: keras.Model) -> keras.Model:
    """float32 pixels 0 to 255 (N, H, W, 3) -> float32 (N, D), as `rayml.backbones.feature_model`."""
    import keras

    pixels = keras.Input((spec.image_size_px, spec.image_size_px, 3), dtype="float32")
    maps = base(preprocess_input(spec.name, pixels), training=False)
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(maps))
