"""A traced graph as a network of its own, and small changes to graphs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from prunerl.trace import Layer, Trace

EIGHT_BITS = 127


class GraphNetwork(nn.Module):
    """Compute a traced graph with given tensors, which are its parameters and buffers under their own names."""

    def __init__(self, traced: Trace, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        read = [node for node in traced.module.graph.nodes if node.op == "placeholder" and node.users]
        named = parameter_names(traced)
        names = [named[node.name] for node in read]
        for name in dict.fromkeys(n for n in names if n is not None):
            if name in tensors:
                _put(self, name, tensors[name], trained=name in traced.trainable)
            else:
                _put(self, name, traced.constants[name], trained=False, persistent=False)
        # Not a child: the tensors alone are what a state dict of this network has.
        self.__dict__["_computed"] = copied(traced.module)
        self.__dict__["_sources"] = tuple(None if name is None else operator.attrgetter(name) for name in names)

    def forward(self, observations: Tensor) -> Tensor:
        """Map the network's inputs to its output."""
        own = [observations if source is None else source(self) for source in self.__dict__["_sources"]]
        result = self.__dict__["_computed"](*own)
        output: Tensor = result[0] if isinstance(result, (tuple, list)) else result
        return output


def _put(root: nn.Module, name: str, value: Tensor, *, trained: bool, persistent: bool = True) -> None:
    """Give a module a tensor under a dotted name, with bare modules on the way to it."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    own = value.detach().clone()
    if trained:
        root.register_parameter(last, nn.Parameter(own, requires_grad=False))
    else:
        root.register_buffer(last, own, persistent=persistent)


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a graph that other processes can be sent, without the inputs that nothing reads."""
    # What torch.export makes remembers a tracer that cannot be made anew when the graph is unpickled.
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op != "placeholder" or node.users:
            values[node] = graph.node_copy(node, values.__getitem__)
    return fx.GraphModule(module, graph)


def parameter_names(traced: Trace) -> dict[str, str | None]:
    """Map the name of each input of the graph to that of the tensor which it takes; None for the observation."""
    inputs = [node.name for node in traced.module.graph.nodes if node.op == "placeholder"]
    return dict(zip(inputs, traced.placeholders, strict=True))


def operands(node: fx.Node) -> tuple[int, int]:
    """Return the places of a layer's input and of its weight among a node's arguments."""
    return (1, 2) if node.target is torch.ops.aten.addmm.default else (0, 1)


def applies_directly(traced: Trace, layer: Layer) -> bool:
    """Tell whether a linear layer's weight is a parameter that nothing but this layer reads, under no other name."""
    if layer.kind != "linear" or layer.derived or any(layer.weight in same for same in traced.shared):
        return False
    names = parameter_names(traced)
    nodes = [node for node in traced.module.graph.nodes if node.name in layer.nodes]
    for node in nodes:
        weight = node.args[operands(node)[1]]
        if node.kwargs or not isinstance(weight, fx.Node) or names.get(weight.name) != layer.weight:
            return False
        if set(weight.users) != set(nodes):
            return False
    return True


def owns_bias(traced: Trace, layer: Layer) -> bool:
    """Tell whether a linear layer adds a bias that nothing else reads."""
    if layer.bias is None or any(layer.bias in same for same in traced.shared):
        return False
    names = parameter_names(traced)
    nodes = {node for node in traced.module.graph.nodes if node.name in layer.nodes}
    inputs = [n for n in traced.module.graph.nodes if n.op == "placeholder" and names[n.name] == layer.bias]
    return len(inputs) == 1 and set(inputs[0].users) == nodes


def rounded(x: Tensor, scale: float) -> Tensor:
    """Round to eight bits, ``clip(round(x / scale), ±127) · scale``, with the gradient of the clipping alone.

    Reference: Bengio 2013 (straight-through), Jacob 2018.
    """
    limit = EIGHT_BITS * scale
    inside = x.clamp(-limit, limit)
    codes = (x / scale).round().clamp(-EIGHT_BITS, EIGHT_BITS)
    # A difference of equal numbers is exactly zero, so the value is exactly that of the codes.
    return (codes * scale).detach() + (inside - inside.detach())


def with_rounded_inputs(traced: Trace, scales: Mapping[str, float]) -> Trace:
    """Return a trace whose layers round their inputs first.

    Args:
        traced: The network.
        scales: Name of a layer's weight → scale of its inputs.
    """
    if not scales:
        return traced
    module = fx.GraphModule(traced.module, fx.Graph())
    values: dict[fx.Node, fx.Node] = {}
    by_node = {name: scales[e.weight] for e in traced.layers if e.weight in scales for name in e.nodes}
    for node in traced.module.graph.nodes:
        new = module.graph.node_copy(node, values.__getitem__)
        values[node] = new
        if node.name in by_node:
            place = operands(node)[0]
            with module.graph.inserting_before(new):
                source = module.graph.call_function(rounded, (new.args[place], by_node[node.name]))
            new.update_arg(place, source)
    module.recompile()
    return replace(traced, module=module)
