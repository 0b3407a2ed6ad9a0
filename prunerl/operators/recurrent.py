"""Rules for recurrent layers and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from prunerl import labels
from prunerl.labels import Ids
from prunerl.operators.walk import OBSERVED, Outputs, Use, Walk, arguments, described, name

MEMORY = "a memory of fixed width"


def recurrent(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for LSTM, GRU and plain recurrent layers; all layers and directions have the same units.

    That is how PyTorch's modules have it: one ``hidden_size``.
    """
    source, memory, weights, biases, layers, _, _, both, _ = arguments(node)
    directions = 2 if both else 1
    each = 4 if biases else 2
    if "input" not in str(node.target) or len(weights) != each * int(layers) * directions:
        for value in (source, *weights, *_listed(memory)):
            walk.keep(value, f"packed sequences or projections, which have no rule: {described(node)}")
        return tuple(() for _ in walk.shapes[node])
    hidden = walk.ids(weights[1], 1)
    assert hidden is not None  # a parameter is labelled in all its dimensions
    enters = walk.ids(source, len(walk.shape(source)) - 1)
    for start in range(0, len(weights), each):
        inner = start >= each * directions
        outside = "" if start else source.name
        own = np.tile(hidden, directions) if inner else enters
        _matrices(walk, node, weights[start : start + each], hidden, own, outside)
    for value in _listed(memory):
        _remembers(walk, value, hidden)
    shapes: Any = walk.shapes[node]
    made = np.tile(hidden, directions)
    output = (labels.along(len(shapes[0]), len(shapes[0]) - 1, made),)
    return (output, *((labels.along(len(s), len(s) - 1, hidden),) for s in shapes[1:]))


def cell(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for one step of an LSTM, a GRU or a plain recurrent layer."""
    source, memory, *weights = arguments(node)
    hidden = walk.ids(weights[1], 1)
    assert hidden is not None  # a parameter is labelled in all its dimensions
    own = [w for w in weights if w is not None]
    _matrices(walk, node, own, hidden, walk.ids(source, len(walk.shape(source)) - 1), source.name)
    for value in _listed(memory):
        _remembers(walk, value, hidden)
    shapes: Any = walk.shapes[node]
    if isinstance(shapes[0], int):
        return (labels.along(len(shapes), len(shapes) - 1, hidden),)
    return tuple((labels.along(len(s), len(s) - 1, hidden),) for s in shapes)


def _listed(memory: Any) -> list[Any]:
    return list(memory) if isinstance(memory, (list, tuple)) else [memory]


def _remembers(walk: Walk, value: Any, hidden: Ids) -> None:
    if isinstance(value, fx.Node) and name(value) not in ("empty_memory", "empty_state"):  # which is made to fit
        walk.line_up(hidden, walk.ids(value, -1), MEMORY)


def _matrices(walk: Walk, node: fx.Node, tensors: list[fx.Node], hidden: Ids, enters: Ids | None, outside: str) -> None:
    """Say that a unit owns a row of each gate of both matrices and biases, and a column of the second matrix."""
    first, second, *vectors = tensors
    own, reads = walk.ids(second, 1), walk.ids(first, 1)
    assert own is not None  # a parameter is labelled in all its dimensions
    walk.elements.join(hidden, own)
    walk.contracted.append(own)
    for part in tensors:
        rows = walk.ids(part, 0)
        if rows is not None:
            walk.elements.join(np.tile(hidden, len(rows) // len(hidden)), rows)
    if reads is not None:
        walk.contracted.append(reads)
    walk.line_up(enters, reads, OBSERVED)
    for weight, seen, bias in zip((first, second), (outside, ""), (vectors or (None, None)), strict=True):
        walk.uses.append(Use(node.name, "recurrent", seen, weight.name, None if bias is None else bias.name))


RULES = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), cell),
}
