"""Rules for what changes the dimensions of a value, and none of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from prunerl import labels
from prunerl.labels import Factor, Labels
from prunerl.operators.walk import Outputs, Walk, arguments, described, name


def view(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for view and reshape: a width that is written as a number in the code cannot change."""
    return _reshaped(walk, node, arguments(node)[1])


def unflatten(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for unflatten, which leaves the other dimensions as they are."""
    before = len(walk.shape(arguments(node)[0]))
    dim, sizes = int(arguments(node)[1]) % before, arguments(node)[2]
    return _reshaped(walk, node, [-1] * dim + list(sizes) + [-1] * (before - dim - 1))


def flatten(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for flatten, whose widths all follow."""
    return _reshaped(walk, node, [-1] * len(walk.shape(node)))


def _reshaped(walk: Walk, node: fx.Node, sizes: Sequence[Any]) -> Labels:
    """Return the labels after a reshape to ``sizes``, in which -1 are those that may change."""
    after = walk.shape(node)
    moved = labels.reshape(walk.of(arguments(node)[0]), walk.shape(arguments(node)[0]), after)
    result: Labels = ()
    for factor in moved:
        free = [d for d in factor.dims if sizes[d] == -1]
        if not free:
            reason = f"their number is written in {described(node)}; -1 in its place lets it change"
            walk.elements.fix(factor.ids, reason)
        wide = [d for d in free if after[d] > 1] or free[:1]
        kept = labels.project(walk.elements, factor, wide or factor.dims)
        assert kept is not None  # of its dimensions at least one is left
        beside = [f for f in result if set(f.dims) & set(kept.dims)]
        for clash in (*beside, kept) if beside else ():
            walk.elements.fix(clash.ids, f"units of two kinds become one dimension in {described(node)}")
        result = (*(f for f in result if f not in beside), *(() if beside else (kept,)))
    return result


def permute(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for all that puts dimensions in another order."""
    source = arguments(node)[0]
    return labels.move(walk.of(source), len(walk.shape(source)), _order(node, len(walk.shape(source))).index)


def _order(node: fx.Node, dims: int) -> list[int]:
    """Return which dimension of the source each dimension of the output is."""
    which, order = name(node), list(range(dims))
    if which == "permute":
        return [int(d) % dims for d in arguments(node)[1]]
    if which in ("numpy_T", "T"):
        return order[::-1]
    if which in ("t", "mT"):
        return order[:-2] + order[-2:][::-1]
    a, b = ([int(d) % dims for d in (g if isinstance(g, (list, tuple)) else [g])] for g in arguments(node)[1:3])
    if which == "movedim":
        order = [d for d in order if d not in a]
        for target, source in sorted(zip(b, a, strict=True)):
            order.insert(target, source)
    else:
        order[a[0]], order[b[0]] = order[b[0]], order[a[0]]
    return order


def unsqueeze(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for a new dimension of size 1, which has no units."""
    dims = len(walk.shape(node))
    dim = int(arguments(node)[1]) % dims
    return labels.move(walk.of(arguments(node)[0]), dims, lambda d: d if d < dim else d + 1)


def squeeze(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for squeeze: units must not become one, or their dimension would vanish."""
    source, before = arguments(node)[0], walk.shape(arguments(node)[0])
    given = arguments(node)[1] if len(arguments(node)) > 1 else range(len(before))
    chosen = [int(d) % len(before) for d in (given if isinstance(given, (list, tuple, range)) else [given])]
    for d in chosen:
        walk.fix_dim(source, d, f"{described(node)} drops a dimension of one unit")
    gone = [d for d in chosen if before[d] == 1]
    place = {d: i for i, d in enumerate(d for d in range(len(before)) if d not in gone)}
    return labels.move(labels.without(walk.elements, walk.of(source), gone), len(walk.shape(node)), place.get)


def expand(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for expand: one number that serves several units is not cut, nor is a width that is written as a number."""
    source, sizes = arguments(node)[:2]
    before, after = walk.shape(source), walk.shape(node)
    shift = len(after) - len(before)
    result: list[Factor] = []
    for factor in labels.move(walk.of(source), len(after), lambda d: d + shift):
        spread = [d for d in factor.dims if after[d] > before[d - shift]]
        if spread:
            walk.elements.fix(factor.ids, f"one number serves several units in {described(node)}")
        elif any(sizes[d] != -1 for d in factor.dims):
            walk.elements.fix(
                factor.ids, f"their number is written in {described(node)}; -1 in its place lets it change"
            )
        result += [] if spread else [factor]
    return tuple(result)


RULES = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), view),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "T", "mT", "movedim", "swapaxes"), permute),
    "unflatten": unflatten,
    "flatten": flatten,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
}
