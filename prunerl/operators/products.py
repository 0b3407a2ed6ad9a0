"""Rules for what sums over units: linear layers, products, attention, convolutions, sums, tables."""

from __future__ import annotations

from typing import Any

from torch import fx

from prunerl import labels
from prunerl.labels import Labels
from prunerl.operators.walk import (
    FIXED_BESIDE,
    OBSERVED,
    Outputs,
    Shape,
    Use,
    Walk,
    arguments,
    described,
    name,
    option,
    stored,
)


def linear(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for y = x Wᵀ + b."""
    weight, bias = arguments(node)[1], option(node, 2, "bias", None)
    if _is_layer(walk, node, 0, 1) and (bias is None or bias in walk.weights):
        return _affine(walk, node, (0, 1), bias, transposed=False)
    made = product(walk, node, (0, 1), flipped=len(walk.shape(weight)) > 1)
    return made if bias is None else _shifted(walk, node, made, bias)


def matmul(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for products of two values, one of which may be a layer's weight."""
    if _is_layer(walk, node, 0, 1):
        return _affine(walk, node, (0, 1), None, transposed=True)
    return product(walk, node, (0, 1))


def addmm(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for b + x W."""
    bias = arguments(node)[0]
    if _is_layer(walk, node, 1, 2) and bias in walk.weights and len(walk.shape(bias)) == 1:
        return _affine(walk, node, (1, 2), bias, transposed=True)
    return _shifted(walk, node, product(walk, node, (1, 2)), bias)


def _is_layer(walk: Walk, node: fx.Node, source: int, weight: int) -> bool:
    first, second = arguments(node)[source], arguments(node)[weight]
    return second in walk.weights and first not in walk.weights and len(walk.shape(second)) == 2


def _shifted(walk: Walk, node: fx.Node, made: Labels, bias: Any) -> Labels:
    values = [(made, walk.shape(node)), (walk.of(bias), walk.shape(bias))]
    return labels.broadcast(walk.elements, values, described(node))


def _affine(walk: Walk, node: fx.Node, places: tuple[int, int], bias: Any, *, transposed: bool) -> Outputs:
    """Rule for a layer, with W stored as (outputs, inputs), or (inputs, outputs) where ``transposed``."""
    source, weight = (arguments(node)[place] for place in places)
    inner, outer = (0, 1) if transposed else (1, 0)
    last = len(walk.shape(source)) - 1
    reads, made = walk.ids(weight, inner), walk.ids(weight, outer)
    walk.line_up(walk.ids(source, last), reads, OBSERVED)
    if stored(weight):
        walk.summed(node, places[0], last)
    elif reads is not None:
        walk.contracted.append(reads)
    if bias is not None:
        walk.line_up(made, walk.ids(bias, -1), FIXED_BESIDE)
    walk.uses.append(
        Use(node.name, "linear", source.name, weight.name, None if bias is None else bias.name, transposed)
    )
    dims = len(walk.shape(node))
    carried = labels.without(walk.elements, walk.of(source), (last,))
    return carried if made is None else (*carried, labels.along(dims, dims - 1, made))


def product(walk: Walk, node: fx.Node, places: tuple[int, int], *, flipped: bool = False) -> Labels:
    """Rule for a batched product: the dimension summed over has the same units on both sides.

    Args:
        walk: What is known.
        node: The product.
        places: Which of the node's arguments are multiplied.
        flipped: The second one is stored as (..., columns, summed).
    """
    first, second = (arguments(node)[place] for place in places)
    one, other = len(walk.shape(first)), len(walk.shape(second))
    column = other - 1 if flipped else max(other - 2, 0)
    walk.line_up(walk.ids(first, one - 1), walk.ids(second, column), f"multiplied by fixed values in {described(node)}")
    walk.summed(node, places[0], one - 1)
    left = labels.without(walk.elements, walk.of(first), (one - 1,))
    right = labels.without(walk.elements, walk.of(second), (column,))
    # In what is left, the rows of the first and the columns of the second stand alone; batches line up.
    batch = max(one - 2, other - 2, 0)
    left = labels.move(left, batch + 2, lambda d: d + batch - (one - 2))
    right = labels.move(right, batch + 2, lambda d: d + batch - (other - 2) if d < other - 2 else batch + 1)
    rows: Shape = (*walk.shape(first)[:-2], walk.shape(first)[-2] if one > 1 else 1, 1)
    kept = other - 2 if flipped else other - 1
    columns: Shape = (*walk.shape(second)[:-2], 1, walk.shape(second)[kept] if other > 1 else 1)
    made = labels.broadcast(walk.elements, [(left, rows), (right, columns)], described(node))
    gone = [d for d, absent in ((batch, one == 1), (batch + 1, other == 1)) if absent]
    return labels.move(made, batch + 2 - len(gone), lambda d: d - sum(g < d for g in gone))


def attention(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for scaled dot-product attention: heads are units, and so are the columns of the values."""
    query, key, value = arguments(node)[:3]
    mask = option(node, 3, "attn_mask", None)
    dims = len(walk.shape(node))
    for each, dim in ((query, -1), (key, -1), (key, -2), (value, -2), (mask, -1), (mask, -2)):
        size = len(walk.shape(each))
        if size >= -dim:
            walk.fix_dim(each, size + dim, f"{described(node)} runs over these units")
    if option(node, 6, "enable_gqa", False):
        for each in (query, key, value, mask):
            walk.keep(each, f"heads that share keys in {described(node)}")
    values = []
    for each, used in ((query, (-1,)), (key, (-1, -2)), (value, (-2,)), (mask, (-1, -2))):
        if each is not None:
            before = walk.shape(each)
            gone = [len(before) + d for d in used if len(before) >= -d]
            shape = tuple(1 if d in gone else n for d, n in enumerate(before))
            values.append((labels.without(walk.elements, walk.of(each), gone), shape))
    made = labels.broadcast(walk.elements, values, described(node))
    assert all(factor.ids.ndim == dims for factor in made)  # the query has as many dimensions as the output
    return made


def convolution(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for convolutions, whose channels are units."""
    source, weight = arguments(node)[:2]
    bias = option(node, 2, "bias", None)
    transposed = "transpose" in name(node)
    groups = option(node, 6, "groups", 1)
    dims = len(walk.shape(node))
    channel = dims - len(walk.shape(weight)) + 1
    if groups != 1:
        for each in (source, weight, bias):
            walk.keep(each, f"a convolution of {groups} groups, which must stay equally wide: {described(node)}")
        return labels.without(walk.elements, walk.of(source), range(channel, dims))
    inner, outer = (0, 1) if transposed else (1, 0)
    reads, made = walk.ids(weight, inner), walk.ids(weight, outer)
    for d in range(2, len(walk.shape(weight))):
        walk.fix_dim(weight, d, f"a place of the kernel of {described(node)}")
    for d in range(channel + 1, dims):
        walk.fix_dim(source, d, f"a place of the input of {described(node)}")
    walk.line_up(walk.ids(source, channel), reads, OBSERVED)
    if stored(weight):
        walk.summed(node, 0, channel)
    elif reads is not None:
        walk.contracted.append(reads)
    if bias is not None:
        walk.line_up(made, walk.ids(bias, 0), FIXED_BESIDE)
    kind = "transposed_conv" if transposed else "conv"
    walk.uses.append(Use(node.name, kind, source.name, weight.name, None if bias is None else bias.name, transposed))
    carried = labels.without(walk.elements, walk.of(source), range(channel, dims))
    return carried if made is None else (*carried, labels.along(dims, channel, made))


def embedding(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for a table: its columns are units, its rows are one for each input value."""
    weight, indices = arguments(node)[:2]
    walk.fix_dim(weight, 0, f"one row of the table of {described(node)} for each input value")
    walk.keep(indices, f"numbers of rows for {described(node)}")
    dims, made = len(walk.shape(node)), walk.ids(weight, 1)
    return () if made is None else (labels.along(dims, dims - 1, made),)


RULES = {
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    **dict.fromkeys((f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)), convolution),
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
}
