"""Say, without running it, whether reading a pickle takes bounded time and memory."""

from __future__ import annotations

import io
import pickletools
from dataclasses import dataclass
from typing import Any

OPCODES = 300_000
DEPTH = 100
WEIGHT = 1_000_000
"""How many values a pickle may hold; a shared part counts as often as it is met, as for whoever goes through it."""

_CONTAINERS = frozenset("APPEND APPENDS SETITEM SETITEMS ADDITEMS BUILD".split())
_PUTS = frozenset("PUT BINPUT LONG_BINPUT".split())
_GETS = frozenset("GET BINGET LONG_BINGET".split())


@dataclass(slots=True, eq=False)
class _Value:
    """How deep and how heavy a value is, and whether it is part of another one, after which it must not change."""

    depth: int = 1
    weight: int = 1
    used: bool = False


_Stack = list["_Value | None"]  # None is a mark


def check(data: bytes, start: int = 0) -> int:
    """Go through the opcodes of one pickle and return where it ends.

    A pickle of a few bytes can ask for a memo of gigabytes, and one that shares tuples within tuples can take longer
    than anyone lives to hash. Both are seen in its opcodes.

    Raises:
        ValueError: It is damaged, or too long, too deep or too heavy.
    """
    stream = io.BytesIO(data)
    stream.seek(start)
    stack: _Stack = []
    memo: dict[int, _Value] = {}
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= OPCODES:
                raise ValueError(f"it has more than {OPCODES:,} instructions")
            _step(opcode, argument, stack, memo)
    except (LookupError, TypeError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error
    return stream.tell()


def _step(opcode: pickletools.OpcodeInfo, argument: Any, stack: _Stack, memo: dict[int, _Value]) -> None:
    if opcode.name in _PUTS or opcode.name == "MEMOIZE":
        place = len(memo) if argument is None else argument
        if place > OPCODES:
            raise ValueError(f"it remembers a value at place {place:,}")
        memo[place] = stack[-1] or _Value()
    elif opcode.name in _GETS:
        memo[argument].used = True
        stack.append(memo[argument])
    elif opcode.name == "MARK":
        stack.append(None)
    elif opcode.name == "DUP":
        raise ValueError("it was not written by Python's pickle")
    else:
        _join(opcode, _popped(opcode, stack), stack)


def _popped(opcode: pickletools.OpcodeInfo, stack: _Stack) -> list[_Value]:
    """Take what an opcode consumes, the topmost first."""
    popped: _Stack = []
    before = list(opcode.stack_before)
    marked = pickletools.markobject in before
    if marked or (opcode.name == "POP" and stack and stack[-1] is None):
        while (value := stack.pop()) is not None:
            popped.append(value)
        before = before[: before.index(pickletools.markobject)] if marked else []
    popped += [stack.pop() for _ in before]
    return [value for value in popped if value is not None]


def _join(opcode: pickletools.OpcodeInfo, parts: list[_Value], stack: _Stack) -> None:
    """Put what an opcode makes of its parts onto the stack."""
    if opcode.name in _CONTAINERS and parts:
        made = parts.pop()  # the lowest one, which was there before
        if made.used:
            raise ValueError("it changes a value that is part of another one")
    else:
        made = _Value()
    for part in parts:
        part.used = True
        made.depth = max(made.depth, 1 + part.depth)
        made.weight += part.weight
    if made.depth > DEPTH:
        raise ValueError(f"its values are nested more than {DEPTH} deep")
    if made.weight > WEIGHT:
        raise ValueError(f"it holds more than {WEIGHT:,} values")
    stack += [made] * len(opcode.stack_after)
