"""Every supported layer computes what Keras itself computes, and the file written back is the same model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunerl.agents import keras_file, keras_surgery
from prunerl.agents.keras_builders import BUILDERS
from prunerl.agents.keras_functions import ACTIVATIONS
from prunerl.agents.keras_graph import Network
from prunerl.errors import LoadError

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
L = keras.layers

Made = Callable[[Any], Any]


def adapted(x: Any) -> Any:
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, x.shape[-1])).astype(np.float32))
    return layer(x)


def dueling(x: Any) -> Any:
    value, advantage = L.Dense(1)(x), L.Dense(3)(x)
    return value + (advantage - keras.ops.mean(advantage, axis=1, keepdims=True)) * 2.0


VECTOR: dict[str, Made] = {
    "dense": L.Dense(5, activation="relu"),
    "dense without bias": L.Dense(5, use_bias=False),
    "batch normalization": lambda x: L.BatchNormalization()(L.Dense(5)(x)),
    "batch normalization, bare": L.BatchNormalization(scale=False, center=False, epsilon=0.1),
    "layer normalization": lambda x: L.LayerNormalization()(L.Dense(5)(x)),
    "layer normalization, bare": L.LayerNormalization(scale=False, epsilon=0.1),
    "normalization": adapted,
    "normalization by numbers": L.Normalization(mean=[1.0] * 4, variance=[4.0] * 4),
    "identities": lambda x: L.Dropout(0.5)(L.GaussianNoise(0.1)(L.Identity()(x))),
    "activation": L.Activation("tanh"),
    "relu": L.ReLU(max_value=1.0, negative_slope=0.1),
    "leaky relu": L.LeakyReLU(0.2),
    "elu": L.ELU(0.7),
    "softmax": L.Softmax(),
    "rescaling": L.Rescaling(0.5, offset=1.0),
    "reshape": lambda x: L.Flatten()(L.Permute((2, 1))(L.Reshape((2, 2))(x))),
    "merges": lambda x: L.Add()([x, L.Subtract()([x, L.Multiply()([x, L.Maximum()([x, L.Dense(4)(x)])])])]),
    "more merges": lambda x: L.Concatenate()([L.Average()([x, L.Dense(4)(x)]), L.Minimum()([x, L.Dense(4)(x)])]),
    "arithmetic": lambda x: (1.0 - keras.ops.relu(x) * 2.0) / 4.0 + keras.ops.tanh(x),
    "dueling": dueling,
}
IMAGE: dict[str, Made] = {
    "conv": L.Conv2D(4, 3, activation="relu"),
    "conv, same, stride 2": L.Conv2D(4, (3, 2), strides=2, padding="same"),
    "conv, dilated": L.Conv2D(4, 3, dilation_rate=2, padding="same", use_bias=False),
    "conv, grouped": L.Conv2D(6, 3, groups=3),
    "conv and flatten": lambda x: L.Dense(5)(L.Flatten()(L.BatchNormalization()(L.Conv2D(4, 3, strides=3)(x)))),
    "conv over sequences": lambda x: L.Conv1D(4, 3, padding="same", strides=2)(L.Reshape((28, 9))(x)),
    "pools": lambda x: L.AveragePooling2D(2)(L.MaxPooling2D((2, 3), strides=1)(x)),
    "pools over sequences": lambda x: L.AveragePooling1D(2)(L.MaxPooling1D(3)(L.Reshape((28, 9))(x))),
    "global pools": lambda x: L.Concatenate()([L.GlobalMaxPooling2D()(x), L.GlobalAveragePooling2D()(x)]),
    "concatenate along space": lambda x: L.Concatenate(axis=1)([x, x]),
}


def randomised(model: Any) -> Any:
    """Give every weight, statistics included, a value that matters."""
    draw = np.random.default_rng(1)
    for layer in model.layers:
        if not isinstance(layer, L.Normalization):
            layer.set_weights([np.abs(draw.normal(0.5, 0.3, w.shape)) + 0.1 for w in layer.get_weights()])
    return model


def ours(path: Path) -> Network:
    """Return our network of a saved model."""
    contents = keras_file.read(path)
    return Network(contents.graph, contents.tensors).eval()


def twice(x: Any) -> Any:
    layer = L.Dense(4)
    return layer(layer(x))


def round_trip(model: Any, folder: Path) -> tuple[Network, Any]:
    """Return our network of a saved model, and the model that Keras loads from the file that we write."""
    model.save(folder / "model.keras")
    contents = keras_file.read(folder / "model.keras")
    config = keras_surgery.resized(contents, contents.tensors)
    (folder / "again.keras").write_bytes(keras_file.write(replace(contents, config=config)))
    return ours(folder / "model.keras"), keras.saving.load_model(folder / "again.keras")


@pytest.mark.parametrize(
    ("shape", "made"),
    [*(((4,), made) for made in VECTOR.values()), *(((12, 7, 3), made) for made in IMAGE.values())],
    ids=[*VECTOR, *IMAGE],
)
def test_a_layer_computes_what_keras_computes(shape: tuple[int, ...], made: Made, tmp_path: Path) -> None:
    inputs = keras.Input(shape)
    model = randomised(keras.Model(inputs, made(inputs)))
    network, again = round_trip(model, tmp_path)
    observations = np.random.default_rng(2).normal(size=(5, *shape)).astype(np.float32)
    expected = model.predict(observations, verbose=0)
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(observations)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(again.predict(observations, verbose=0), expected)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_computes_what_keras_computes(name: str) -> None:
    values = np.random.default_rng(3).normal(scale=3.0, size=(50, 4)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(keras.activations.get(name)(keras.ops.convert_to_tensor(values)))
    np.testing.assert_allclose(ACTIVATIONS[name](torch.from_numpy(values)), expected, rtol=1e-5, atol=1e-6)


def test_no_supported_class_is_unknown_to_keras() -> None:
    assert [kind for kind in BUILDERS if "." not in kind and not hasattr(L, kind)] == []


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda x: L.LSTM(4)(L.Reshape((2, 2))(x)), "'lstm.*' of class 'LSTM' is not supported"),
        (L.Dense(4, dtype="mixed_float16"), "mixed_float16"),
        (L.Dense(4, activation=lambda y: y * 2), "has the activation"),
        (twice, "is called 2 times"),
        (lambda x: L.Softmax(axis=1)(L.Reshape((2, 2))(x)), "another axis"),
        (L.PReLU(), "PReLU"),
        (lambda x: keras.ops.sum(x, axis=1, keepdims=True), "ops.Sum"),
        (keras.Sequential([L.Dense(3)]), "Sequential"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(made: Made, reason: str, tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    keras.Model(inputs, made(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(LoadError, match=reason):
        ours(tmp_path / "model.keras")


def test_two_inputs_and_layers_of_ones_own_are_refused(tmp_path: Path) -> None:
    class Own(L.Layer):  # type: ignore[name-defined,misc]
        def call(self, x: Any) -> Any:
            return x

    first, second = keras.Input((4,)), keras.Input((4,))
    keras.Model([first, second], L.Add()([first, second])).save(tmp_path / "two.keras")
    with pytest.raises(LoadError, match="2 inputs"):
        keras_file.read(tmp_path / "two.keras")
    keras.Sequential([keras.Input((4,)), Own()]).save(tmp_path / "own.keras")
    with pytest.raises(LoadError, match=r"Own' is not supported"):
        ours(tmp_path / "own.keras")
