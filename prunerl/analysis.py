"""Walk a graph at certain widths and gather what its labels say: groups of units, layers, and what is kept whole."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from prunerl import labels, operators
from prunerl.labels import FIXED, OUTPUT, Ids
from prunerl.operators import Walk
from prunerl.types import Group, Slice

Pair = tuple[str, int]
"""A tensor's name and one of its dimensions."""


@dataclass(frozen=True)
class LayerUse:
    """One use of a weight in the graph; see :class:`prunerl.operators.Use`, with the names of parameters.

    ``derived``: the weight that is applied is computed from ``weight`` and others; ``scaled``: by a norm over its
    ``inputs`` or over ``all`` entries. ``positions``: how often one observation applies it.
    """

    node: str
    kind: str
    source: str
    weight: str
    bias: str | None
    transposed: bool
    derived: bool
    scaled: str
    positions: int


class Summed(NamedTuple):
    """A dimension of a node's argument, and which units are at its places: (place, unit) pairs of each group."""

    argument: int
    dim: int
    places: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Analysis:
    """What the labels say at certain widths.

    Attributes:
        groups: Units that live or die together.
        contracted: The (tensor, dimension) pairs that are summed over units inside of an operator or a weight.
        summed: Node of the graph → the dimensions of its arguments that it sums over.
        normalised: Node of a LayerNorm → name of a group that it runs over → (place, unit) pairs, shape (places, 2).
        uses: The layers, in order of computation.
        whole: The pairs of which nothing is ever cut.
        kept: Name of a layer or parameter → why its units are never cut.
    """

    groups: tuple[Group, ...]
    contracted: frozenset[Pair]
    summed: Mapping[str, tuple[Summed, ...]]
    normalised: Mapping[str, Mapping[str, Tensor]]
    uses: tuple[LayerUse, ...]
    whole: frozenset[Pair]
    kept: Mapping[str, str]


def analyse(
    module: fx.GraphModule,
    placeholders: Sequence[str | None],
    arguments: Sequence[Tensor],
    constants: Collection[str] = (),
    shared: Sequence[tuple[str, ...]] = (),
    whole: Collection[Pair] = (),
) -> Analysis:
    """Walk a graph once on example arguments.

    Args:
        module: The graph.
        placeholders: The tensor that each input of the graph is; None for the observation.
        arguments: The inputs.
        constants: The tensors whose widths are never cut: the agent cannot be rebuilt with others.
        shared: Names of one and the same tensor.
        whole: What was found before to be never cut. At other widths it could look like a unit: where a layer is left
            with one unit, numbers that served several of them serve one.
    """
    recorder = _Shapes(module)
    with torch.no_grad():
        recorder.run(*arguments)
    walk = Walk(recorder.shapes)
    names: dict[fx.Node, str] = {}
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    for node, name in zip(inputs, placeholders, strict=True):
        if name is not None:
            walk.weights.add(node)
        if name is not None and name not in constants:
            names[node] = name
            shape = walk.shape(node)
            walk.labels[node] = tuple(
                labels.along(len(shape), d, walk.elements.new(n)) for d, n in enumerate(shape) if (name, d) not in whole
            )
    _share(walk, names, shared)
    results: list[fx.Node] = []
    for node in module.graph.nodes:
        if node.op == "call_function":
            operators.apply(walk, node)
        elif node.op == "output":
            results = list(node.all_input_nodes)
    for node in results:
        walk.keep(node, OUTPUT)
    return _gathered(walk, names)


def _share(walk: Walk, names: Mapping[fx.Node, str], shared: Sequence[tuple[str, ...]]) -> None:
    """Say that tensors that are one and the same have the same units, dimension by dimension."""
    nodes = {name: node for node, name in names.items()}
    for first, *others in shared:
        for other in others:
            for d in range(len(walk.shape(nodes[first]))):
                walk.line_up(walk.ids(nodes[first], d), walk.ids(nodes[other], d), "is another tensor as well")


class _Shapes(fx.Interpreter):
    """Run a graph and remember the shape of every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        elif isinstance(result, (tuple, list)) and result and all(isinstance(r, Tensor) for r in result):
            self.shapes[n] = tuple(tuple(r.shape) for r in result)
        return result


def _gathered(walk: Walk, names: Mapping[fx.Node, str]) -> Analysis:
    unit_of, reasons = walk.elements.classes()
    ids = {(names[node], f.dims[0]): f.ids.ravel() for node in names for f in walk.of(node)}
    uses = tuple(_uses(walk, names))
    groups, members = _groups({pair: unit_of[own] for pair, own in ids.items()}, uses)
    summed = np.zeros(walk.elements.count, dtype=bool)
    for own in walk.contracted:
        summed[own] = True
    sums: dict[str, tuple[Summed, ...]] = {}
    for node, argument, dim, own in walk.sums:
        places = _places(members, unit_of[own])
        if places:
            sums[node] = (*sums.get(node, ()), Summed(argument, dim, places))
    normalised = {node: _places(members, unit_of[own]) for node, own in walk.normalised}
    return Analysis(
        groups=groups,
        contracted=frozenset(pair for pair, own in ids.items() if summed[own].any())
        | frozenset(_derived(walk, names, ids, unit_of)),
        summed=sums,
        normalised={node: found for node, found in normalised.items() if found},
        uses=uses,
        whole=frozenset(pair for pair, own in ids.items() if not unit_of[own].any()),
        kept=_kept(ids, unit_of, reasons, uses, groups),
    )


def _derived(walk: Walk, names: Mapping[fx.Node, str], ids: Mapping[Pair, Ids], unit_of: Ids) -> Iterator[Pair]:
    """Yield the pairs that make up the summed dimension of weights that are computed from several parameters."""
    nodes = {node.name: node for node in walk.shapes}
    for use in walk.uses:
        weight = nodes[use.weight]
        reads = walk.ids(weight, 0 if use.transposed else 1)
        if operators.stored(weight) or reads is None:
            continue
        units = set(unit_of[reads].tolist()) - {FIXED}
        for name in (names[n] for n in _above(walk, names, weight)):
            yield from (pair for pair, own in ids.items() if pair[0] == name and units & set(unit_of[own].tolist()))


NORMS = {
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), "inputs"),
    **dict.fromkeys(("norm", "linalg_vector_norm", "mv", "matmul", "mm", "dot", "vdot", "sum"), "all"),
}


def _scaled(walk: Walk, node: fx.Node) -> str:
    """Return over what a weight is normalised on its way from the parameters, "" for nothing.

    Weight norm divides each row by its own norm, spectral norm the whole matrix by one that all rows and columns share.
    """
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if operators.name(current) in NORMS:
            return NORMS[operators.name(current)]
        waiting += [n for n in current.all_input_nodes if n in walk.weights]
    return ""


def _above(walk: Walk, names: Mapping[fx.Node, str], node: fx.Node) -> list[fx.Node]:
    """Return the parameters that a node is computed from, the nearest first."""
    found, waiting = [], [node]
    while waiting:
        current = waiting.pop(0)
        found += [current] if current in names else []
        waiting += [n for n in current.all_input_nodes if n in walk.weights]
    return found


def _uses(walk: Walk, names: Mapping[fx.Node, str]) -> Iterator[LayerUse]:
    """Yield the layers with the parameters that their weights are, or are computed from."""
    nodes = {node.name: node for node in walk.shapes}
    for use in walk.uses:
        weight, derived, flipped = _parameter(walk, names, nodes[use.weight])
        bias = None if use.bias is None else _parameter(walk, names, nodes[use.bias])[0]
        shapes: Any = walk.shapes[nodes[use.node]]
        output = shapes if isinstance(shapes[0], int) else shapes[0]
        width = walk.shape(nodes[use.weight])[1 if use.transposed else 0]
        width = output[-1] if use.kind == "recurrent" else width
        positions = math.prod(output) // max(width * output[0], 1)
        turned = use.transposed != flipped
        if weight is not None:
            scaled = _scaled(walk, nodes[use.weight]) if derived else ""
            yield LayerUse(use.node, use.kind, use.source, weight, bias, turned, derived, scaled, positions)


def _parameter(walk: Walk, names: Mapping[fx.Node, str], node: fx.Node) -> tuple[str | None, bool, bool]:
    """Return the parameter behind a weight, whether the weight is computed from it, and whether only turned over."""
    if node in names:
        return names[node], False, False
    source = node.args[0] if node.args else None
    if operators.name(node) in ("t", "transpose", "numpy_T", "mT", "permute") and source in names:
        return names[source], False, True  # type: ignore[index]
    above = _above(walk, names, node)
    for order in ((0, 1), (1, 0)):
        alike = next((n for n in above if _same_units(walk, node, n, order)), None)
        if alike is not None:
            return names[alike], True, order == (1, 0)
    return (names[above[0]] if above else None), True, False


def _same_units(walk: Walk, node: fx.Node, parameter: fx.Node, order: tuple[int, int]) -> bool:
    """Return whether the first two dimensions of two weights have the same elements, in this order."""
    if len(walk.shape(node)) != len(walk.shape(parameter)) or len(walk.shape(node)) < 2:
        return False
    pairs = [(walk.ids(node, d), walk.ids(parameter, own)) for d, own in enumerate(order)]
    return all(np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


def _groups(owned: Mapping[Pair, Ids], uses: Sequence[LayerUse]) -> tuple[tuple[Group, ...], dict[str, Ids]]:
    """Group the units that own rows of the same tensors in the same numbers.

    Returns:
        The groups, in the order of the layers that make them, and the units of each by its name.
    """
    pairs = list(owned)
    unit = np.concatenate([owned[p] for p in pairs]) if pairs else np.empty(0, dtype=np.int64)
    pair = np.repeat(np.arange(len(pairs)), [len(owned[p]) for p in pairs])
    row = np.concatenate([np.arange(len(owned[p])) for p in pairs]) if pairs else unit
    live = unit != FIXED
    unit, pair, row = unit[live], pair[live], row[live]
    order = np.lexsort((row, pair, unit))
    unit, pair, row = unit[order], pair[order], row[order]
    if not len(unit):
        return (), {}
    starts = np.flatnonzero(np.r_[True, (unit[1:] != unit[:-1]) | (pair[1:] != pair[:-1])])
    counts = np.diff(np.r_[starts, len(unit)])
    shares = _mixed(pair[starts] * np.int64(1_000_003) + counts)
    units, first = np.unique(unit[starts], return_index=True)
    signature = np.add.reduceat(shares, first)
    made = {(use.weight, 1 if use.transposed else 0) for use in uses}
    groups = []
    for kind in dict.fromkeys(signature.tolist()):
        members = units[signature == kind]
        mine = np.isin(unit, members)
        slices = []
        for p in np.unique(pair[mine]):
            rows = row[mine & (pair == p)].reshape(len(members), -1)
            slices.append(Slice(pairs[p][0], pairs[p][1], torch.from_numpy(rows)))
        # One dimension that no layer makes is a width of nothing, such as the 1 of a vector of lengths.
        if len(slices) > 1 or (slices[0].tensor, slices[0].dim) in made:
            groups.append((members, tuple(slices)))
    named = _named(groups, uses)
    groups_made = tuple(Group(name, len(members), slices) for name, (members, slices) in named.items())
    return groups_made, {name: members for name, (members, _) in named.items()}


def _mixed(numbers: Ids) -> Ids:
    """Spread numbers over 64 bits, so that sums of different ones differ (splitmix64, Steele 2014)."""
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


Unnamed = tuple[Ids, tuple[Slice, ...]]


def _named(groups: Sequence[Unnamed], uses: Sequence[LayerUse]) -> dict[str, Unnamed]:
    """Name each group after the first layer that makes its units, and put the groups in the order of those layers."""
    makers: dict[Pair, tuple[int, str]] = {}
    for i, use in enumerate(uses):
        makers.setdefault((use.weight, 1 if use.transposed else 0), (i, use.weight))
    found = []
    for members, slices in groups:
        made = [makers[s.tensor, s.dim or 0] for s in slices if (s.tensor, s.dim or 0) in makers]
        found.append((*min(made, default=(len(uses), slices[0].tensor)), members, slices))
    named: dict[str, Unnamed] = {}
    for _, tensor, members, slices in sorted(found, key=lambda f: (f[0], int(f[2][0]))):
        base = tensor.rpartition(".")[0] or tensor
        name, number = base, 2
        while name in named:
            name, number = f"{base}#{number}", number + 1
        named[name] = (members, slices)
    return named


def _places(members: Mapping[str, Ids], units: Ids) -> dict[str, Tensor]:
    """Return, for each group that has any of the units, pairs of a position and the place of its unit in the group."""
    found = {}
    for name, own in members.items():  # sorted, as np.unique left them
        place = np.searchsorted(own, units).clip(max=len(own) - 1)
        positions = np.flatnonzero(own[place] == units)
        if len(positions):
            found[name] = torch.from_numpy(np.stack([positions, place[positions]], axis=1))
    return found


def _kept(
    ids: Mapping[Pair, Ids],
    unit_of: Ids,
    reasons: Sequence[str | None],
    uses: Sequence[LayerUse],
    groups: Sequence[Group],
) -> dict[str, str]:
    """Return why each layer, and each parameter outside of layers, is not pruned, wholly or in part."""
    kept: dict[str, str] = {}
    in_layers = {name for use in uses for name in (use.weight, use.bias) if name is not None}
    owned = {part.tensor for group in groups for part in group.slices}
    wanted = [(_layer_name(u), (u.weight, 1 if u.transposed else 0)) for u in uses]
    wanted += [(name, (name, d)) for name, d in ids if name not in in_layers | owned]
    for name, pair in wanted:
        own = ids.get(pair, np.empty(0, dtype=np.int64))
        whole = own[unit_of[own] == FIXED]
        if len(whole):
            reason = next((reasons[i] for i in whole.tolist() if reasons[i]), None)
            part = "" if len(whole) == len(own) else f"{len(whole)} of {len(own)} units: "
            kept.setdefault(name, part + (reason or "combined with values of fixed width"))
    return kept


def _layer_name(use: LayerUse) -> str:
    return use.weight if use.kind == "recurrent" else use.weight.rpartition(".")[0] or use.weight
