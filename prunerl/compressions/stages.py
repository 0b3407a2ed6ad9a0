"""The compressions that are asked for, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prunerl import errors
from prunerl.compressions.draft import Draft, with_low_rank, with_quantized, with_shared
from prunerl.errors import BudgetError

INTEGERS = {"int8": 8, "int4": 4}
FEWEST_BITS, MOST_BITS = 2, 8
HALVINGS = 6


@dataclass(frozen=True, eq=False)
class Alternative:
    """One way to carry out a stage: its name, and the function of a draft and of visited states."""

    name: str
    apply: Callable[[Draft, Tensor], Draft]


Stage = tuple[Alternative, ...]
"""Each alternative is smaller than the one before, and made from the same draft; the last one that passes is taken."""


def stages_for(
    low_rank: float | str | None, share: int | None, quantize: str | None, inputs: bool | None
) -> tuple[Stage, ...]:
    """Check what is asked for and return it as stages; see :func:`prunerl.compress.compress`.

    Raises:
        BudgetError: An amount is out of range, nothing is asked for, or weights are to be stored in two ways.
        NameUnknownError: There is no such quantisation.
    """
    if low_rank is None and share is None and quantize is None:
        raise BudgetError("Nothing to compress by. Give low_rank, share or quantize.")
    if share is not None and quantize is not None:
        raise BudgetError(
            "Weights cannot both share values and be quantised: a codebook's values are no grid. Give one of the two."
        )
    found = [_low_rank(low_rank), _share(share), _quantize(quantize, inputs)]
    return tuple(stage for stage in found if stage)


def _low_rank(amount: float | str | None) -> Stage:
    if amount is None:
        return ()
    if amount == "auto":
        return tuple(_low_rank(0.5**i)[0] for i in range(1, HALVINGS + 1))
    if isinstance(amount, str):
        raise errors.unknown("low rank", amount, ["auto"])
    if not 0.0 < amount <= 1.0:
        raise BudgetError(f"low_rank must be in (0, 1], got {amount}. It is the share of numbers to keep.")
    return (Alternative(f"low rank {amount:g}", lambda draft, states: with_low_rank(draft, states, amount)),)


def _share(bits: int | None) -> Stage:
    if bits is None:
        return ()
    if not FEWEST_BITS <= bits <= MOST_BITS:
        raise BudgetError(f"share must be from {FEWEST_BITS} to {MOST_BITS} bits, got {bits}.")
    return (Alternative(f"{bits}-bit shared", lambda draft, states: with_shared(draft, states, bits)),)


def _quantize(kind: str | None, inputs: bool | None) -> Stage:
    if kind is None:
        return ()
    if kind not in INTEGERS:
        raise errors.unknown("quantization", kind, INTEGERS)
    bits, both = INTEGERS[kind], kind == "int8" if inputs is None else inputs
    name = f"{kind} with int8 inputs" if both else kind
    return (Alternative(name, lambda draft, states: with_quantized(draft, states, bits, inputs=both)),)
