"""A Keras model's configuration as a graph of layers, and the graph as a PyTorch network."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunerl.agents import keras_layers as layers
from prunerl.agents.keras_layers import Node
from prunerl.errors import LoadError

MAX_OUTPUT = 2**24
"""Numbers that one layer may compute for one observation."""


@dataclass(frozen=True, eq=False)
class Graph:
    """The layers that lead from the observation to the outputs, in order of computation.

    Attributes:
        input: Name of the node that is the observation; it is not among ``nodes``.
        shape: Shape of one observation.
        nodes: Every call.
        outputs: Names of the nodes that the model returns.
    """

    input: str
    shape: tuple[int, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def upto(self, output: str) -> Graph:
        """Return what one output needs."""
        needed = {output}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(i for i in node.inputs if isinstance(i, str))
        return replace(self, nodes=tuple(n for n in self.nodes if n.name in needed), outputs=(output,))

    @property
    def is_chain(self) -> bool:
        """Whether each layer reads the one before and nothing else."""
        before = [self.input, *(node.name for node in self.nodes)]
        return all(node.inputs == (name,) for node, name in zip(self.nodes, before, strict=False))


class Network(nn.Module):
    """Computes the first output of a graph; parameters are called ``<layer>.kernel`` and so on."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        for node in graph.nodes:
            name = attribute(node.name)
            own = {v: tensors[f"{name}.{v}"] for v in variables(node)}
            self.add_module(name, build(node, own))

    def forward(self, observations: Tensor) -> Tensor:
        for name, value in self._values(observations):
            if name == self.graph.outputs[0]:
                return value
        return observations

    def shapes(self, observations: Tensor) -> dict[str, tuple[int, ...]]:
        """Return the shape of each node's value, without the batch.

        Raises:
            LoadError: The layers do not fit each other, or a value is far larger than a policy needs.
        """
        found: dict[str, tuple[int, ...]] = {}
        try:
            for name, value in self._values(observations):
                found[name] = tuple(value.shape[1:])
                if value[0].numel() > MAX_OUTPUT:
                    raise LoadError(f"Layer {name!r} computes {found[name]} numbers, too many for a policy.")
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, LoadError):
                raise
            name = next((n.name for n in self.graph.nodes if n.name not in found), self.graph.input)
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise LoadError(f"Layer {name!r} does not fit those before it: {first}. Save the model again.") from error
        return found

    def _values(self, observations: Tensor) -> Iterator[tuple[str, Tensor]]:
        values = {self.graph.input: observations.to(torch.float32)}
        yield self.graph.input, values[self.graph.input]
        for node in self.graph.nodes:
            arguments = [values[i] if isinstance(i, str) else i for i in node.inputs]
            values[node.name] = self.get_submodule(attribute(node.name))(*arguments)
            yield node.name, values[node.name]


def attribute(name: str) -> str:
    """Return a layer's name as a module may be called.

    >>> attribute("dense_1"), attribute("a.b"), attribute("forward")
    ('dense_1', 'a_b', 'forward_')
    """
    plain = re.sub(r"\W", "_", name) or "_"
    return f"{plain}_" if hasattr(nn.Module, plain) or plain in ("training", "graph") else plain


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


def build(node: Node, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a layer.

    Raises:
        LoadError: Its class or its configuration has no counterpart.
    """
    if node.kind not in BUILDERS:
        kinds = ", ".join(sorted(kind for kind in BUILDERS if "." not in kind))
        raise layers.refusal(node, f"is not supported (supported: {kinds})")
    expected, got = ARGUMENTS.get(node.kind, 1), len(node.inputs)
    if got < expected or (expected == 1 and got != 1):
        raise layers.refusal(node, f"is called with {got} inputs")
    if expected == 1 and not isinstance(node.inputs[0], str):
        raise layers.refusal(node, "is called with a number")
    return BUILDERS[node.kind](node, tensors)


Builder = Callable[[Node, Mapping[str, Tensor]], nn.Module]


def _fixed(function: layers.Function) -> Builder:
    return lambda node, tensors: layers.Plain(function)


def _activation(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    return layers.Plain(layers.activation(node))


def _relu(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    if node.config.get("threshold"):
        raise layers.refusal(node, "has a threshold")
    largest = None if node.config.get("max_value") is None else layers.number(node, "max_value", 0.0)
    slope = 0.0 if node.config.get("negative_slope") is None else layers.number(node, "negative_slope", 0.0)
    return layers.Plain(partial(layers.clipped_relu, slope=slope, largest=largest))


def _leaky(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    return layers.Plain(partial(F.leaky_relu, negative_slope=layers.number(node, "negative_slope", 0.3)))


def _elu(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    return layers.Plain(partial(F.elu, alpha=layers.number(node, "alpha", 1.0)))


def _softmax(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    if node.config.get("axis", -1) != -1:
        raise layers.refusal(node, "works on another axis than the last one")
    return layers.Plain(layers.ACTIVATIONS["softmax"])


def _rescaling(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    scale, offset = layers.number(node, "scale", 1.0), layers.number(node, "offset", 0.0)
    return layers.Plain(partial(layers.scaled, scale=scale, offset=offset))


def _flatten(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    layers.only(node, "data_format", "channels_last")
    return layers.Plain(layers.flatten)


def _reshape(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    shape = node.config.get("target_shape")
    if not isinstance(shape, list) or any(type(n) is not int for n in shape):
        raise layers.refusal(node, f"has target_shape={str(shape)[:80]}")
    return layers.Plain(partial(layers.reshape, shape=tuple(shape)))


def _permute(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    dims = layers.sizes(node, "dims", len(node.config.get("dims") or ()))
    return layers.Plain(partial(layers.permute, dims=dims))


def _pool(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    layers.only(node, "data_format", "channels_last")
    layers.only(node, "padding", "valid")
    space = int(node.kind[-2])
    size = layers.sizes(node, "pool_size", space)
    stride = size if node.config.get("strides") is None else layers.sizes(node, "strides", space)
    function = getattr(F, f"{'max' if node.kind.startswith('Max') else 'avg'}_pool{space}d")
    return layers.Plain(partial(layers.pool, function=function, size=size, stride=stride))


def _global_pool(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    layers.only(node, "data_format", "channels_last")
    if node.config.get("keepdims"):
        raise layers.refusal(node, "keeps the dimensions that it pools")
    return layers.Plain(partial(layers.global_pool, largest="Max" in node.kind))


def _concatenate(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    axis = node.config.get("axis", -1)
    if type(axis) is not int or axis == 0:
        raise layers.refusal(node, f"has axis={str(axis)[:80]}")
    return layers.Plain(partial(layers.concatenate, axis=axis))


def _mean(node: Node, _: Mapping[str, Tensor]) -> nn.Module:
    axis = node.config.get("axis")
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if type(axis) is not int or axis == 0:
        raise layers.refusal(node, f"has axis={str(axis)[:80]}")
    return layers.Plain(partial(layers.mean, axis=axis, keepdims=bool(node.config.get("keepdims"))))


def _last_axis(layer: Builder) -> Builder:
    def checked(node: Node, tensors: Mapping[str, Tensor]) -> nn.Module:
        axis = node.config.get("axis", -1)
        axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
        if type(axis) is not int or axis == 0:
            raise layers.refusal(node, f"works on axis {str(axis)[:80]}")
        return layer(node, tensors)

    return checked


def _folds(function: Callable[..., Tensor]) -> Builder:
    return _fixed(partial(layers.fold, function=function))


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
    **dict.fromkeys(_IDENTITIES, _fixed(layers.identity)),
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
    "Average": _fixed(layers.average),
    "Concatenate": _concatenate,
    **{f"ops.{kind}": _folds(function) for kind, function in {**_MERGES, "TrueDivide": operator.truediv}.items()},
    "ops.Mean": _mean,
    **{f"ops.{kind}": _fixed(layers.ACTIVATIONS[kind.lower()]) for kind in ("Relu", "Tanh", "Sigmoid", "Softplus")},
}
"""A layer's class → how it is built."""

ARGUMENTS = dict.fromkeys((*_MERGES, *(f"ops.{k}" for k in (*_MERGES, "TrueDivide")), "Average", "Concatenate"), 2)
"""How many inputs a class takes at least, where it is more than one."""


def parse(config: Mapping[str, Any]) -> Graph:
    """Turn the configuration of a Sequential or Functional model into a graph.

    Raises:
        LoadError: It is another kind of model, or holds something that has no counterpart.
    """
    kind = str(config.get("class_name"))
    if kind not in ("Sequential", "Functional"):
        raise LoadError(
            f"The model is a {kind[:80]!r}; Sequential and Functional models are supported. Build the policy as one, "
            "copy the weights over with set_weights, and save it again."
        )
    body = config["config"]
    entries = body["layers"]
    graph = _sequential(body, entries) if kind == "Sequential" else _functional(body, entries)
    names = Counter([attribute(graph.input), *(attribute(node.name) for node in graph.nodes)])
    name, times = names.most_common(1)[0]
    if times > 1:
        raise LoadError(f"{times} layers are called {name!r}. Give each layer its own name.")
    return graph


def _sequential(body: Mapping[str, Any], entries: Sequence[Any]) -> Graph:
    first = entries[0] if entries else {}
    shape = body.get("build_input_shape")
    name = "input"
    if _kind(first) == "InputLayer":
        shape, name, entries = first["config"]["batch_shape"], str(first["config"]["name"]), entries[1:]
    if not entries or shape is None:
        raise LoadError("The model has no layers or was never built. Give it an Input and save it again.")
    nodes = []
    before = name
    for entry in entries:
        node = Node(str(entry["config"]["name"]), _kind(entry), _checked(entry), (before,))
        nodes.append(node)
        before = node.name
    return Graph(name, _observation(shape), tuple(nodes), (before,))


def _functional(body: Mapping[str, Any], entries: Sequence[Any]) -> Graph:
    inputs, outputs = _references(body["input_layers"]), _references(body["output_layers"])
    if len(inputs) != 1:
        raise LoadError(f"The model has {len(inputs)} inputs; a policy takes the observation alone. Join them first.")
    shape: Any = None
    nodes: list[Node] = []
    known = set(inputs)
    for entry in entries:
        name = str(entry["name"])
        if _kind(entry) == "InputLayer":
            shape = entry["config"]["batch_shape"] if name == inputs[0] else shape
            continue
        calls = entry["inbound_nodes"]
        node = Node(name, _kind(entry), _checked(entry), ())
        if len(calls) != 1:
            raise layers.refusal(node, f"is called {len(calls)} times")
        node = replace(node, inputs=tuple(_arguments(node, calls[0])))
        if not {i for i in node.inputs if isinstance(i, str)} <= known:
            raise layers.refusal(node, "reads what is computed after it")
        known.add(name)
        nodes.append(node)
    if shape is None or not outputs or not set(outputs) <= known:
        raise LoadError("The model's inputs or outputs are not among its layers. Save it again.")
    return Graph(inputs[0], _observation(shape), tuple(nodes), tuple(outputs))


def _arguments(node: Node, call: Any) -> Iterator[str | float]:
    if not isinstance(call, dict):
        raise LoadError("The model was saved by Keras 2. Load it there or in Keras 3, and save it with Keras 3.")
    if any(value not in (None, False) for value in (call.get("kwargs") or {}).values()):
        raise layers.refusal(node, f"is called with keyword arguments {sorted(call['kwargs'])}")
    for argument in call["args"]:
        for part in argument if isinstance(argument, list) else [argument]:
            if isinstance(part, int | float) and not isinstance(part, bool):
                yield float(part)
            elif isinstance(part, dict) and part.get("class_name") == "__keras_tensor__":
                yield str(part["config"]["keras_history"][0])
            elif part is not None:
                raise layers.refusal(node, f"is called with {str(part)[:80]}")


def _references(value: Any) -> list[str]:
    """Return the layers that ``input_layers`` or ``output_layers`` name: one reference or a list of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if value and isinstance(value[0], str):
        value = [value]
    return [str(reference[0]) for reference in value]


def _observation(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or any(type(n) is not int or n < 1 for n in shape[1:]) or len(shape) < 2:
        raise LoadError(f"The model's input has the shape {str(shape)[:80]}; all but the batch must be known.")
    return tuple(shape[1:])


def _kind(entry: Any) -> str:
    """Return the class of an entry: of Keras' own layers by name, other classes with their module."""
    module, name = str(entry.get("module")), str(entry.get("class_name"))
    if module.startswith("keras.src.ops."):
        return f"ops.{name}"
    own = module == "keras.layers" or module.startswith("keras.src.layers.")
    return name if own else f"{module}.{name}"


def _checked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an entry's configuration, refusing what changes how any layer computes."""
    config: Mapping[str, Any] = entry["config"]
    node = Node(str(config["name"]), _kind(entry), config, ())
    policy = config.get("dtype")
    dtype = policy.get("config", {}).get("name") if isinstance(policy, dict) else policy
    if dtype not in (None, "float32"):
        raise layers.refusal(node, f"computes in {str(dtype)[:80]}, not in float32")
    for key in ("quantization_config", "lora_rank"):
        if config.get(key):
            raise layers.refusal(node, f"uses {key}")
    return config
