"""Which entries of a network's tensors belong to which unit: labels, and how they move through operators.

Every entry along every dimension of a parameter starts as an element of its own. An operator that lines two dimensions
up says that their elements are the same ones; what must not be cut is said to be the element ``FIXED``. Elements that
were said to be the same, directly or through others, are one unit. So convolutions flattened into linear layers (an
element repeated H·W times), LSTM gates (four rows are one element), residual sums, concatenations and attention heads
need no special case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

OUTPUT = "its units are the network's output (actions)"
"""The reason that counts most."""

Ids = NDArray[np.int64]

FIXED = 0
"""The element of everything that is never cut."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Elements along one dimension of a value, or along several at once.

    Attributes:
        dims: The dimensions, ascending.
        ids: The element at each place; as many dimensions as the value has, of size 1 where it does not depend on one.
    """

    dims: tuple[int, ...]
    ids: Ids


Labels = tuple[Factor, ...]
"""Labels of a value. A dimension that no factor covers is never cut."""


@dataclass(eq=False)
class Elements:
    """The elements that were handed out so far, and what was said of them."""

    count: int = 1
    equal: list[tuple[Ids, Ids]] = field(default_factory=list)
    reasons: list[tuple[Ids, str]] = field(default_factory=list)

    def new(self, number: int) -> Ids:
        """Return fresh elements."""
        self.count += number
        return np.arange(self.count - number, self.count)

    def join(self, first: Ids, second: Ids) -> None:
        """Say that elements are the same ones, entry by entry."""
        one, other = np.broadcast_arrays(first, second)
        self.equal.append((one.ravel(), other.ravel()))

    def fix(self, ids: Ids, reason: str) -> None:
        """Say that elements are never cut, and why."""
        found = np.unique(ids[ids != FIXED])
        if found.size:
            self.reasons.append((found, reason))

    def classes(self) -> tuple[Ids, list[str | None]]:
        """Return the unit of each element, FIXED for what is kept, and for each element the reason."""
        free = self._components(self.equal)
        reason_of: dict[int, str] = {}
        for ids, reason in sorted(self.reasons, key=lambda entry: entry[1] != OUTPUT):
            for unit in np.unique(free[ids]):
                reason_of.setdefault(int(unit), reason)
        kept = np.isin(free, list(reason_of)) | (free == free[FIXED])
        reasons: list[str | None] = [None] * len(free)
        for element in np.flatnonzero(kept).tolist():
            reasons[element] = reason_of.get(int(free[element]))
        return np.where(kept, FIXED, free + 1), reasons

    def _components(self, pairs: Sequence[tuple[Ids, Ids]]) -> Ids:
        rows = np.concatenate([a for a, _ in pairs]) if pairs else np.empty(0, dtype=np.int64)
        columns = np.concatenate([b for _, b in pairs]) if pairs else np.empty(0, dtype=np.int64)
        graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self.count, self.count))
        found: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
        return found


def along(dims: int, dim: int, ids: Ids) -> Factor:
    """Return the factor of elements along one dimension of a value with ``dims`` dimensions."""
    shape = [1] * dims
    shape[dim] = len(ids)
    return Factor((dim,), ids.reshape(shape))


def covering(labels: Labels, dim: int) -> Factor | None:
    """Return the factor that covers a dimension, if there is one."""
    return next((factor for factor in labels if dim in factor.dims), None)


def all_ids(labels: Labels) -> Ids:
    """Return every element of a value."""
    return np.concatenate([factor.ids.ravel() for factor in labels]) if labels else np.empty(0, dtype=np.int64)


def project(elements: Elements, factor: Factor, dims: Iterable[int]) -> Factor | None:
    """Let only the dimensions ``dims`` of a factor be cut: its elements along the others become the same ones."""
    kept = tuple(d for d in factor.dims if d in set(dims))
    if kept == factor.dims:
        return factor
    if not kept:
        return None
    gone = tuple(d for d in factor.dims if d not in kept)
    first = factor.ids[tuple(slice(0, 1) if d in gone else slice(None) for d in range(factor.ids.ndim))]
    elements.join(factor.ids, first)
    return Factor(kept, first)


def without(elements: Elements, labels: Labels, dims: Iterable[int]) -> Labels:
    """Return the labels of a value after ``dims`` were used up, still with all dimensions in place."""
    gone = set(dims)
    left = (project(elements, f, set(f.dims) - gone) if gone & set(f.dims) else f for f in labels)
    return tuple(factor for factor in left if factor is not None)


def move(labels: Labels, dims: int, place: Callable[[int], int | None]) -> Labels:
    """Return the labels with dimension d at ``place(d)`` of a value with ``dims`` dimensions."""
    moved = []
    for factor in labels:
        shape = [1] * dims
        order = sorted(factor.dims, key=lambda d: place(d) or 0)
        for d in factor.dims:
            target = place(d)
            assert target is not None  # the caller projected such dimensions away
            shape[target] = factor.ids.shape[d]
        inner = factor.ids.transpose([d for d in range(factor.ids.ndim) if d not in factor.dims] + order)
        moved.append(Factor(tuple(sorted(place(d) or 0 for d in factor.dims)), inner.reshape(shape)))
    return tuple(moved)


def broadcast(elements: Elements, values: Sequence[tuple[Labels, tuple[int, ...]]], what: str) -> Labels:
    """Return the labels of an elementwise operator's output, whose dimensions line up from the last one on.

    Args:
        elements: Where the elements come from.
        values: Labels and shape of each input.
        what: The operator, for reasons.
    """
    dims = max((len(shape) for _, shape in values), default=0)
    sizes = [max((s[d - dims + len(s)] for _, s in values if d - dims + len(s) >= 0), default=1) for d in range(dims)]
    result: Labels = ()
    lifted = []
    for labels, shape in values:
        shift = dims - len(shape)
        own = move(labels, dims, lambda d, by=shift: d + by)  # type: ignore[misc]
        padded = (1,) * shift + shape
        spread = [d for d in range(dims) if padded[d] == 1 and sizes[d] > 1]
        for factor in own:
            if set(factor.dims) & set(spread):
                elements.fix(factor.ids, f"one number serves several units in {what}")
        own = tuple(f for f in own if not set(f.dims) & set(spread))
        lifted.append((own, [padded[d] > 1 or sizes[d] == 1 for d in range(dims)]))
    for own, _ in lifted:
        for factor in own:
            result = _merged(elements, result, factor, what)
    for own, full in lifted:
        covered = {d for f in own for d in f.dims}
        for factor in result:
            bare = [d for d in factor.dims if full[d] and sizes[d] > 1 and d not in covered]
            if bare and not set(factor.dims) & covered:
                elements.fix(factor.ids, f"combined with values of fixed width in {what}")
    return result


def _merged(elements: Elements, labels: Labels, factor: Factor, what: str) -> Labels:
    """Add a factor to labels, joining it with those that cover the same dimensions."""
    clash = [f for f in labels if set(f.dims) & set(factor.dims)]
    if not clash:
        return (*labels, factor)
    if len(clash) == 1 and clash[0].dims == factor.dims:
        elements.join(clash[0].ids, factor.ids)
        return labels
    shared = set(factor.dims).intersection(*(set(f.dims) for f in clash))
    parts = [project(elements, f, shared) for f in (*clash, factor)]
    known = [p for p in parts if p is not None]
    if len(known) != len(parts) or len({p.dims for p in known}) != 1:
        for f in (*clash, factor):
            elements.fix(f.ids, f"lined up in different ways in {what}")
        return tuple(f for f in labels if f not in clash)
    for part in known[1:]:
        elements.join(known[0].ids, part.ids)
    return (*(f for f in labels if f not in clash), known[0])


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match the dimensions of a reshape: the smallest runs of dimensions that hold equally many entries.

    >>> blocks((3, 8, 2, 2), (3, 32))
    [([0], [0]), ([1, 2, 3], [1])]
    """
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        first, second = [i], [j]
        size, other = before[i], after[j]
        i, j = i + 1, j + 1
        while size != other:
            if size < other:
                size *= before[i]
                first.append(i)
                i += 1
            else:
                other *= after[j]
                second.append(j)
                j += 1
        result.append((first, second))
    for rest, side in ((range(i, len(before)), 0), (range(j, len(after)), 1)):
        if rest and not result:
            result.append(([], []))
        for d in rest:  # trailing dimensions of size 1
            result[-1][side].append(d)
    return result


def reshape(labels: Labels, before: Sequence[int], after: Sequence[int]) -> Labels:
    """Return the labels after a reshape; a dimension that is taken apart gives a factor over its parts."""
    matched = blocks(before, after)
    result = []
    for factor in labels:
        touched = [b for b in matched if set(b[0]) & set(factor.dims)]
        sources = [d for block in touched for d in block[0]]
        targets = [d for block in touched for d in block[1]]
        full = [before[d] if d in sources else 1 for d in range(len(before))]
        shape = [after[d] if d in targets else 1 for d in range(len(after))]
        assert math.prod(full) == math.prod(shape)  # blocks hold equally many entries
        ids = np.broadcast_to(factor.ids, full).reshape(shape)
        result.append(Factor(tuple(targets), ids))
    return tuple(result)
