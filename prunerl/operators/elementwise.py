"""Rules for what works on each entry by itself, or scales and shifts whole dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from prunerl import labels
from prunerl.labels import Labels
from prunerl.operators.walk import Outputs, Shape, Walk, arguments, described

SAME = (
    "relu relu_ relu6 relu6_ tanh tanh_ sigmoid sigmoid_ elu elu_ leaky_relu leaky_relu_ silu silu_ gelu gelu_ "
    "softplus mish mish_ selu selu_ hardtanh hardtanh_ hardsigmoid hardsigmoid_ hardswish hardswish_ celu celu_ "
    "log_sigmoid threshold hardshrink softshrink tanhshrink abs exp exp2 log log2 log10 log1p expm1 sqrt rsqrt "
    "reciprocal square neg sign sin cos tan asin acos atan sinh cosh erf floor ceil round trunc frac nan_to_num "
    "logical_not isnan isinf isfinite clone contiguous detach detach_ alias to _to_copy type_as dropout dropout_ "
    "feature_dropout alpha_dropout zeros_like ones_like full_like empty_like rand_like randn_like lift_fresh_copy"
).split()
"""Operators whose output has the units of their first argument."""

COMBINED = (
    "add add_ sub sub_ rsub mul mul_ div div_ pow pow_ clamp clamp_ clamp_min clamp_max maximum minimum fmax fmin "
    "where addcmul addcdiv lerp masked_fill masked_fill_ eq ne lt le gt ge atan2 hypot remainder fmod floor_divide "
    "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_not"
).split()
"""Operators of several values, whose dimensions line up from the last one on."""

MADE = (
    "zeros ones full arange empty scalar_tensor new_zeros new_ones new_full new_empty linspace eye empty_memory "
    "empty_state"
).split()
"""Operators that make values of fixed width (``empty_memory`` and ``empty_state``: of one that fits)."""


def same(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for functions of each entry."""
    return walk.of(arguments(node)[0])


def combined(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for functions of entries of several values."""
    tensors = [n for n in node.all_input_nodes if isinstance(walk.shapes.get(n), tuple)]
    return labels.broadcast(walk.elements, [(walk.of(n), walk.shape(n)) for n in tensors], described(node))


def made(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for what does not depend on any unit."""
    return ()


def weight_norm(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for a weight of directions and lengths."""
    directions, lengths = arguments(node)[:2]
    shape = walk.shape(lengths)
    wide = tuple(f for f in walk.of(lengths) if all(shape[d] > 1 for d in f.dims))  # those of size 1 span the others
    values: list[tuple[Labels, Shape]] = [(walk.of(directions), walk.shape(directions)), (wide, shape)]
    found = labels.broadcast(walk.elements, values, described(node))
    several = not all(isinstance(n, int) for n in walk.shapes[node])
    return (found, ()) if several else found


def _vectors(walk: Walk, node: fx.Node, dim: int, vectors: Sequence[Any]) -> Outputs:
    """Rule for what scales and shifts a dimension by vectors."""
    own = walk.ids(arguments(node)[0], dim)
    for vector in vectors:
        if isinstance(vector, fx.Node):
            walk.line_up(own, walk.ids(vector, 0), f"{described(node)} scales values of fixed width")
    return walk.of(arguments(node)[0])


def batch_norm(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for BatchNorm: each unit has statistics of its own."""
    return _vectors(walk, node, min(1, len(walk.shape(arguments(node)[0])) - 1), arguments(node)[1:5])


def prelu(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for PReLU with one slope, or one for each unit."""
    source, slope = arguments(node)
    if walk.shape(slope) in ((), (1,)):
        walk.keep(slope, f"one number serves several units in {described(node)}")
        return walk.of(source)
    return _vectors(walk, node, min(1, len(walk.shape(source)) - 1), (slope,))


def layer_norm(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for LayerNorm and RMSNorm: units may go, but what is left is normalised by other statistics."""
    source, count, *vectors = arguments(node)
    dims = len(walk.shape(source))
    spanned = set(range(dims - int(count), dims))
    for factor in walk.of(source):
        if set(factor.dims) & spanned and (len(factor.dims) > 1 or int(count) > 1):
            walk.elements.fix(factor.ids, f"normalised over several dimensions at once in {described(node)}")
    own = walk.ids(source, dims - 1)
    if own is not None:
        walk.normalised.append((node.name, own))
    for vector in vectors:
        if isinstance(vector, fx.Node) and int(count) == 1:
            walk.line_up(own, walk.ids(vector, 0), f"{described(node)} scales values of fixed width")
        elif isinstance(vector, fx.Node):
            walk.keep(vector, f"normalised over several dimensions at once in {described(node)}")
    return walk.of(source)


def group_norm(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for GroupNorm, which needs groups of equal size."""
    for each in node.all_input_nodes:
        walk.keep(each, f"normalised over groups of channels, which must stay equally large: {described(node)}")
    return walk.of(arguments(node)[0])


RULES = {
    **dict.fromkeys(SAME, same),
    **dict.fromkeys(COMBINED, combined),
    **dict.fromkeys(MADE, made),
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), weight_norm),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), layer_norm),
    "group_norm": group_norm,
    "prelu": prelu,
}
