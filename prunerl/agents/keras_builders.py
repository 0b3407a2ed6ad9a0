"""From a layer's configuration to its PyTorch module: one entry of a table for each class of Keras."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunerl.agents import keras_functions as functions
from prunerl.agents import keras_layers as layers
from prunerl.agents.keras_layers import Node


def variables(node: Node) -> tuple[str, ...]:
    """Return the names of a layer's tensors, in the order in which Keras stores them."""

    def used(**switches: str) -> tuple[str, ...]:
        return tuple(name for name, switch in switches.items() if node.config.get(switch, True))

    if node.kind in ("Dense", "Conv1D", "Conv2D"):
        return ("kernel", *used(bias="use_bias"))
    if node.kind == "BatchNormalization":
        return (*used(gamma="scale", beta="center"), "moving_mean", "moving_variance")
    if node.kind == "LayerNormalization":
        return used(gamma="scale", beta="center")
    if node.kind == "Normalization" and node.config.get("mean") is None:
        return ("mean", "variance", "count")
    return ()


def check(node: Node) -> None:
    """Check that a layer's class is known and called as it should be.

    Raises:
        LoadError: It is not.
    """
    if node.kind not in BUILDERS:
        kinds = ", ".join(sorted(kind for kind in BUILDERS if "." not in kind))
        raise layers.refusal(node, f"is not supported (supported: {kinds})")
    expected, got = ARGUMENTS.get(node.kind, 1), len(node.inputs)
    if got < expected or (expected == 1 and got != 1):
        raise layers.refusal(node, f"is called with {got} inputs")
    if expected == 1 and not isinstance(node.inputs[0], str):
        raise layers.refusal(node, "is called with a number")


def build(node: Node, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a layer.

    Raises:
        LoadError: Its configuration has no counterpart.
    """
    return BUILDERS[node.kind](node, tensors)


Builder = Callable[[Node, Mapping[str, Tensor]], nn.Module]


def _fixed(function: functions.Function) -> Builder:
    return lambda node, tensors: layers.Plain(function)


def _activation(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    return layers.Plain(layers.activation(node))


def _relu(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    if node.config.get("threshold"):
        raise layers.refusal(node, "has a threshold")
    largest = None if node.config.get("max_value") is None else layers.number(node, "max_value", 0.0)
    slope = 0.0 if node.config.get("negative_slope") is None else layers.number(node, "negative_slope", 0.0)
    return layers.Plain(partial(functions.clipped_relu, slope=slope, largest=largest))


def _leaky(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    return layers.Plain(partial(F.leaky_relu, negative_slope=layers.number(node, "negative_slope", 0.3)))


def _elu(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    return layers.Plain(partial(F.elu, alpha=layers.number(node, "alpha", 1.0)))


def _softmax(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    if node.config.get("axis", -1) != -1:
        raise layers.refusal(node, "works on another axis than the last one")
    return layers.Plain(functions.ACTIVATIONS["softmax"])


def _rescaling(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    scale, offset = layers.number(node, "scale", 1.0), layers.number(node, "offset", 0.0)
    return layers.Plain(partial(functions.scaled, scale=scale, offset=offset))


def _flatten(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    layers.only(node, "data_format", "channels_last")
    return layers.Plain(functions.flatten)


def _reshape(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    shape = node.config.get("target_shape")
    if not isinstance(shape, list) or any(type(n) is not int for n in shape):
        raise layers.refusal(node, f"has target_shape={str(shape)[:80]}")
    return layers.Plain(partial(functions.reshape, shape=tuple(shape)))


def _permute(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    dims = layers.sizes(node, "dims", len(node.config.get("dims") or ()))
    return layers.Plain(partial(functions.permute, dims=dims))


def _pool(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    layers.only(node, "data_format", "channels_last")
    layers.only(node, "padding", "valid")
    space = int(node.kind[-2])
    size = layers.sizes(node, "pool_size", space)
    stride = size if node.config.get("strides") is None else layers.sizes(node, "strides", space)
    function = getattr(F, f"{'max' if node.kind.startswith('Max') else 'avg'}_pool{space}d")
    return layers.Plain(partial(functions.pool, function=function, size=size, stride=stride))


def _global_pool(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    layers.only(node, "data_format", "channels_last")
    if node.config.get("keepdims"):
        raise layers.refusal(node, "keeps the dimensions that it pools")
    return layers.Plain(partial(functions.global_pool, largest="Max" in node.kind))


def _concatenate(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    axis = node.config.get("axis", -1)
    if type(axis) is not int or axis == 0:
        raise layers.refusal(node, f"has axis={str(axis)[:80]}")
    return layers.Plain(partial(functions.concatenate, axis=axis))


def _mean(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    axis = node.config.get("axis")
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if type(axis) is not int or axis == 0:
        raise layers.refusal(node, f"has axis={str(axis)[:80]}")
    return layers.Plain(partial(functions.mean, axis=axis, keepdims=bool(node.config.get("keepdims"))))


def _last_axis(layer: Builder) -> Builder:
    def checked(node: Node, tensors: Mapping[str, Tensor]) -> nn.Module:
        axis = node.config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if type(axis) is not int or axis == 0:
            raise layers.refusal(node, f"works on axis {str(axis)[:80]}")
        return layer(node, tensors)

    return checked


def _folds(function: Callable[..., Tensor]) -> Builder:
    return _fixed(partial(functions.fold, function=function))


_IDENTITIES = (
    "Dropout SpatialDropout1D SpatialDropout2D AlphaDropout GaussianNoise GaussianDropout ActivityRegularization "
    "Identity"
).split()
_MERGES: Mapping[str, Callable[..., Tensor]] = {
    "Add": operator.add,
    "Subtract": operator.sub,
    "Multiply": operator.mul,
    "Maximum": torch.maximum,
    "Minimum": torch.minimum,
}
BUILDERS: Mapping[str, Builder] = {
    "Dense": layers.Dense,
    "Conv1D": layers.Conv,
    "Conv2D": layers.Conv,
    "BatchNormalization": _last_axis(layers.BatchNormalization),
    "LayerNormalization": _last_axis(layers.LayerNormalization),
    "Normalization": layers.Normalization,
    **dict.fromkeys(_IDENTITIES, _fixed(functions.identity)),
    "Activation": _activation,
    "ReLU": _relu,
    "LeakyReLU": _leaky,
    "ELU": _elu,
    "Softmax": _softmax,
    "Rescaling": _rescaling,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"), _pool),
    **{f"Global{kind}Pooling{space}D": _global_pool for kind in ("Max", "Average") for space in (1, 2)},
    **{kind: _folds(function) for kind, function in _MERGES.items()},
    "Average": _fixed(functions.average),
    "Concatenate": _concatenate,
    **{f"ops.{kind}": _folds(function) for kind, function in {**_MERGES, "TrueDivide": operator.truediv}.items()},
    "ops.Mean": _mean,
    **{f"ops.{kind}": _fixed(functions.ACTIVATIONS[kind.lower()]) for kind in ("Relu", "Tanh", "Sigmoid", "Softplus")},
}
"""A layer's class → how it is built."""

ARGUMENTS = dict.fromkeys((*_MERGES, *(f"ops.{k}" for k in (*_MERGES, "TrueDivide")), "Average", "Concatenate"), 2)
"""How many inputs a class takes at least, where it is more than one."""
