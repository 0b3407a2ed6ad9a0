"""Rules for what runs over dimensions: sums, means, softmax, pooling, padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from prunerl import labels
from prunerl.labels import Labels
from prunerl.operators.elementwise import combined
from prunerl.operators.walk import Outputs, Walk, arguments, described, name

REDUCTIONS = ("sum", "mean", "amax", "amin", "max", "min", "std", "var", "norm", "linalg_vector_norm", "logsumexp")
REDUCTIONS_OF_LISTS = ("norm", "linalg_vector_norm", "std", "var")
"""Those whose other arguments may be numbers, which are no dimensions."""
SPATIAL = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_bilinear2d"
).split()


def softmax(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for softmax and running sums, which units along their dimension all take part in."""
    source = arguments(node)[0]
    dim = int(arguments(node)[1]) % max(len(walk.shape(source)), 1)
    walk.fix_dim(source, dim, f"{described(node)} runs over these units")
    return walk.of(source)


def reduction(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for sums, of which a unit may be left out, and for other reductions, of which it may not."""
    if str(node.target).endswith(".other"):
        return combined(walk, node)  # the larger or smaller one of two values
    source = arguments(node)[0]
    dims = len(walk.shape(source))
    gone = _dims(node, dims)
    for factor in (f for f in walk.of(source) if set(f.dims) & gone):
        if name(node) == "sum" and len(factor.dims) == 1:
            walk.summed(node, 0, factor.dims[0])
        else:
            walk.elements.fix(factor.ids, f"{described(node)} runs over these units")
    left = labels.without(walk.elements, walk.of(source), gone)
    return _each(walk, node, lambda shape: left if len(shape) == dims else _closed(left, gone, dims))


def _closed(left: Labels, gone: set[int], dims: int) -> Labels:
    place = {d: i for i, d in enumerate(d for d in range(dims) if d not in gone)}
    return labels.move(left, len(place), place.get)


def _dims(node: fx.Node, dims: int) -> set[int]:
    """Return the dimensions that a reduction runs over."""
    kinds = (list, tuple) if name(node) in REDUCTIONS_OF_LISTS else (list, tuple, int)
    found = (a for a in arguments(node)[1:] if isinstance(a, kinds) and not isinstance(a, bool))
    given: Any = next(found, node.kwargs.get("dim"))
    chosen: Iterable[int] = given if isinstance(given, Sequence) else range(dims) if given is None else [given]
    return {int(d) % dims for d in chosen} or set(range(dims))


def _each(walk: Walk, node: fx.Node, rule: Any) -> Outputs:
    """Apply a rule to the shape of each output."""
    shapes: Any = walk.shapes[node]
    if all(isinstance(n, int) for n in shapes):
        return rule(shapes)  # type: ignore[no-any-return]
    return tuple(rule(shape) for shape in shapes)


def spatial(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for pooling and resizing, which treat each channel alike."""
    source = arguments(node)[0]
    dims = len(walk.shape(source))
    ranks = range(dims - next(int(c) for c in name(node) if c.isdigit()), dims)
    for d in ranks:
        walk.fix_dim(source, d, f"{described(node)} runs over these units")
    left = labels.without(walk.elements, walk.of(source), ranks)
    return _each(walk, node, lambda shape: left)


def pad(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for padding of what has no units."""
    source, padding = arguments(node)[:2]
    dims = len(walk.shape(source))
    for d in range(dims - len(padding) // 2, dims):
        if any(padding[2 * (dims - 1 - d) :][:2]):
            walk.fix_dim(source, d, f"{described(node)} puts values of fixed width beside these units")
    return walk.of(source)


RULES = {
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod"), softmax),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(SPATIAL, spatial),
    **dict.fromkeys(("constant_pad_nd", "pad"), pad),
}
