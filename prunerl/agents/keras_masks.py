"""Hold removed single weights at zero while Keras trains a model: a callback for ``fit``."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunerl.errors import LearnError


def hold_zeros(model: Any) -> Any:
    """Return a Keras callback that keeps at zero what is zero now in the model's weights of two or more dimensions.

    After every update of ``fit`` these entries are set to zero again, and so are the optimizer's slots for them, on
    every backend of Keras 3. A file that was saved with masks holds those zeros, so training on needs no more than::

        model = keras.saving.load_model("small.keras")
        model.compile("adam", "mse")
        model.fit(states, targets, callbacks=[hold_zeros(model)])

    Args:
        model: A Keras model, compiled or not.

    Raises:
        LearnError: While it trains: the model is compiled to make several updates before a callback is asked.
    """
    import keras

    kept = {w.path: np.asarray(keras.ops.convert_to_numpy(w)) != 0 for w in model.trainable_weights if w.ndim > 1}
    held = {path: mask for path, mask in kept.items() if not mask.all()}

    def check(logs: Any = None) -> None:
        if getattr(model, "steps_per_execution", 1) != 1:
            raise LearnError(
                f"The model is compiled with steps_per_execution={model.steps_per_execution}, so that weights would be "
                "held only after as many updates. Compile it with steps_per_execution=1."
            )

    def hold(batch: int, logs: Any = None) -> None:
        for weight in model.trainable_weights:
            if weight.path in held:
                _multiply(keras, weight, held[weight.path])
        for slot in model.optimizer.variables:
            mask = _owner(slot, model, held)
            if mask is not None:
                _multiply(keras, slot, mask)

    return keras.callbacks.LambdaCallback(on_train_begin=check, on_train_batch_end=hold)


def _multiply(keras: Any, variable: Any, mask: Any) -> None:
    variable.assign(keras.ops.multiply(variable, keras.ops.cast(mask, variable.dtype)))


def _owner(slot: Any, model: Any, held: dict[str, Any]) -> Any:
    """Return the mask of the weight that an optimizer's variable belongs to; Keras names it after the weight."""
    for path, mask in held.items():
        if tuple(slot.shape) == mask.shape and slot.path.rpartition("/")[2].startswith(path.replace("/", "_") + "_"):
            return mask
    return None
