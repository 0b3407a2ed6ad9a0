"""Labels: elements that are the same, those that are fixed, and how they move, counted by hand."""

from __future__ import annotations

import numpy as np

from prunerl.labels import (
    FIXED,
    OUTPUT,
    Elements,
    Factor,
    along,
    blocks,
    broadcast,
    covering,
    move,
    project,
    reshape,
    without,
)


def units(elements: Elements, *ids: object) -> list[list[int]]:
    """Return the units of elements, numbered in the order in which they come; 0 for what is kept."""
    unit_of, _ = elements.classes()
    known: dict[int, int] = {FIXED: 0}
    return [[known.setdefault(int(u), len(known)) for u in unit_of[np.asarray(i).ravel()]] for i in ids]


def test_elements_said_to_be_the_same_directly_or_through_others_are_one_unit() -> None:
    elements = Elements()
    a, b, c = elements.new(2), elements.new(2), elements.new(2)
    elements.join(a, b)
    elements.join(b, c[::-1])
    assert units(elements, a, b, c) == [[1, 2], [1, 2], [2, 1]]


def test_what_is_fixed_fixes_what_is_the_same_and_the_output_is_the_reason_that_counts() -> None:
    elements = Elements()
    a, b = elements.new(3), elements.new(3)
    elements.join(a, b)
    elements.fix(a[:2], "first")
    elements.fix(b[1:2], OUTPUT)
    _, reasons = elements.classes()
    assert units(elements, a, b) == [[0, 0, 1], [0, 0, 1]]
    assert [reasons[i] for i in a] == ["first", OUTPUT, None]


def test_joining_with_the_fixed_element_fixes() -> None:
    elements = Elements()
    a = elements.new(2)
    elements.join(a, np.array([FIXED, a[1]]))
    assert units(elements, a) == [[0, 1]]


def test_blocks_are_the_smallest_runs_that_hold_equally_many() -> None:
    assert blocks((2, 6), (2, 6)) == [([0], [0]), ([1], [1])]
    assert blocks((2, 6), (2, 3, 2)) == [([0], [0]), ([1], [1, 2])]
    assert blocks((2, 3, 4), (6, 4)) == [([0, 1], [0]), ([2], [1])]
    assert blocks((4, 3), (6, 2)) == [([0, 1], [0, 1])]
    assert blocks((2, 8), (2, 1, 8, 1)) == [([0], [0]), ([1], [1, 2, 3])]
    assert blocks((2, 8, 1), (2, 8)) == [([0], [0]), ([1, 2], [1])]


def test_channels_flattened_into_one_dimension_are_repeated_for_each_place() -> None:
    labels = (along(4, 1, np.array([5, 6])),)
    (flat,) = reshape(labels, (3, 2, 1, 3), (3, 6))
    assert flat.dims == (1,)
    assert flat.ids.ravel().tolist() == [5, 5, 5, 6, 6, 6]
    last = move(labels, 4, (0, 3, 1, 2).__getitem__)
    (flat,) = reshape(last, (3, 1, 3, 2), (3, 6))
    assert flat.ids.ravel().tolist() == [5, 6, 5, 6, 5, 6]


def test_a_dimension_taken_apart_lets_one_of_its_parts_be_cut() -> None:
    elements = Elements()
    own = elements.new(6)
    (factor,) = reshape((along(2, 1, own),), (4, 6), (4, 2, 3))
    assert factor.dims == (1, 2)
    kept = project(elements, factor, (1,))
    assert kept is not None
    assert kept.ids.shape == (1, 2, 1)
    assert units(elements, own) == [[1, 1, 1, 2, 2, 2]]


def test_moving_dimensions_moves_their_elements() -> None:
    factor = Factor((0, 2), np.arange(6).reshape(2, 1, 3))
    (moved,) = move((factor,), 4, {0: 3, 2: 1}.get)
    assert moved.dims == (1, 3)
    assert moved.ids.shape == (1, 3, 1, 2)
    assert moved.ids[0, :, 0, 1].tolist() == [3, 4, 5]


def test_a_dimension_used_up_leaves_the_others() -> None:
    elements = Elements()
    rows, columns = along(2, 0, elements.new(2)), along(2, 1, elements.new(3))
    left = without(elements, (rows, columns), (1,))
    assert covering(left, 0) is rows
    assert covering(left, 1) is None


def test_broadcast_joins_units_and_fixes_those_beside_fixed_values() -> None:
    elements = Elements()
    a, b, c, d = (elements.new(n) for n in (3, 3, 3, 1))
    both = broadcast(elements, [((along(2, 1, a),), (4, 3)), ((along(1, 0, b),), (3,))], "add")
    assert [f.dims for f in both] == [(1,)]
    broadcast(elements, [((along(2, 1, c),), (4, 3)), ((), (3,))], "add")
    broadcast(elements, [(both, (4, 3)), ((), (4, 1)), ((), ())], "mul")  # numbers that any width takes
    broadcast(elements, [(both, (4, 3)), ((along(2, 1, d),), (4, 1))], "gate")
    assert units(elements, a, b, c, d) == [[1, 2, 3], [1, 2, 3], [0, 0, 0], [0]]


def test_values_lined_up_along_part_of_their_dimensions_share_what_they_have() -> None:
    elements = Elements()
    heads, wide = elements.new(2), elements.new(6)
    whole = Factor((1, 2), wide.reshape(1, 2, 3))
    (left,) = broadcast(elements, [((whole,), (4, 2, 3)), ((along(3, 1, heads),), (4, 2, 1))], "mul")
    assert left.dims == (1,)
    assert units(elements, heads, wide) == [[1, 2], [1, 1, 1, 2, 2, 2]]
