"""Layers of odd sizes, and what NumPy makes of them."""

from __future__ import annotations

import numpy as np

from prunerl.deploy.kernels.layer import Layer

NUMPY = {"": lambda v: v, "tanh": np.tanh, "relu": lambda v: np.maximum(v, 0)}


def random_layer(rows: int, columns: int, density: float, function: str) -> Layer:
    """Return a layer of random weights."""
    rng = np.random.default_rng(rows * columns)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    weight[rng.random(weight.shape) > density] = 0
    return Layer(weight, rng.standard_normal(rows).astype(np.float32), function)


def coded_layer(rows: int, columns: int, input_scale: float | None, density: float = 1.0) -> Layer:
    """Return a layer of random codes, which rounds its inputs where they have a scale."""
    rng = np.random.default_rng(rows * columns)
    codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    codes[rng.random(codes.shape) > density] = 0
    scale = rng.uniform(0.5, 1.5, rows).astype(np.float32) / np.float32(127)
    bias = rng.standard_normal(rows).astype(np.float32)
    return Layer((codes * scale[:, None]).astype(np.float32), bias, "relu", codes, scale, input_scale)


LAYERS = (
    random_layer(2, 24, 1.0, ""),
    random_layer(37, 23, 1.0, "tanh"),
    random_layer(37, 41, 0.2, "relu"),
    random_layer(24, 3, 0.5, ""),
    random_layer(40, 20, 0.04, "tanh"),
    coded_layer(19, 33, None),
    coded_layer(19, 33, 0.02),
    coded_layer(37, 150, 0.02, 0.2),
    random_layer(59, 9, 1.0, "tanh"),
    random_layer(45, 300, 0.5, "relu"),
)


def product(layer: Layer, x: np.ndarray) -> np.ndarray:
    """Return what a layer makes of inputs, shape (batch, columns)."""
    if layer.input_scale is None:
        made = x @ layer.weight.T
    else:
        assert layer.codes is not None
        assert layer.scale is not None
        rounded = np.clip(np.rint(x / np.float32(layer.input_scale)), -127, 127).astype(np.int64)
        scale = np.float32(layer.input_scale) * layer.scale
        made = (rounded @ layer.codes.T.astype(np.int64)).astype(np.float32) * scale
    return NUMPY[layer.function](made + layer.bias)
