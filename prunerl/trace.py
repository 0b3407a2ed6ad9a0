"""Trace a policy network with ``torch.export`` and find the units that live or die together.

The trace works on parameters, not on modules: ``prunerl.operators`` has one rule for each ATen operator, which says
which entries of which parameters belong together. The graph holds no widths, so a trace stays valid while units are
removed; it is made anew when a layer is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunerl import graph
from prunerl.analysis import Analysis, analyse
from prunerl.errors import TraceError
from prunerl.types import Decision, Group, Slice, State, Structure

EXAMPLES = 3
"""Observations that a network is traced on. One would look like the 1 of a broadcast."""


@dataclass(frozen=True)
class Layer:
    """An affine map of the traced graph: linear, convolution, or one matrix of a recurrent layer.

    Attributes:
        name: Name of the weight without its last part, such as ``q_net.q_net.0``; of a recurrent layer the whole name.
        nodes: Names of the graph nodes that apply it, one for each use.
        kind: ``linear``, ``conv``, ``transposed_conv`` or ``recurrent``.
        seen: Its inputs and outputs are values of the graph, not inside of an operator.
        weight, bias: Parameter names.
        transposed: The weight is stored as (inputs, outputs).
        derived: The weight that is applied is computed from ``weight`` and others, as by weight norm.
        reads, makes: Names of the groups of units that it reads and makes; empty where those are never cut.
        positions: How often one decision applies it, such as once for each pixel of a convolution's output.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    seen: bool
    weight: str
    bias: str | None
    transposed: bool
    derived: bool
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    positions: int


@dataclass(frozen=True, eq=False)
class Trace:
    """The graph of a policy network.

    Attributes:
        module: The graph; call it through :func:`forward`.
        placeholders: Name of the tensor that each graph input takes; None for the observation.
        constants: Tensors that are part of the graph.
        trainable: Names of the parameters; other tensors are buffers.
        layers: The affine maps in order of computation.
        output: Name of the layer whose output is the network's, if it is one alone.
        kept_whole: Name of a layer → reason, for what will not be pruned.
        couplings: Name of a group → the (tensor, dimension) pairs that its units own.
        normalised: Names of groups that a LayerNorm, weight norm or spectral norm runs over: without a unit, what is
            left is normalised by other numbers.
        shared: Names of tensors that are one and the same.
        whole: The (tensor, dimension) pairs of which nothing is ever cut.
        example: The observations that the network was traced on.
    """

    module: fx.GraphModule
    placeholders: tuple[str | None, ...]
    constants: Mapping[str, Tensor]
    trainable: frozenset[str]
    layers: tuple[Layer, ...]
    output: str | None
    kept_whole: Mapping[str, str]
    couplings: Mapping[str, tuple[tuple[str, int], ...]]
    normalised: frozenset[str]
    shared: tuple[tuple[str, ...], ...]
    whole: frozenset[tuple[str, int]]
    example: Tensor
    analyses: dict[tuple[Any, ...], Analysis] = field(default_factory=dict, repr=False)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tensors that the network reads, in order, without constants."""
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        read = [name for node, name in zip(inputs, self.placeholders, strict=True) if node.users]
        return tuple(name for name in read if name is not None and name not in self.constants)


@dataclass(frozen=True, eq=False)
class Activity:
    """What a forward pass computed: the output, and each layer's input and output.

    Features are the last dimension of a linear layer's values and dimension 1 of a convolution's: see
    :func:`features`. Of a layer that is used several times the uses follow each other in the batch.
    """

    output: Tensor
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def trace(network: nn.Module, observations: Tensor, *, recurrent: bool = False) -> Trace:
    """Trace ``network`` on a batch of observations.

    Args:
        network: Maps observations, shape (batch, *observation), to the head's input, shape (batch, outputs).
        observations: An example batch; at least two observations, of which a few are looked at.
        recurrent: The network maps sequences, shape (batch, time, *observation), and so are the observations.

    Raises:
        TraceError: ``torch.export`` cannot read the network.
    """
    observations = observations[:EXAMPLES]
    # PyTorch's own LSTM fixes the time, which is in no shape of the graph: AUTO lets it.
    dynamic = {0: torch.export.Dim.DYNAMIC, **({1: torch.export.Dim.AUTO} if recurrent else {})}
    try:
        with torch.no_grad():  # where the network turns gradients off itself, the graph would be in two parts
            program = torch.export.export(network, (observations,), dynamic_shapes=(dynamic,))
    except Exception as error:  # torch.export raises many types; all mean that the network is not a plain graph
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TraceError(
            f"torch.export cannot read {type(network).__name__}: {first}. "
            "Make its forward free of Python control flow on tensor values."
        ) from error
    names, constants, trainable = _placeholders(program)
    module = graph.without_widths(program.graph_module)
    example = observations.detach().clone()
    live = network.state_dict(keep_vars=True)
    bare = Trace(
        module, names, constants, trainable, (), None, {}, {}, frozenset(), _shared(live), frozenset(), example
    )
    tensors = {n: t.detach() for n, t in live.items()}
    found = _analysed(bare, tensors)
    layers = _layers(found, steps=example.shape[1] if recurrent else 1)
    results = next(n for n in module.graph.nodes if n.op == "output").all_input_nodes
    return replace(
        bare,
        layers=layers,
        output=next((e.name for e in layers if e.kind == "linear" and {n.name for n in results} == set(e.nodes)), None),
        kept_whole=dict(found.kept),
        couplings={g.name: tuple((p.tensor, p.dim or 0) for p in g.slices) for g in found.groups},
        whole=found.whole,
        normalised=frozenset(name for places in found.normalised.values() for name in places)
        | _scaled(found, {e.weight: e for e in layers}),
    )


def _scaled(found: Analysis, layers: Mapping[str, Layer]) -> frozenset[str]:
    """Return the groups without which a computed weight is normalised by another number."""
    names: list[str] = []
    for use in (u for u in found.uses if u.scaled):
        layer = layers[use.weight]
        names += [*layer.reads, *(layer.makes if use.scaled == "all" else ())]
    return frozenset(names)


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
    inputs = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in recorder.inputs.items()}
    outputs = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in recorder.outputs.items()}
    return Activity(output, inputs, outputs)


def masked_forward(
    traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor, groups: Sequence[Group], decision: Decision
) -> Tensor:
    """Compute the output of the network at full size, as if nothing read the units that a decision gives up.

    Whatever sums over units takes zeros in their place. A LayerNorm takes its statistics over the units that are kept:
    that is the one place where removing a unit is not the same as setting it to zero.
    """
    found = _analysed(traced, tensors)
    own = dict(tensors)
    for group in (g for g in groups if g.name in decision):
        for part in group.slices:
            if part.dim is not None and (part.tensor, part.dim) in found.contracted:
                rows = part.index[~decision[group.name]].flatten()
                own[part.tensor] = own[part.tensor].index_fill(part.dim, rows, 0.0)
    silent = {n: [(s.argument, s.dim, _gone(s.places, decision)) for s in sums] for n, sums in found.summed.items()}
    gone = {n: _gone(places, decision) for n, places in found.normalised.items()}
    result = _Masker(traced, silent, {node: places for node, places in gone.items() if len(places)}).run(
        *_arguments(traced, own, observations)
    )
    output: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return output


def unit_groups(traced: Trace, tensors: Mapping[str, Tensor]) -> tuple[Group, ...]:
    """Return the groups of units at the widths that ``tensors`` have now.

    Raises:
        TraceError: The tensors' widths do not fit each other.
    """
    return _analysed(traced, tensors).groups


def weight_groups(traced: Trace, state: State) -> tuple[Group, ...]:
    """Return one group a weight matrix, in which every entry is a unit of its own. Biases are kept."""
    groups = []
    for name in dict.fromkeys(layer.weight for layer in traced.layers):
        index = torch.arange(state.tensors[name].numel()).unsqueeze(1)
        groups.append(Group(name, len(index), (Slice(name, None, index),), "weights"))
    return tuple(groups)


def layer_groups(traced: Trace, stacks: Sequence[str] | None = None) -> tuple[Group, ...]:
    """Return one group of a single unit for each hidden layer that can be dropped as a whole.

    A linear layer can be dropped when it alone makes its units, one other linear layer alone reads them, and nothing
    between them has parameters.

    Args:
        traced: The network.
        stacks: Prefixes of the layers that the agent can be rebuilt without; None for all.
    """
    groups = []
    for layer in traced.layers:
        allowed = stacks is None or any(layer.name.startswith(prefix) for prefix in stacks)
        if allowed and reader_of(traced, layer) is not None:
            groups.append(Group(layer.name, 1, (), "layers"))
    return tuple(groups)


def reader_of(traced: Trace, layer: Layer) -> Layer | None:
    """Return the layer that alone reads what ``layer`` alone makes, if there is one."""
    readers = [other for other in traced.layers if set(other.reads) & set(layer.makes)]
    makers = [other for other in traced.layers if set(other.makes) & set(layer.makes)]
    plain = [entry for entry in (*readers, *makers) if entry.kind == "linear" and len(entry.nodes) == 1]
    if len(readers) != 1 or len(makers) != 1 or len(plain) != 2 or len(layer.makes) != 1:
        return None
    alone = readers[0].reads == layer.makes and not (layer.derived or readers[0].derived)
    own = [n for n in (layer.weight, layer.bias, readers[0].weight) if n is not None]
    owned = [tensor for tensor, _ in traced.couplings[layer.makes[0]]]
    return readers[0] if alone and sorted(owned) == sorted(own) else None


def groups(traced: Trace, state: State, structure: Structure) -> tuple[Group, ...]:
    """Return the groups of one structure: ``units``, ``weights`` or ``layers``."""
    if structure == "units":
        return unit_groups(traced, state.tensors)
    return weight_groups(traced, state) if structure == "weights" else layer_groups(traced)


def matrix(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a layer's weight as (outputs, inputs, *kernel), whatever way it is stored."""
    weight = tensors[layer.weight]
    return weight.transpose(0, 1) if layer.transposed else weight


def features(layer: Layer, values: Tensor) -> Tensor:
    """Return a layer's inputs or outputs as (samples, features), each place of a convolution a sample."""
    last = values.movedim(-(values.dim() - 1), -1) if "conv" in layer.kind else values
    return last.flatten(0, -2)


def _arguments(traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor) -> list[Tensor]:
    known = {**traced.constants, **tensors}
    unread = torch.empty(0)  # of a target network, say, which the graph lists but does not use
    return [observations if name is None else known.get(name, unread) for name in traced.placeholders]


def _shared(live: Mapping[str, Tensor]) -> tuple[tuple[str, ...], ...]:
    """Return the names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in live.items():
        names.setdefault(id(tensor), []).append(name)
    return tuple(tuple(same) for same in names.values() if len(same) > 1)


def _placeholders(
    program: torch.export.ExportedProgram,
) -> tuple[tuple[str | None, ...], dict[str, Tensor], frozenset[str]]:
    names: list[str | None] = []
    constants: dict[str, Tensor] = {}
    trainable = set()
    for spec in program.graph_signature.input_specs:
        names.append(spec.target if spec.kind.name != "USER_INPUT" else None)
        lifted = spec.kind.name == "CONSTANT_TENSOR" or (spec.kind.name == "BUFFER" and not spec.persistent)
        if lifted and spec.target is not None:
            constants[spec.target] = program.constants[spec.target]
        if spec.kind.name == "PARAMETER" and spec.target is not None:
            trainable.add(spec.target)
    return tuple(names), constants, frozenset(trainable)


def _analysed(traced: Trace, tensors: Mapping[str, Tensor]) -> Analysis:
    """Return what the labels say at these widths, from memory where they were seen before."""
    key = tuple(tuple(tensors[name].shape) for name in traced.parameters)
    if key not in traced.analyses:
        try:
            inputs = _arguments(traced, tensors, traced.example)
            found = analyse(traced.module, traced.placeholders, inputs, traced.constants, traced.shared, traced.whole)
        except RuntimeError as error:
            first = (str(error).strip().splitlines() or [""])[0]
            raise TraceError(f"The tensors' widths do not fit each other: {first}. Trace the network again.") from error
        traced.analyses[key] = found
    return traced.analyses[key]


def _layers(found: Analysis, *, steps: int) -> tuple[Layer, ...]:
    """Merge the uses of each weight into layers, and say what each reads and makes."""
    owners: dict[tuple[str, int], list[str]] = {}
    for group in found.groups:
        for part in group.slices:
            owners.setdefault((part.tensor, part.dim or 0), []).append(group.name)
    layers: dict[str, Layer] = {}
    for use in found.uses:
        if use.weight in layers:
            known = layers[use.weight]
            nodes, positions = (*known.nodes, use.node), known.positions + use.positions
            layers[use.weight] = replace(known, nodes=nodes, positions=positions)
            continue
        inner, outer = (0, 1) if use.transposed else (1, 0)
        layers[use.weight] = Layer(
            name=use.weight if use.kind == "recurrent" else use.weight.rpartition(".")[0] or use.weight,
            nodes=(use.node,),
            kind=use.kind,
            seen=use.source != "",
            weight=use.weight,
            bias=use.bias,
            transposed=use.transposed,
            derived=use.derived,
            reads=tuple(owners.get((use.weight, inner), ())),
            makes=tuple(owners.get((use.weight, outer), ())),
            positions=max(1, use.positions),
        )
    return tuple(replace(e, positions=max(1, e.positions // steps)) for e in layers.values())


class _Recorder(fx.Interpreter):
    """Run the graph node by node and remember what enters and leaves each layer."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced.module)
        self.layers = {node: layer for layer in traced.layers if layer.seen for node in layer.nodes}
        self.inputs: dict[str, list[Tensor]] = {}
        self.outputs: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        layer = self.layers.get(n.name)
        if layer is not None:
            source = n.args[1] if n.target is torch.ops.aten.addmm.default else n.args[0]
            assert isinstance(source, fx.Node)  # the rule that made the layer saw a node here
            self.inputs.setdefault(layer.name, []).append(self.env[source])
            if layer.kind != "recurrent":
                self.outputs.setdefault(layer.name, []).append(result)
        return result


def _gone(places: Mapping[str, Tensor], decision: Decision) -> Tensor:
    """Return the places whose units a decision gives up."""
    found = [pairs[~decision[name][pairs[:, 1]], 0] for name, pairs in places.items() if name in decision]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long)


class _Masker(fx.Interpreter):
    """Run the graph with zeros in some places of what is summed over units, and LayerNorm without some places."""

    def __init__(
        self, traced: Trace, silent: Mapping[str, list[tuple[int, int, Tensor]]], gone: Mapping[str, Tensor]
    ) -> None:
        super().__init__(traced.module)
        self.silent, self.gone = silent, gone

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self.silent:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            masked = list(args)
            for argument, dim, places in self.silent[n.name]:
                masked[argument] = masked[argument].index_fill(dim, places, 0.0)
            return self.call_function(n.target, tuple(masked), kwargs)
        if n.name in self.gone:
            return self._normalised(n, self.gone[n.name])
        return super().run_node(n)

    def _normalised(self, n: fx.Node, gone: Tensor) -> Tensor:
        (x, dims, *rest), _ = self.fetch_args_kwargs_from_env(n)
        keep = torch.ones(x.shape[-1], dtype=torch.bool).index_fill_(0, gone, False)
        vectors = [v[keep] if isinstance(v, Tensor) else v for v in rest]
        inner = self.call_function(n.target, (x[..., keep], dims, *vectors), {})
        full: Tensor = torch.zeros_like(x)
        full[..., keep] = inner
        return full
