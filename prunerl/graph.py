"""Take the widths out of a graph, so that it computes with tensors of other widths as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CELLS = ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")


def layer_norm(x: Tensor, dims: int, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
    """Normalise over the last ``dims`` dimensions, whatever their sizes are."""
    return F.layer_norm(x, x.shape[-dims:], weight, bias, epsilon)


def rms_norm(x: Tensor, dims: int, weight: Tensor | None, epsilon: float | None) -> Tensor:
    """Divide by the root mean square over the last ``dims`` dimensions, whatever their sizes are."""
    return F.rms_norm(x, list(x.shape[-dims:]), weight, epsilon)


def empty_memory(x: Tensor, weight: Tensor, count: int, batch: int | None) -> Tensor:
    """Return an empty memory that fits a recurrent layer's weight: (count, batch, units)."""
    batches = () if batch is None else (x.shape[batch],)
    return x.new_zeros(count, *batches, weight.shape[1])


def empty_state(x: Tensor, weight: Tensor) -> Tensor:
    """Return an empty memory that fits a recurrent cell's weight: (batch, units)."""
    return x.new_zeros(*x.shape[:-1], weight.shape[1])


def without_widths(module: fx.GraphModule) -> fx.GraphModule:
    """Replace the widths that ``torch.export`` wrote into a graph as numbers; the module is changed and returned."""
    for node in list(module.graph.nodes):
        operator = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        if operator in ("layer_norm", "rms_norm"):
            _norm(module, node, operator)
        elif operator in RECURRENT and ".input" in str(node.target):
            _memory(module, node)
        elif operator in CELLS:
            _cell_memory(module, node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _norm(module: fx.GraphModule, node: fx.Node, operator: str) -> None:
    x, shape, *rest = node.args
    given: Any = [*rest, *[None] * 3]
    function, options = (layer_norm, given[:3]) if operator == "layer_norm" else (rms_norm, given[:2])
    if operator == "layer_norm" and options[2] is None:
        options[2] = 1e-5
    with module.graph.inserting_before(node):
        new = module.graph.call_function(function, (x, len(shape), *options))  # type: ignore[arg-type]
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _memory(module: fx.GraphModule, node: fx.Node) -> None:
    """Let the empty memory of a recurrent layer fit its weights."""
    args: list[Any] = list(node.args)
    if len(args[2]) > (4 if args[3] else 2) * int(args[4]) * (2 if args[7] else 1):
        return  # with projections, whose units are kept
    count = int(args[4]) * (2 if args[7] else 1)
    batch = (0 if args[8] else 1) if len(args[0].meta["val"].shape) == 3 else None

    def fitting(value: fx.Node) -> fx.Node:
        if value.target is not torch.ops.aten.zeros.default:
            return value
        with module.graph.inserting_before(node):
            return module.graph.call_function(empty_memory, (args[0], args[2][1], count, batch))

    args[1] = [fitting(v) for v in args[1]] if isinstance(args[1], (list, tuple)) else fitting(args[1])
    node.args = tuple(args)


def _cell_memory(module: fx.GraphModule, node: fx.Node) -> None:
    """Let the empty memory of a recurrent cell fit its weights."""
    args: list[Any] = list(node.args)

    def fitting(value: fx.Node) -> fx.Node:
        if value.target is not torch.ops.aten.zeros.default:
            return value
        with module.graph.inserting_before(node):
            return module.graph.call_function(empty_state, (args[0], args[3]))

    args[1] = [fitting(v) for v in args[1]] if isinstance(args[1], (list, tuple)) else fitting(args[1])
    node.args = tuple(args)
