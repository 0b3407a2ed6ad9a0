"""Choose how a policy is stored and computed on a device, and say in words why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prunerl.deploy.estimate import BITS, LAYOUTS, Estimate, Layout, bits, estimate, parameters
from prunerl.deploy.program import Affine, Conv, Program, matrices
from prunerl.deploy.targets import Target
from prunerl.errors import TargetError

UNITS = {"flash": "bytes of flash", "ram": "bytes of RAM", "instructions": "instructions", "latency": "µs"}


@dataclass(frozen=True)
class Strategy:
    """How a policy is deployed on a device.

    Attributes:
        target: The device.
        chosen: The layout, and what it is estimated to need.
        exact: Whether the policy acts in it as it is; otherwise it has to be quantised first, and judged.
        reason: Why, in a sentence.
        rejected: The other layouts, each with the reason.
    """

    target: Target
    chosen: Estimate
    exact: bool
    reason: str
    rejected: tuple[tuple[Estimate, str], ...]

    def __str__(self) -> str:
        return explain(self)


def choose(program: Program, target: Target) -> Strategy:
    """Choose the layout for a policy on a device.

    Of the layouts that fit, one in which the policy acts as it is goes before one that it must be quantised for, as
    that costs return and has to be judged; among equals the one with the fewest instructions, then the least flash.

    Raises:
        TargetError: None fits; the message says which comes nearest and what would have to change.
    """
    everything = [estimate(program, layout, target) for layout in LAYOUTS]
    allowed = [e for e in everything if e.layout.numbers in target.formats]
    fitting = [e for e in allowed if not excess(e, target)]
    if not fitting:
        raise TargetError(_nothing_fits(program, target, everything))
    order = sorted(fitting, key=lambda e: (not exact(program, e.layout), e.instructions, e.flash))
    chosen = order[0]
    as_it_is = exact(program, chosen.layout)
    rivals = [e for e in order if exact(program, e.layout) == as_it_is]
    rejected = tuple((e, _why_not(e, chosen, program, target)) for e in everything if e is not chosen)
    return Strategy(target, chosen, as_it_is, _why(as_it_is, len(rivals)), rejected)


def exact(program: Program, layout: Layout) -> bool:
    """Return whether a program acts in a layout as it does now: its weights are float32, or coarse enough already."""
    if layout.numbers == "f32":
        return not any(isinstance(op, Affine | Conv) and op.input_scale is not None for op in program.operations)
    width = BITS[layout.numbers]
    return all(m.scale is not None and bits(m) <= width for op in program.operations for m in matrices(op))


def excess(needed: Estimate, target: Target) -> dict[str, tuple[float, float]]:
    """Return what an estimate needs beyond the limits: name of the limit → (needed, allowed)."""
    limits = {name: getattr(target, name) for name in UNITS}
    return {
        name: (getattr(needed, name), limit)
        for name, limit in limits.items()
        if limit is not None and getattr(needed, name) is not None and getattr(needed, name) > limit
    }


def explain(strategy: Strategy) -> str:
    """Say in words what was chosen, why, and what was not.

    Returns:
        Lines of text.
    """
    chosen, target = strategy.chosen, strategy.target
    lines = [
        f"{target.name}: {target.summary}",
        f"Chosen: {chosen.layout}, {_needs(chosen)} (all estimated). {strategy.reason}",
        *(f"Limit: {text}" for text in _limits(chosen, target)),
        *(f"Not {e.layout}: {why}" for e, why in strategy.rejected),
        *(f"Note: {note}" for note in target.notes),
    ]
    return "\n".join(lines)


def _needs(e: Estimate) -> str:
    time = "" if e.latency is None else f", {_microseconds(e.latency)} µs"
    return f"{e.flash:,} bytes of flash, {e.ram:,} bytes of RAM, {e.instructions:,} instructions a decision{time}"


def _limits(chosen: Estimate, target: Target) -> Iterator[str]:
    for name, unit in UNITS.items():
        limit, used = getattr(target, name), getattr(chosen, name)
        if limit is not None and used is not None:
            source = target.sources.get(name, "no source given")
            yield f"{limit:,.10g} {unit}, of which {_percent(used / limit)} is used. {source}."


def _why(as_it_is: bool, rivals: int) -> str:
    among = " It takes the fewest instructions of those that do." if rivals > 1 else ""
    if as_it_is:
        return f"It fits, and the policy acts in it exactly as it does now.{among}"
    return f"It fits; nothing in which the policy acts exactly as it does now does. It is to be quantised first.{among}"


def _why_not(e: Estimate, chosen: Estimate, program: Program, target: Target) -> str:
    if e.layout.numbers not in target.formats:
        return f"{target.name} does not take {e.layout.numbers}."
    over = excess(e, target)
    if over:
        return f"it needs {_over(over)}."
    if exact(program, chosen.layout) and not exact(program, e.layout):
        less, flash = _times(e.instructions, chosen.instructions), _times(e.flash, chosen.flash)
        text = "but the weights would be rounded, which has to be judged by playing"
        return f"it would fit, for {less} instructions and {flash} flash, {text}."
    if e.instructions == chosen.instructions:
        return f"it takes as many instructions, and {_times(e.flash, chosen.flash)} flash."
    return f"it takes {_times(e.instructions, chosen.instructions)} instructions."


def _times(value: float, of: float) -> str:
    """Say how much of one number another is.

    >>> _times(150, 100)
    '1.50 times the'
    """
    return f"{value / of:.2f} times the"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _microseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _over(over: dict[str, tuple[float, float]]) -> str:
    return " and ".join(f"{need:,.0f} {UNITS[name]} of {limit:,.0f} allowed" for name, (need, limit) in over.items())


def _nothing_fits(program: Program, target: Target, everything: Sequence[Estimate]) -> str:
    """Say which layout comes nearest, what it lacks, and what would mend it."""
    allowed = [e for e in everything if e.layout.numbers in target.formats]
    nearest = min(allowed, key=lambda e: max(need / limit for need, limit in excess(e, target).values()))
    text = (
        f"A policy of {parameters(program):,} parameters does not fit {target.name}. The nearest, {nearest.layout}, "
        f"needs {_over(excess(nearest, target))} (estimated)."
    )
    others = [e for e in everything if e not in allowed and not excess(e, target)]
    if others:
        best = min(others, key=lambda e: e.flash)
        text += f" In {best.layout} it would fit with {best.flash:,} bytes of flash, but the profile does not take it."
    return f"{text} {_mend(program, nearest.layout, target)}"


def _mend(program: Program, layout: Layout, target: Target) -> str:
    """Say how far to prune: the widest share of every layer's width that fits, by bisection."""
    low, high = 0.0, 1.0
    if excess(estimate(program, layout, target, share=low), target):
        return "No policy in this layout fits, however small. Choose a larger device."
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(estimate(program, layout, target, share=middle), target) else (middle, high)
    count = parameters(program, share=low)
    return (
        f"Prune it to at most about {count:,} parameters ({100 * low:.0f} % of the widths), or choose a larger device."
    )
