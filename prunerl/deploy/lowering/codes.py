"""Find the codes of a weight whose values are on a grid or in a codebook."""

from __future__ import annotations

import numpy as np

from prunerl.deploy.program import Coding, Floats, Matrix
from prunerl.errors import LowerError


def plain(values: Floats) -> Matrix:
    """Return a weight that is stored as it is."""
    return Matrix(values)


def with_codes(values: Floats, coding: Coding, parameter: str) -> Matrix:
    """Return a weight with its codes.

    Args:
        values: Shape (outputs, inputs, *kernel).
        coding: How it is stored.
        parameter: Its name, for the error.

    Raises:
        LowerError: The values are not what codes can say.
    """
    return _quantized(values, coding, parameter) if coding.kind == "quantized" else _shared(values, coding, parameter)


def _quantized(values: Floats, coding: Coding, parameter: str) -> Matrix:
    if coding.scale is None or coding.scale.shape != values.shape[:1]:
        got = None if coding.scale is None else coding.scale.shape
        raise LowerError(
            f"{parameter!r} of shape {values.shape} needs one scale for each output, shape {values.shape[:1]}, "
            f"got {got}. Quantise it by output."
        )
    scale = coding.scale.astype(np.float32)
    by_output = scale.reshape(-1, *[1] * (values.ndim - 1))
    codes = np.rint(np.divide(values, by_output, out=np.zeros_like(values), where=by_output != 0))
    limit = 2 ** (coding.bits - 1) - 1
    wrong = (codes.astype(np.float32) * by_output != values) | (np.abs(codes) > limit)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise LowerError(
            f"{parameter!r} is not what its codes say: entry {place} is {values[place]!r}, which is no whole number "
            f"within ±{limit} times {by_output[place[0]].item()!r}. Set its values to codes · scale."
        )
    return Matrix(values, codes.astype(np.int8 if coding.bits <= 8 else np.int16), scale, None, coding.bits)


def _shared(values: Floats, coding: Coding, parameter: str) -> Matrix:
    book = coding.codebook
    if book is None or book.ndim != 1 or not 0 < len(book) <= 2**coding.bits:
        got = None if book is None else book.shape
        raise LowerError(
            f"{parameter!r} needs a codebook of 1 to {2**coding.bits} entries for {coding.bits} bits, got {got}."
        )
    book = book.astype(np.float32)
    order = np.argsort(book, kind="stable")
    codes = order[np.clip(np.searchsorted(book[order], values), 0, len(book) - 1)]
    wrong = book[codes] != values
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise LowerError(
            f"{parameter!r} is not what its codes say: entry {place} is {values[place]!r}, which is not in its "
            "codebook. Set its values to entries of the codebook."
        )
    return Matrix(values, codes.astype(np.uint8 if coding.bits <= 8 else np.uint16), None, book, coding.bits)
