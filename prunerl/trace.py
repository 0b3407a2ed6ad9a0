"""Trace a policy network with ``torch.export`` and find the units that live or die together.

The trace works on parameters, not on modules: each ATen operator has one rule below that says which dimension of
which parameter makes a unit and which one reads it. A trace holds no widths, so it stays valid while units are
removed; it is made anew when a layer is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunerl.errors import TraceError
from prunerl.types import Group, Slice, State, Structure


@dataclass(frozen=True)
class Layer:
    """An affine map ``y = x Wᵀ + b`` of the traced graph.

    Attributes:
        name: Name of the weight without its last part, such as ``q_net.q_net.0``.
        node: Name of the graph node.
        weight, bias: Parameter names.
        transposed: The weight is stored as (inputs, outputs).
        reads, makes: Name of the group of units that it reads and makes; None for the network's input and output.
    """

    name: str
    node: str
    weight: str
    bias: str | None
    transposed: bool
    reads: str | None
    makes: str | None


@dataclass(frozen=True)
class Coupling:
    """A group without its widths: the (tensor, dimension) pairs that its units own."""

    name: str
    owns: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """The graph of a policy network.

    Attributes:
        module: The graph; call it through :func:`forward`.
        placeholders: Name of the tensor that each graph input takes; None for the observation.
        constants: Tensors that are part of the graph.
        layers: The affine maps in order of computation.
        couplings: The groups of units that may be removed.
        kept_whole: Name → reason, for what will not be pruned.
    """

    module: fx.GraphModule
    placeholders: tuple[str | None, ...]
    constants: Mapping[str, Tensor]
    layers: tuple[Layer, ...]
    couplings: tuple[Coupling, ...]
    kept_whole: Mapping[str, str]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors that the network reads, in order, without constants."""
        return tuple(p for p in self.placeholders if p is not None and p not in self.constants)


@dataclass(frozen=True, eq=False)
class Activity:
    """What a forward pass computed: the output, and each layer's input and output, shape (batch, features)."""

    output: Tensor
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def trace(network: nn.Module, observations: Tensor) -> Trace:
    """Trace ``network`` on a batch of observations.

    Args:
        network: Maps observations, shape (batch, *observation), to the head's input, shape (batch, outputs).
        observations: An example batch; at least two observations.

    Raises:
        TraceError: An operator has no rule, or ``torch.export`` cannot read the network.
    """
    try:
        program = torch.export.export(network, (observations,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # torch.export raises many types; all mean that the network is not a plain graph
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TraceError(
            f"torch.export cannot read {type(network).__name__}: {first}. "
            "Make its forward free of Python control flow on tensor values."
        ) from error
    names, constants = _placeholders(program)
    return _Rules(program.graph_module, names, constants).run()


def forward(traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor) -> Tensor:
    """Compute the network's output with the given tensors in place of its own."""
    result = traced.module(*_arguments(traced, tensors, observations))
    output: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return output


def activity(traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor) -> Activity:
    """Compute the output and, on the way, every layer's input and output."""
    recorder = _Recorder(traced)
    result = recorder.run(*_arguments(traced, tensors, observations))
    output = result[0] if isinstance(result, (tuple, list)) else result
    return Activity(output, recorder.inputs, recorder.outputs)


def unit_groups(traced: Trace, tensors: Mapping[str, Tensor]) -> tuple[Group, ...]:
    """Return the groups of units at the widths that ``tensors`` have now."""
    groups = []
    for coupling in traced.couplings:
        units = {tensors[t].shape[d] for t, d in coupling.owns}
        if len(units) != 1:
            shapes = ", ".join(f"{t} {tuple(tensors[t].shape)}" for t, _ in coupling.owns)
            raise TraceError(f"Group {coupling.name!r} has unequal widths: {shapes}. Trace the network again.")
        index = torch.arange(units.pop()).unsqueeze(1)
        slices = tuple(Slice(t, d, index) for t, d in coupling.owns)
        groups.append(Group(coupling.name, len(index), slices))
    return tuple(groups)


def weight_groups(traced: Trace, state: State) -> tuple[Group, ...]:
    """Return one group a weight matrix, in which every entry is a unit of its own. Biases are kept."""
    groups = []
    for layer in traced.layers:
        index = torch.arange(state.tensors[layer.weight].numel()).unsqueeze(1)
        groups.append(Group(layer.weight, len(index), (Slice(layer.weight, None, index),), "weights"))
    return tuple(groups)


def layer_groups(traced: Trace) -> tuple[Group, ...]:
    """Return one group of a single unit for each hidden layer that can be dropped as a whole.

    A layer can be dropped when it alone makes its units and one other layer alone reads them.
    """
    groups = []
    for layer in traced.layers:
        readers = [other for other in traced.layers if other.reads == layer.makes]
        makers = [other for other in traced.layers if other.makes == layer.makes]
        if layer.makes is not None and len(readers) == len(makers) == 1:
            groups.append(Group(layer.name, 1, (), "layers"))
    return tuple(groups)


def groups(traced: Trace, state: State, structure: Structure) -> tuple[Group, ...]:
    """Return the groups of one structure: ``units``, ``weights`` or ``layers``."""
    if structure == "units":
        return unit_groups(traced, state.tensors)
    return weight_groups(traced, state) if structure == "weights" else layer_groups(traced)


def matrix(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a layer's weight as (outputs, inputs), whatever way it is stored."""
    weight = tensors[layer.weight]
    return weight.T if layer.transposed else weight


def _arguments(traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor) -> list[Tensor]:
    known = {**traced.constants, **tensors}
    return [observations if name is None else known[name] for name in traced.placeholders]


def _placeholders(program: torch.export.ExportedProgram) -> tuple[tuple[str | None, ...], dict[str, Tensor]]:
    names: list[str | None] = []
    constants: dict[str, Tensor] = {}
    for spec in program.graph_signature.input_specs:
        names.append(spec.target if spec.kind.name != "USER_INPUT" else None)
        if spec.kind.name == "CONSTANT_TENSOR" and spec.target is not None:
            constants[spec.target] = program.constants[spec.target]
    return tuple(names), constants


class _Recorder(fx.Interpreter):
    """Run the graph node by node and remember what enters and leaves each layer."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced.module)
        self.layers = {layer.node: layer.name for layer in traced.layers}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.layers:
            source = n.args[0]
            assert isinstance(source, fx.Node)  # the rule that made the layer saw a node here
            self.inputs[self.layers[n.name]] = self.env[source]
            self.outputs[self.layers[n.name]] = result
        return result


ELEMENTWISE = frozenset(
    "relu relu_ relu6 tanh tanh_ sigmoid sigmoid_ elu elu_ leaky_relu leaky_relu_ silu silu_ gelu softplus mish "
    "selu selu_ hardtanh hardtanh_ hardsigmoid hardswish celu logsigmoid softsign clamp clamp_min clamp_max abs "
    "exp square neg clone contiguous detach alias to _to_copy dropout rsub pow".split()
)
"""Operators that compute each entry of their output from the same entry of their first argument."""

BINARY = frozenset("add add_ sub sub_ mul mul_ div div_ maximum minimum".split())


class _Rules:
    """Walk the graph once, giving each value the set of units in its last dimension."""

    def __init__(
        self, module: fx.GraphModule, placeholders: tuple[str | None, ...], constants: Mapping[str, Tensor]
    ) -> None:
        self.module = module
        self.placeholders = placeholders
        self.constants = constants
        self.parameter: dict[fx.Node, str] = {}
        self.units: dict[fx.Node, str] = {}  # absent: made of the observation alone
        self.parent: dict[str, str] = {}
        self.owns: dict[str, list[tuple[str, int]]] = {}
        self.layers: list[tuple[str, str, str, str | None, bool, str | None, str]] = []
        self.rules: dict[str, Callable[[fx.Node], None]] = {"linear": self._linear, "matmul": self._matmul}

    def run(self) -> Trace:
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        for node, name in zip(inputs, self.placeholders, strict=True):
            if name is not None and name not in self.constants:
                self.parameter[node] = name
        outputs: list[fx.Node] = []
        for node in self.module.graph.nodes:
            if node.op == "call_function":
                self._apply(node)
            elif node.op == "output":
                outputs = list(node.all_input_nodes)
        fixed = {self._find(self.units[node]) for node in outputs if node in self.units}
        return self._trace(fixed)

    def _apply(self, node: fx.Node) -> None:
        operator = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
        touched = [n for n in node.all_input_nodes if n in self.units or n in self.parameter]
        if operator in self.rules:
            self.rules[operator](node)
        elif not touched:
            return
        elif operator in ELEMENTWISE and touched == [node.args[0]] and node.args[0] in self.units:
            self.units[node] = self.units[touched[0]]
        elif operator in BINARY:
            self._binary(node, touched)
        else:
            raise self._refusal(node)

    def _linear(self, node: fx.Node) -> None:
        source, weight, *bias = node.args
        self._affine(node, source, weight, bias[0] if bias else None, transposed=False)

    def _matmul(self, node: fx.Node) -> None:
        self._affine(node, node.args[0], node.args[1], None, transposed=True)

    def _affine(self, node: fx.Node, source: Any, weight: Any, bias: Any, *, transposed: bool) -> None:
        known_bias = bias is None or bias in self.parameter
        if weight not in self.parameter or source in self.parameter or not known_bias:
            raise self._refusal(node)
        name = self.parameter[weight]
        reads = self.units.get(source)
        if reads is not None:
            self.owns[self._find(reads)].append((name, 0 if transposed else 1))
        made = name.rpartition(".")[0] or name
        if made in self.owns or made in self.parent:
            raise TraceError(
                f"Layer {made!r} is used twice in one pass, which has no rule. Give each use its own layer."
            )
        self.owns[made] = [(name, 1 if transposed else 0)]
        self.parent[made] = made
        bias_name = None if bias is None else self.parameter[bias]
        if bias_name is not None:
            self.owns[made].append((bias_name, 0))
        self.units[node] = made
        self.layers.append((made, node.name, name, bias_name, transposed, reads, made))

    def _binary(self, node: fx.Node, touched: list[fx.Node]) -> None:
        vectors = [n for n in touched if n in self.parameter]
        labelled = [n for n in touched if n in self.units]
        others = [n for n in node.all_input_nodes if n not in touched]
        if not labelled or others or any(_shape(n)[:-1] not in ((), (1,)) for n in vectors):
            raise self._refusal(node)
        first = self._find(self.units[labelled[0]])
        for other in labelled[1:]:
            self._join(first, self._find(self.units[other]))
        for vector in vectors:
            pair = (self.parameter[vector], len(_shape(vector)) - 1)
            spans = bool(_shape(vector)) and (_shape(vector)[-1] > 1 or _shape(labelled[0])[-1] == 1)
            if spans and pair not in self.owns[first]:
                self.owns[first].append(pair)
        self.units[node] = first

    def _find(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def _join(self, first: str, second: str) -> None:
        if first != second:
            self.parent[second] = first
            self.owns[first].extend(self.owns.pop(second))

    def _refusal(self, node: fx.Node) -> TraceError:
        stack = node.meta.get("nn_module_stack") or {}
        where = next((path for path, _ in reversed(list(stack.values())) if path), "") or "the network itself"
        return TraceError(
            f"Operator {node.target} in layer {where!r} has no rule, so what depends on its units is not known. "
            "Prune another network, or replace that layer by linear layers and elementwise activations."
        )

    def _trace(self, fixed: set[str]) -> Trace:
        def final(name: str | None) -> str | None:
            found = None if name is None else self._find(name)
            return None if found in fixed else found

        layers = tuple(
            Layer(name, node, weight, bias, transposed, final(reads), final(makes))
            for name, node, weight, bias, transposed, reads, makes in self.layers
        )
        couplings = tuple(Coupling(n, tuple(own)) for n, own in self.owns.items() if n not in fixed)
        kept = {name: "its units are the network's output (actions)" for name in sorted(fixed)}
        return Trace(self.module, self.placeholders, self.constants, layers, couplings, kept)


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else ()
