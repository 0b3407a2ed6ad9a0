"""Where values lie: each in the scratch memory for as long as it is needed, beside those of the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunerl.deploy.c99.step import Step


@dataclass(frozen=True)
class Span:
    """A value in the scratch memory: its size and the first and last step that touch it."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """Where values lie.

    Attributes:
        offsets: Value → its place in the scratch memory of its type, for those that lie there.
        same: Value → the one in whose place it lies.
        floats, whole: Entries of the scratch memory of floats and of 16-bit integers.
    """

    offsets: Mapping[str, int]
    same: Mapping[str, str]
    floats: int
    whole: int


def plan(steps: Sequence[Step], placed: frozenset[str], kept: frozenset[str]) -> Plan:
    """Lay out the values of a policy, the largest first, each at the lowest place that is free while it lives.

    Args:
        steps: In the order of computation.
        placed: Values that lie elsewhere: arguments, memory, constants and the action.
        kept: Values that are needed after the last step.
    """
    last = {name: i for i, step in enumerate(steps) for name in (*step.makes, *step.reads)}
    last |= dict.fromkeys(kept, len(steps))
    same = _same(steps, placed, last)
    for name in last:
        root = roots(same, name)
        last[root] = max(last[root], last[name])
    spans = [
        (Span(name, size, i, last[name]), name in step.whole)
        for i, step in enumerate(steps)
        for name, size in step.makes.items()
        if name not in same and name not in placed
    ]
    floats, total = _fit([span for span, whole in spans if not whole])
    others, beside = _fit([span for span, whole in spans if whole])
    return Plan(floats | others, same, total, beside)


def roots(same: Mapping[str, str], name: str) -> str:
    """Return the value in whose place a value lies in the end."""
    while name in same:
        name = same[name]
    return name


def _same(steps: Sequence[Step], placed: frozenset[str], last: Mapping[str, int]) -> dict[str, str]:
    """Find the values that lie where the one lies that they are made of."""
    same: dict[str, str] = {}
    ends = dict(last)
    for i, step in enumerate(steps):
        for name in step.makes:
            root = roots(same, step.reads[0]) if step.reads else name
            dies = step.alike and root not in placed and ends[root] == i
            if name not in placed and (step.alias or dies):
                same[name] = step.reads[0]
                ends[root] = max(ends[root], ends[name])
    return same


def _fit(spans: Sequence[Span]) -> tuple[dict[str, int], int]:
    """Place spans, and return their offsets and the memory they take."""
    offsets: dict[str, int] = {}
    done: list[Span] = []
    for span in sorted(spans, key=lambda s: (-s.size, s.first, s.name)):
        at = 0
        for other in sorted(done, key=lambda s: offsets[s.name]):
            meet = other.first <= span.last and span.first <= other.last
            if meet and at + span.size > offsets[other.name]:
                at = max(at, offsets[other.name] + other.size)
        offsets[span.name] = at
        done.append(span)
    return offsets, max((offsets[s.name] + s.size for s in spans), default=0)
