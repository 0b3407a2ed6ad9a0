"""How each ATen operator moves labels: one rule an operator, found by its name.

A rule takes the walk and a graph node, and gives the labels of the node's output (for an operator with several outputs,
one each). An operator without a rule keeps its inputs whole, with a reason that names it.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from prunerl import labels
from prunerl.labels import Elements, Factor, Ids, Labels

Shape = tuple[int, ...]
Outputs = Labels | tuple[Labels, ...]


@dataclass(frozen=True)
class Use:
    """A layer as the graph has it: one affine map of an activation.

    Attributes:
        node: Name of the graph node.
        kind: ``linear``, ``conv``, ``transposed_conv`` or ``recurrent``.
        source: Name of the node that is its input, or "" where that is inside of another operator.
        weight: Name of the node that is its weight.
        bias: Name of the node that is its bias.
        transposed: The weight is stored as (inputs, outputs).
    """

    node: str
    kind: str
    source: str
    weight: str
    bias: str | None
    transposed: bool = False


@dataclass(eq=False)
class Walk:
    """What is known while the graph is walked from its inputs to its outputs.

    Attributes:
        shapes: Shape of each value; several of an operator with several outputs.
        elements: What was said of the elements.
        labels: Labels of each value.
        weights: Nodes that are computed from parameters alone.
        uses: The layers so far.
        normalised: Nodes of LayerNorms, and the elements that they run over.
        contracted: Elements of weights that are summed over: where they are zero, a unit is not read.
        multiplied: Elements of other values that are summed over: those must be zero themselves.
    """

    shapes: Mapping[fx.Node, Any]
    elements: Elements = field(default_factory=Elements)
    labels: dict[fx.Node, Outputs] = field(default_factory=dict)
    weights: set[fx.Node] = field(default_factory=set)
    uses: list[Use] = field(default_factory=list)
    normalised: list[tuple[str, Ids]] = field(default_factory=list)
    contracted: list[Ids] = field(default_factory=list)
    multiplied: list[Ids] = field(default_factory=list)

    def of(self, node: Any) -> Labels:
        """Return the labels of a value with one output."""
        found = self.labels.get(node, ()) if isinstance(node, fx.Node) else ()
        return tuple(f for f in found if isinstance(f, Factor))

    def shape(self, node: Any) -> Shape:
        """Return the shape of a tensor, () for anything else."""
        found = self.shapes.get(node, ()) if isinstance(node, fx.Node) else ()
        return found if all(isinstance(n, int) for n in found) else ()

    def ids(self, node: Any, dim: int) -> Ids | None:
        """Return the elements along one dimension of a value; the others it shares a factor with are projected."""
        dim = dim % max(len(self.shape(node)), 1)
        found = labels.covering(self.of(node), dim)
        if found is None:
            return None
        own = labels.project(self.elements, found, (dim,))
        assert own is not None  # the factor covers the dimension
        return own.ids.ravel()

    def keep(self, node: Any, reason: str) -> None:
        """Keep all units of a value whole."""
        found = self.labels.get(node, ()) if isinstance(node, fx.Node) else ()
        for entry in found:
            for factor in (entry,) if isinstance(entry, Factor) else entry:
                self.elements.fix(factor.ids, reason)

    def line_up(self, first: Ids | None, second: Ids | None, reason: str) -> None:
        """Say that two dimensions have the same units; where one is not cut, the other is not either."""
        if first is not None and second is not None:
            self.elements.join(first, second)
        for one in (first, second):
            if one is not None and (first is None or second is None):
                self.elements.fix(one, reason)


Rule = Callable[[Walk, fx.Node], Outputs]

OBSERVED = "reads the observation"
_ELEMENTWISE = (
    "relu relu_ relu6 relu6_ tanh tanh_ sigmoid sigmoid_ elu elu_ leaky_relu leaky_relu_ silu silu_ gelu softplus mish "
    "selu selu_ hardtanh hardtanh_ hardsigmoid hardswish celu celu_ logsigmoid log_sigmoid softsign clamp clamp_ "
    "clamp_min clamp_max abs exp log sqrt rsqrt reciprocal square neg sign sin cos erf expm1 log1p clone contiguous "
    "detach detach_ alias to _to_copy type_as dropout dropout_ feature_dropout alpha_dropout rsub pow add add_ sub "
    "sub_ mul mul_ div div_ maximum minimum where addcmul addcdiv lerp masked_fill zeros_like ones_like full_like "
    "rand_like randn_like nan_to_num lift_fresh_copy prelu_ logical_not eq ne lt le gt ge"
).split()
_REDUCTIONS = ("sum", "mean", "amax", "amin", "max", "min", "std", "var", "norm", "linalg_vector_norm", "logsumexp")
_SPATIAL = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d"
).split()
IGNORED = frozenset("sym_size _assert_tensor_metadata _assert_scalar sym_constrain_range_for_size".split())


def _args(node: fx.Node) -> Any:
    """Return a node's arguments, whose types its operator says."""
    return node.args


def _option(node: fx.Node, place: int, keyword: str, default: Any) -> Any:
    """Return an argument by its place or keyword."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(keyword, default)


def name(node: fx.Node) -> str:
    """Return an operator's name, without its namespace and overload."""
    text = str(node.target)
    return text.split(".")[1] if text.startswith("aten.") else getattr(node.target, "__name__", text)


def apply(walk: Walk, node: fx.Node) -> None:
    """Give a node of the graph its labels."""
    operator_name = name(node)
    if operator_name in IGNORED:
        return
    inputs = [n for n in node.all_input_nodes if walk.labels.get(n)]
    if any(n in walk.weights for n in node.all_input_nodes) and set(node.all_input_nodes) <= walk.weights:
        walk.weights.add(node)
    if operator_name in RULES:
        walk.labels[node] = RULES[operator_name](walk, node)
    else:
        for each in inputs:
            walk.keep(each, f"read by {node.target}{_where(node)}, which has no rule")


def _where(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    where = next((path for path, _ in reversed(list(stack.values())) if path), "")
    return f" in layer {where!r}" if where else ""


def _elementwise(walk: Walk, node: fx.Node) -> Outputs:
    tensors = [n for n in node.all_input_nodes if isinstance(walk.shapes.get(n), tuple)]
    return labels.broadcast(walk.elements, [(walk.of(n), walk.shape(n)) for n in tensors], f"{node.target}")


def _weight_norm(walk: Walk, node: fx.Node) -> Outputs:
    directions, lengths = _args(node)[:2]
    shape = walk.shape(directions)
    wide = _wide(walk.of(lengths), walk.shape(lengths))
    values: list[tuple[Labels, Shape]] = [(walk.of(directions), shape), (wide, walk.shape(lengths))]
    return labels.broadcast(walk.elements, values, "weight_norm")


def _wide(own: Labels, shape: Shape) -> Labels:
    """Return labels without the dimensions of size 1, which span the other value's."""
    return tuple(f for f in own if all(shape[d] > 1 for d in f.dims))


def _affine(walk: Walk, node: fx.Node, source: Any, weight: Any, bias: Any, *, transposed: bool) -> Outputs:
    """Rule for y = x Wᵀ + b, with W stored as (outputs, inputs), or (inputs, outputs) where ``transposed``."""
    inner, outer = (0, 1) if transposed else (1, 0)
    last = len(walk.shape(source)) - 1
    reads, made = walk.ids(weight, inner), walk.ids(weight, outer)
    if reads is not None:
        walk.contracted.append(reads)
    walk.line_up(walk.ids(source, last), reads, OBSERVED)
    if bias is not None:
        walk.line_up(made, walk.ids(bias, -1), "added to values of fixed width")
    walk.uses.append(
        Use(node.name, "linear", source.name, weight.name, None if bias is None else bias.name, transposed)
    )
    dims = len(walk.shape(node))
    carried = labels.without(walk.elements, walk.of(source), (last,))
    return carried if made is None else (*carried, labels.along(dims, dims - 1, made))


def _linear(walk: Walk, node: fx.Node) -> Outputs:
    source, weight, *bias = _args(node)
    if weight not in walk.weights or source in walk.weights:
        return _product(walk, node, source, weight, flipped=True)
    return _affine(walk, node, source, weight, bias[0] if bias else None, transposed=False)


def _matmul(walk: Walk, node: fx.Node) -> Outputs:
    source, weight = _args(node)[:2]
    if weight in walk.weights and source not in walk.weights and len(walk.shape(weight)) == 2:
        return _affine(walk, node, source, weight, None, transposed=True)
    return _product(walk, node, source, weight)


def _addmm(walk: Walk, node: fx.Node) -> Outputs:
    bias, source, weight = _args(node)[:3]
    if weight in walk.weights and bias in walk.weights and source not in walk.weights:
        return _affine(walk, node, source, weight, bias, transposed=True)
    made = _product(walk, node, source, weight)
    shapes = [(made, walk.shape(node)), (walk.of(bias), walk.shape(bias))]
    return labels.broadcast(walk.elements, shapes, f"{node.target}")


def _product(walk: Walk, node: fx.Node, first: Any, second: Any, *, flipped: bool = False) -> Labels:
    """Rule for a batched product of two values: the dimension summed over has the same units on both sides."""
    one, other = len(walk.shape(first)), len(walk.shape(second))
    column = max(other - (1 if flipped else 2), 0)
    a, b = labels.covering(walk.of(first), one - 1), labels.covering(walk.of(second), column)
    if (a is None or a.dims == (one - 1,)) and (b is None or b.dims == (column,)):
        pair = walk.ids(first, one - 1), walk.ids(second, column)
        walk.multiplied += [ids for ids in pair if ids is not None]
        walk.line_up(*pair, f"multiplied by fixed values in {node.target}")
    else:
        for factor in (f for f, d in ((a, one - 1), (b, column)) if f is not None and f.dims == (d,)):
            walk.elements.fix(factor.ids, f"summed over in {node.target} with what is not units alone")
    left = labels.without(walk.elements, walk.of(first), (one - 1,))
    right = labels.without(walk.elements, walk.of(second), (column,))
    dims = len(walk.shape(node))
    row = dims - (2 if other > 1 else 1)
    left = labels.move(left, dims, lambda d: d + dims - one if d < one - 2 else row)
    right = labels.move(right, dims, lambda d: d + dims - other if d < other - 2 else dims - 1)
    # In what is not summed, the row of the first and the column of the second stand alone; batches line up.
    hidden = (walk.shape(node)[d] if d < dims - 2 else 1 for d in range(dims))
    batch = tuple(hidden)
    outer = tuple(f for f in (*left, *right) if set(f.dims) & {row, dims - 1})
    inner = [tuple(f for f in side if not set(f.dims) & {row, dims - 1}) for side in (left, right)]
    return (*labels.broadcast(walk.elements, [(side, batch) for side in inner], f"{node.target}"), *outer)


def _attention(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for scaled dot-product attention: heads are units, what is inside of one is not."""
    parts, shapes = [], []
    for each in _args(node)[:3]:
        dims = len(walk.shape(each))
        parts.append(labels.without(walk.elements, walk.of(each), (dims - 2, dims - 1)))
        shapes.append((*walk.shape(each)[:-2], 1, 1))
    for each in node.all_input_nodes[3:]:
        walk.keep(each, "masks attention")
    return labels.broadcast(walk.elements, list(zip(parts, shapes, strict=True)), "attention")


def _convolution(walk: Walk, node: fx.Node) -> Outputs:
    source, weight = _args(node)[:2]
    bias = _option(node, 2, "bias", None)
    transposed = "transpose" in name(node)
    groups = _args(node)[6] if len(_args(node)) > 6 else 1
    dims = len(walk.shape(node))
    channel = dims - len(walk.shape(weight)) + 1
    if groups != 1:
        for each in (source, weight, bias):
            walk.keep(each, f"a convolution of {groups} groups{_where(node)}, which must stay equally wide")
        return labels.without(walk.elements, walk.of(source), range(channel, dims))
    inner, outer = (0, 1) if transposed else (1, 0)
    reads, made = walk.ids(weight, inner), walk.ids(weight, outer)
    if reads is not None:
        walk.contracted.append(reads)
    walk.line_up(walk.ids(source, channel), reads, OBSERVED)
    if bias is not None:
        walk.line_up(made, walk.ids(bias, 0), "added to values of fixed width")
    for d in range(2, len(walk.shape(weight))):
        _fixed_dim(walk, weight, d, "a place of a convolution's kernel")
    for d in range(channel + 1, dims):
        _fixed_dim(walk, source, d, "a place of a convolution's input")
    kind = "transposed_conv" if transposed else "conv"
    walk.uses.append(Use(node.name, kind, source.name, weight.name, None if bias is None else bias.name, transposed))
    carried = labels.without(walk.elements, walk.of(source), range(channel, dims))
    return carried if made is None else (*carried, labels.along(dims, channel, made))


def _fixed_dim(walk: Walk, node: Any, dim: int, reason: str) -> None:
    found = labels.covering(walk.of(node), dim)
    if found is not None:
        walk.elements.fix(found.ids, reason)


def _vectors(walk: Walk, node: fx.Node, dim: int, vectors: Sequence[Any]) -> Outputs:
    """Rule for what scales and shifts a dimension by vectors."""
    own = walk.ids(_args(node)[0], dim)
    for vector in vectors:
        if isinstance(vector, fx.Node):
            walk.line_up(own, walk.ids(vector, 0), "normalises values of fixed width")
    return walk.of(_args(node)[0])


def _batch_norm(walk: Walk, node: fx.Node) -> Outputs:
    if "training" in str(node.target) and "no_training" not in str(node.target):
        walk.keep(_args(node)[0], "normalised over the batch in training mode")
    dims = len(walk.shape(_args(node)[0]))
    return _vectors(walk, node, min(1, dims - 1), _args(node)[1:5])


def layer_norm(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for LayerNorm and RMSNorm: units may go, but what is left is normalised by other statistics."""
    source, count, *vectors = _args(node)
    dims = len(walk.shape(source))
    spanned = range(dims - int(count), dims)
    for factor in walk.of(source):
        inside = set(factor.dims) & set(spanned)
        if inside and (len(factor.dims) > 1 or int(count) > 1):
            walk.elements.fix(factor.ids, f"normalised over several dimensions at once{_where(node)}")
    own = walk.ids(source, dims - 1)
    if own is not None:
        walk.normalised.append((node.name, own))
    for vector in vectors:
        if isinstance(vector, fx.Node) and int(count) == 1:
            walk.line_up(own, walk.ids(vector, 0), "normalises values of fixed width")
        elif isinstance(vector, fx.Node):
            walk.keep(vector, "normalises several dimensions at once")
    return walk.of(source)


def _group_norm(walk: Walk, node: fx.Node) -> Outputs:
    for each in node.all_input_nodes:
        walk.keep(each, f"normalised over groups of channels{_where(node)}, which must stay equally large")
    return walk.of(_args(node)[0])


def _softmax(walk: Walk, node: fx.Node) -> Outputs:
    dim = int(_args(node)[1]) % max(len(walk.shape(_args(node)[0])), 1)
    _fixed_dim(walk, _args(node)[0], dim, f"{node.target}{_where(node)} runs over these units")
    return walk.of(_args(node)[0])


def _reduction(walk: Walk, node: fx.Node) -> Outputs:
    source = _args(node)[0]
    dims = len(walk.shape(source))
    given: Any = next(
        (a for a in _args(node)[1:] if isinstance(a, (list, tuple, int)) and not isinstance(a, bool)), None
    )
    if name(node) in ("norm", "linalg_vector_norm", "std", "var"):
        given = next((a for a in _args(node)[1:] if isinstance(a, (list, tuple))), None)
    chosen = given if isinstance(given, (list, tuple)) else range(dims) if given is None else [given]
    gone = {int(d) % dims for d in chosen} or set(range(dims))
    if name(node) != "sum":
        for d in gone:
            _fixed_dim(walk, source, d, f"{node.target}{_where(node)} runs over these units")
    left = labels.without(walk.elements, walk.of(source), gone)
    shapes = walk.shapes.get(node, ())
    single = shapes if all(isinstance(n, int) for n in shapes) else shapes[0]
    if len(single) == dims:
        own: Labels = left
    else:
        place = {d: i for i, d in enumerate(d for d in range(dims) if d not in gone)}
        own = labels.move(left, len(single), place.get)
    return own if single is shapes else tuple(own for _ in shapes)


def _spatial(walk: Walk, node: fx.Node) -> Outputs:
    dims = len(walk.shape(_args(node)[0]))
    ranks = next((int(c) for c in name(node) if c.isdigit()), 2)
    for d in range(dims - ranks, dims):
        _fixed_dim(walk, _args(node)[0], d, f"{node.target} runs over these units")
    return labels.without(walk.elements, walk.of(_args(node)[0]), range(dims - ranks, dims))


def _pad(walk: Walk, node: fx.Node) -> Outputs:
    dims, padding = len(walk.shape(_args(node)[0])), _args(node)[1]
    for d in range(dims - len(padding) // 2, dims):
        _fixed_dim(walk, _args(node)[0], d, f"{node.target} pads these units")
    return walk.of(_args(node)[0])


def _concatenate(walk: Walk, node: fx.Node) -> Outputs:
    parts: Any = _args(node)[0]
    dim = int(_option(node, 1, "dim", 0))
    parts = [p for p in parts if math.prod(walk.shape(p)) > 0]
    dims = len(walk.shape(node))
    dim %= dims
    pieces, others = [], []
    for part in parts:
        own = walk.ids(part, dim)
        pieces.append(np.zeros(walk.shape(part)[dim], dtype=np.int64) if own is None else own)
        rest = labels.without(walk.elements, walk.of(part), (dim,))
        others.append((rest, tuple(n if d != dim else 1 for d, n in enumerate(walk.shape(part)))))
    joined = labels.broadcast(walk.elements, others, f"{node.target}")
    return (*joined, labels.along(dims, dim, np.concatenate(pieces))) if any(p.any() for p in pieces) else joined


def _stack(walk: Walk, node: fx.Node) -> Outputs:
    parts: Any = _args(node)[0]
    dim = int(_option(node, 1, "dim", 0))
    dims = len(walk.shape(node))
    dim %= dims
    joined = labels.broadcast(walk.elements, [(walk.of(p), walk.shape(p)) for p in parts], f"{node.target}")
    return labels.move(joined, dims, lambda d: d if d < dim else d + 1)


def _chunk(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for chunk: its parts stay equally wide, so their units of equal place live and die together."""
    shapes: Any = walk.shapes[node]
    dims = len(walk.shape(_args(node)[0]))
    dim = int(_option(node, 2, "dim", 0)) % dims
    own = walk.ids(_args(node)[0], dim)
    rest = labels.without(walk.elements, walk.of(_args(node)[0]), (dim,))
    if own is None:
        return tuple(rest for _ in shapes)
    bounds = np.cumsum([0, *(s[dim] for s in shapes)])
    pieces = [own[a:b] for a, b in itertools.pairwise(bounds)]
    for piece in pieces[1:]:
        if len(piece) == len(pieces[0]):
            walk.elements.join(pieces[0], piece)
        else:
            walk.elements.fix(own, f"{node.target}{_where(node)} makes parts of unequal width")
    return tuple((*rest, labels.along(dims, dim, piece)) for piece in pieces)


def _gated(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for GLU, whose two halves stay equally wide."""
    source = _args(node)[0]
    dims = len(walk.shape(source))
    dim = int(_option(node, 1, "dim", -1)) % dims
    own = walk.ids(source, dim)
    rest = labels.without(walk.elements, walk.of(source), (dim,))
    if own is None:
        return rest
    first, second = np.split(own, 2)
    walk.elements.join(first, second)
    return (*rest, labels.along(dims, dim, first))


def _cut(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for what takes entries at fixed places: split, slice, select, narrow, unbind and index_select."""
    source = _args(node)[0]
    dims = len(walk.shape(source))
    which = name(node)
    place = 1 if which in ("slice", "select", "narrow", "index_select", "unbind") else 2
    dim = int(_option(node, place, "dim", 0)) % dims
    shapes: Any = walk.shapes[node]
    whole = which == "slice" and shapes[dim] == walk.shape(source)[dim]
    if not whole:
        _fixed_dim(walk, source, dim, f"{node.target}{_where(node)} takes them at fixed places; chunk does not")
    rest = walk.of(source) if whole else labels.without(walk.elements, walk.of(source), (dim,))
    if which in ("select", "unbind"):
        rest = labels.move(rest, dims - 1, lambda d: d if d < dim else d - 1)
    single = all(isinstance(n, int) for n in shapes)
    return rest if single else tuple(rest for _ in shapes)


def _view(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for view and reshape: a width that is written as a number in the code cannot change."""
    source, before, after = _args(node)[0], walk.shape(_args(node)[0]), walk.shape(node)
    moved = labels.reshape(walk.of(source), before, after)
    sizes = _args(node)[1] if name(node) != "unflatten" else _unflattened(node, len(before))
    result: list[Factor] = []
    for factor in moved:
        inferred = [d for d in factor.dims if sizes[d] == -1]
        if not inferred:
            reason = f"their number is written in {node.target}{_where(node)}; -1 in its place lets it change"
            walk.elements.fix(factor.ids, reason)
        kept = labels.project(walk.elements, factor, inferred or factor.dims)
        result += [] if kept is None else [kept]
    return tuple(result)


def _unflattened(node: fx.Node, before: int) -> list[Any]:
    dim, sizes = int(_args(node)[1]) % before, _args(node)[2]
    return [-1] * dim + list(sizes) + [-1] * (before - dim - 1)


def _flatten(walk: Walk, node: fx.Node) -> Outputs:
    source = _args(node)[0]
    before = walk.shape(source)
    first = int(_args(node)[1] if len(_args(node)) > 1 else 0) % max(len(before), 1)
    last = int(_args(node)[2] if len(_args(node)) > 2 else -1) % max(len(before), 1)
    dims = len(before) - (last - first)
    result = []
    for factor in walk.of(source):
        full = [n if first <= d <= last and set(factor.dims) & set(range(first, last + 1)) else factor.ids.shape[d]
                for d, n in enumerate(before)]  # fmt: skip
        ids = np.broadcast_to(factor.ids, full)
        shape = [*full[:first], math.prod(full[first : last + 1]), *full[last + 1 :]]
        covered = {d if d < first else first if d <= last else d - (last - first) for d in factor.dims}
        result.append(Factor(tuple(sorted(covered)), ids.reshape(shape)))
    assert all(f.ids.ndim == dims for f in result)  # one dimension for those from first to last
    return tuple(result)


def _permute(walk: Walk, node: fx.Node) -> Outputs:
    source = _args(node)[0]
    dims = len(walk.shape(source))
    order = list(range(dims))
    if name(node) == "permute":
        order = [int(d) % dims for d in _args(node)[1]]
    elif name(node) in ("t", "numpy_T", "T", "mT"):
        order = order[:-2] + order[-2:][::-1]
    elif name(node) in ("transpose", "swapaxes"):
        a, b = (int(d) % dims for d in _args(node)[1:3])
        order[a], order[b] = order[b], order[a]
    else:  # movedim of one dimension
        a, b = (int(d) % dims for d in _args(node)[1:3])
        order.insert(b, order.pop(a))
    return labels.move(walk.of(source), dims, order.index)


def _unsqueeze(walk: Walk, node: fx.Node) -> Outputs:
    dims = len(walk.shape(node))
    dim = int(_args(node)[1]) % dims
    return labels.move(walk.of(_args(node)[0]), dims, lambda d: d if d < dim else d + 1)


def _squeeze(walk: Walk, node: fx.Node) -> Outputs:
    source, before = _args(node)[0], walk.shape(_args(node)[0])
    given = _args(node)[1] if len(_args(node)) > 1 else list(range(len(before)))
    chosen = [int(d) % len(before) for d in (given if isinstance(given, (list, tuple)) else [given])]
    gone = [d for d in chosen if before[d] == 1]
    for d in gone:
        _fixed_dim(walk, source, d, f"{node.target} takes one unit for none")
    place = {d: i for i, d in enumerate(d for d in range(len(before)) if d not in gone)}
    return labels.move(labels.without(walk.elements, walk.of(source), gone), len(walk.shape(node)), place.get)


def _expand(walk: Walk, node: fx.Node) -> Outputs:
    source = _args(node)[0]
    return labels.broadcast(
        walk.elements, [(walk.of(source), walk.shape(source)), ((), (1,) * len(walk.shape(node)))], f"{node.target}"
    )


def _embedding(walk: Walk, node: fx.Node) -> Outputs:
    weight, indices = _args(node)[:2]
    _fixed_dim(walk, weight, 0, "one row of the table for each input value")
    dims, made = len(walk.shape(node)), walk.ids(weight, 1)
    walk.keep(indices, "numbers of an embedding's rows")
    return () if made is None else (labels.along(dims, dims - 1, made),)


def recurrent(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for LSTM and GRU: a unit owns a row of each gate; all layers and directions have the same units.

    That is how PyTorch's modules have it: one ``hidden_size``.
    """
    source, memory, tensors, biases, layers, _, _, both, _ = _args(node)
    directions = 2 if both else 1
    each = 4 if biases else 2
    weights: Any = tensors
    if "input" not in str(node.target) or len(weights) != each * int(layers) * directions:
        for value in (source, *weights):
            walk.keep(value, f"{node.target}{_where(node)} with packed sequences or projections has no rule")
        return tuple(() for _ in walk.shapes[node])
    hidden = walk.ids(weights[1], 1)
    assert hidden is not None  # a parameter is labelled in all its dimensions
    enters = walk.ids(source, len(walk.shape(source)) - 1)
    for start in range(0, len(weights), each):
        first, second, *vectors = weights[start : start + each]
        own = walk.ids(second, 1)
        assert own is not None  # as above
        walk.elements.join(hidden, own)
        walk.contracted.append(own)
        for part in (first, second, *vectors):
            rows = walk.ids(part, 0)
            if rows is not None:
                walk.elements.join(np.tile(hidden, len(rows) // len(hidden)), rows)
        reads = walk.ids(first, 1)
        if reads is not None:
            walk.contracted.append(reads)
        walk.line_up(enters if start < each * directions else np.tile(hidden, directions), reads, OBSERVED)
        outside = source.name if start == 0 else ""
        for weight, seen, bias in zip((first, second), (outside, ""), (vectors or (None, None)), strict=True):
            walk.uses.append(Use(node.name, "recurrent", seen, weight.name, None if bias is None else bias.name))
    for value in memory if isinstance(memory, (list, tuple)) else [memory]:
        if isinstance(value, fx.Node) and name(value) != "empty_memory":  # which is made to fit
            walk.line_up(hidden, walk.ids(value, -1), "a memory of fixed width")
    shapes: Any = walk.shapes[node]
    made = np.tile(hidden, directions)
    output = (labels.along(len(shapes[0]), len(shapes[0]) - 1, made),)
    return (output, *((labels.along(len(s), len(s) - 1, hidden),) for s in shapes[1:]))


def _item(walk: Walk, node: fx.Node) -> Outputs:
    found: Any = walk.labels.get(_args(node)[0], ())
    if _args(node)[0] in walk.weights:
        walk.weights.add(node)
    return found[int(_args(node)[1])] if found else ()


def _nothing(walk: Walk, node: fx.Node) -> Outputs:
    return ()


RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(("linear",), _linear),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution
    ),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum"), _softmax),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(
        ("split", "split_with_sizes", "tensor_split", "slice", "select", "narrow", "index_select", "unbind"), _cut
    ),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "unflatten"), _view),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "mT", "movedim", "swapaxes"), _permute),
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), _weight_norm),
    **dict.fromkeys(("zeros", "ones", "full", "arange", "empty", "scalar_tensor"), _nothing),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "empty_memory": _nothing,
    "group_norm": _group_norm,
    "constant_pad_nd": _pad,
    "pad": _pad,
    "stack": _stack,
    "chunk": _chunk,
    "glu": _gated,
    "flatten": _flatten,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    "lstm": recurrent,
    "gru": recurrent,
    operator.getitem.__name__: _item,
}
