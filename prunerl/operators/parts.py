"""Rules for what puts values side by side and takes them apart."""

from __future__ import annotations

import itertools
import math
import operator
from typing import Any

import numpy as np
from torch import fx

from prunerl import labels
from prunerl.labels import Factor
from prunerl.operators.walk import Outputs, Walk, arguments, described, name, option


def concatenate(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for cat: the units of one part follow those of another."""
    dims = len(walk.shape(node))
    dim = int(option(node, 1, "dim", 0)) % dims
    pieces, others = [], []
    for part in (p for p in arguments(node)[0] if math.prod(walk.shape(p)) > 0):
        own = walk.ids(part, dim)
        pieces.append(np.zeros(walk.shape(part)[dim], dtype=np.int64) if own is None else own)
        rest = labels.without(walk.elements, walk.of(part), (dim,))
        others.append((rest, tuple(n if d != dim else 1 for d, n in enumerate(walk.shape(part)))))
    joined = labels.broadcast(walk.elements, others, described(node))
    return (*joined, labels.along(dims, dim, np.concatenate(pieces))) if any(p.any() for p in pieces) else joined


def stack(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for stack: the parts have the same units; the new dimension has none."""
    dims = len(walk.shape(node))
    dim = int(option(node, 1, "dim", 0)) % dims
    parts = [(walk.of(p), walk.shape(p)) for p in arguments(node)[0]]
    joined = labels.broadcast(walk.elements, parts, described(node))
    return labels.move(joined, dims, lambda d: d if d < dim else d + 1)


def chunk(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for chunk: its parts stay equally wide, so their units of equal place live and die together."""
    source, shapes = arguments(node)[0], walk.shapes[node]
    dims = len(walk.shape(source))
    dim = int(option(node, 2, "dim", 0)) % dims
    own = walk.ids(source, dim)
    rest = labels.without(walk.elements, walk.of(source), (dim,))
    if own is None:
        return tuple(rest for _ in shapes)
    if len({s[dim] for s in shapes}) > 1 or len(shapes) != int(arguments(node)[1]):
        walk.elements.fix(own, f"parts of unequal width from {described(node)}")
    bounds = np.cumsum([0, *(s[dim] for s in shapes)])
    pieces = [own[a:b] for a, b in itertools.pairwise(bounds)]
    for piece in (p for p in pieces[1:] if len(p) == len(pieces[0])):
        walk.elements.join(pieces[0], piece)
    return tuple((*rest, labels.along(dims, dim, piece)) for piece in pieces)


def gated(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for GLU, whose two halves stay equally wide."""
    source = arguments(node)[0]
    dims = len(walk.shape(source))
    dim = int(option(node, 1, "dim", -1)) % dims
    own = walk.ids(source, dim)
    rest = labels.without(walk.elements, walk.of(source), (dim,))
    if own is None:
        return rest
    first, second = np.split(own, 2)
    walk.elements.join(first, second)
    return (*rest, labels.along(dims, dim, first))


def cut(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for what takes entries at fixed places: split, slice, select, narrow, unbind and index_select."""
    source, which = arguments(node)[0], name(node)
    dims = len(walk.shape(source))
    place = 1 if which in ("slice", "select", "narrow", "index_select", "unbind") else 2
    dim = int(option(node, place, "dim", 0)) % dims
    shapes: Any = walk.shapes[node]
    whole = which == "slice" and shapes[dim] == walk.shape(source)[dim]
    if not whole:
        walk.fix_dim(source, dim, f"{described(node)} takes them at fixed places; chunk does not")
    rest = walk.of(source) if whole else labels.without(walk.elements, walk.of(source), (dim,))
    if which in ("select", "unbind"):
        rest = labels.move(rest, dims - 1, lambda d: d if d < dim else d - 1)
    single = all(isinstance(n, int) for n in shapes)
    return rest if single else tuple(rest for _ in shapes)


def repeat(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for repeat: a unit is at several places."""
    source, times = arguments(node)[:2]
    shift = len(times) - len(walk.shape(source))
    own = labels.move(walk.of(source), len(times), lambda d: d + shift)
    return tuple(
        Factor(f.dims, np.tile(f.ids, [int(times[d]) if d in f.dims else 1 for d in range(len(times))])) for f in own
    )


def flip(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for flip: the units are in reverse order."""
    source, dims = arguments(node)[:2]
    return tuple(Factor(f.dims, np.flip(f.ids, tuple(dims))) for f in walk.of(source))


def item(walk: Walk, node: fx.Node) -> Outputs:
    """Rule for one of an operator's outputs."""
    source, place = arguments(node)
    found: Any = walk.labels.get(source, ())
    return found[int(place)] if found else ()


RULES = {
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenate),
    **dict.fromkeys(
        ("split", "split_with_sizes", "tensor_split", "slice", "select", "narrow", "index_select", "unbind"), cut
    ),
    "stack": stack,
    "chunk": chunk,
    "glu": gated,
    "repeat": repeat,
    "flip": flip,
    operator.getitem.__name__: item,
}
