"""`rayml.training` for Keras on JAX: the same epoch as one jitted function without side effects.

Keras keeps weights, Adam's state and dropout's random state in variables; here they go into the function and come out
of it, as JAX wants it (Keras' `stateless_call` and `stateless_apply`). Dropout draws other numbers than on TensorFlow:
the two backends have random generators of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayml.training import VALIDATION_BATCH, HeadTrainer

_State = tuple[list[Any], list[Any], list[Any]]


class JaxHeadTrainer(HeadTrainer):
    """Trains heads of one size on one set of features, one at a time, with Keras on JAX."""

    def _on_device(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        import jax

        data, one_hot = self.data, np.eye(len(self.data.classes), dtype=np.float32)
        return (
            (jax.device_put(data.train_features), jax.device_put(one_hot[data.train_labels])),
            (jax.device_put(data.validation_features), jax.device_put(one_hot[data.validation_labels])),
        )

    def _prepare(self) -> None:
        import jax

        self._regularise(0.0, 0.0)
        # The data are arguments: as constants they would be part of the compiled program.
        self._compiled_epoch = jax.jit(self._jitted, donate_argnums=0)

    def _regularise(self, weight_decay: float, label_smoothing: float) -> None:
        self._weight_decay, self._smoothing = np.float32(weight_decay), np.float32(label_smoothing)

    def _sums(self, order: NDArray[np.int32]) -> tuple[Any, Any, Any, Any]:
        model, optimizer = self._model, self._optimizer
        lists = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
        with _full_float32():
            state, sums = self._compiled_epoch(
                tuple([variable.value for variable in each] for each in lists),
                order,
                self._train,
                self._validation,
                self._weight_decay,
                self._smoothing,
            )
        for variables, values in zip(lists, state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        found: tuple[Any, Any, Any, Any] = sums
        return found

    def validation_logits(self) -> NDArray[np.float32]:
        """See `HeadTrainer`."""
        with _full_float32():
            return super().validation_logits()

    def _jitted(
        self, state: _State, order: Any, train: Any, validation: Any, weight_decay: Any, smoothing: Any
    ) -> tuple[_State, tuple[Any, Any, Any, Any]]:
        """State and int32 (N,) -> the state after the epoch; the sums of losses and right answers, float32."""
        import jax
        import jax.numpy as jnp

        features, one_hot = train
        size = self._batch_size
        full = len(one_hot) // size

        def step(state: _State, batch: Any) -> tuple[_State, tuple[Any, Any]]:
            return self._jax_step(state, features[batch], one_hot[batch], weight_decay, smoothing)

        state, (losses, hits) = jax.lax.scan(step, state, jnp.reshape(order[: full * size], (full, size)))
        loss, hits = losses.sum(), hits.sum()
        if len(one_hot) > full * size:
            state, (rest_loss, rest_hits) = step(state, order[full * size :])
            loss, hits = loss + rest_loss, hits + rest_hits
        return state, (loss, hits, *self._jax_validate(state, *validation))

    def _jax_validate(self, state: _State, features: Any, one_hot: Any) -> tuple[Any, Any]:
        """The sums of losses and right answers; see `HeadTrainer._validate`."""
        import jax
        import jax.numpy as jnp

        trainable, constant, _ = state
        size = VALIDATION_BATCH
        full = len(one_hot) // size

        def score(sums: tuple[Any, Any], part: Any, truth: Any) -> tuple[Any, Any]:
            logits, _ = self._model.stateless_call(trainable, constant, part, training=False)
            return sums[0] + self._loss(truth, logits) * len(part), sums[1] + _hits(truth, logits)

        def step(sums: tuple[Any, Any], at: Any) -> tuple[tuple[Any, Any], None]:
            parts = (jax.lax.dynamic_slice_in_dim(array, at * size, size) for array in (features, one_hot))
            return score(sums, *parts), None

        sums = jnp.float32(0), jnp.float32(0)
        if full:
            sums, _ = jax.lax.scan(step, sums, jnp.arange(full))
        if len(one_hot) > full * size:
            sums = score(sums, features[full * size :], one_hot[full * size :])
        return sums

    def _jax_step(
        self, state: _State, features: Any, one_hot: Any, weight_decay: Any, smoothing: Any
    ) -> tuple[_State, tuple[Any, Any]]:
        """One batch: float32 (B, D) and (B, C) -> the sum of its losses and its right answers before the update."""
        import jax

        trainable, constant, adam = state

        def loss_of(trainable: list[Any]) -> tuple[Any, tuple[Any, list[Any]]]:
            logits, changed = self._model.stateless_call(trainable, constant, features, training=True)
            # As Keras smooths: keras.losses.categorical_crossentropy.
            return self._loss(one_hot * (1.0 - smoothing) + smoothing / one_hot.shape[1], logits), (logits, changed)

        (loss, (logits, constant)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        self._optimizer.weight_decay = weight_decay  # Read while this is traced, and never afterwards.
        trainable, adam = self._optimizer.stateless_apply(adam, gradients, trainable)
        self._optimizer.weight_decay = 0.0
        return (trainable, constant, adam), (loss * len(features), _hits(one_hot, logits))


def _full_float32() -> Any:
    """Keeps newer graphics processors from rounding a product's inputs to 10 bits, as JAX lets them by default."""
    import jax

    return jax.default_matmul_precision("highest")


def _hits(one_hot: Any, logits: Any) -> Any:
    import jax.numpy as jnp

    return jnp.sum(jnp.argmax(one_hot, -1) == jnp.argmax(logits, -1)).astype(jnp.float32)
