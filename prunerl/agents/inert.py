"""Read the numbers out of a pickle without running any code from it."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.agents import pickle_bounds
from prunerl.errors import TrustError

MAX_BYTES = 64 * 2**20
_KINDS = "biufSU"
_NAME_LENGTH = 12


class Inert:
    """Stands for any object of the pickle: holds its state and what it was made with, does nothing."""

    fields: dict[str, Any]
    arguments: tuple[Any, ...]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = super().__new__(cls)
        self.fields = {}
        self.arguments = args
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept whatever the pickled constructor took."""

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.fields.update({key: np.array(v) if isinstance(v, _Array) else v for key, v in part.items()})

    def append(self, item: Any) -> None:
        """Accept list items of a pickled list subclass."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Accept entries of a pickled dict subclass."""


class _Dtype:
    """A pickled dtype. NumPy's own believes whatever sizes and offsets its state names."""

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or len(name) > _NAME_LENGTH:
            raise ValueError("a dtype without a name")
        self.dtype = np.dtype(name)
        if self.dtype.kind not in _KINDS:
            raise ValueError(f"an array of {self.dtype}, which is not numbers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError("a dtype without a byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array whose state is checked before NumPy takes it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *_, shape, dtype, fortran, raw = state
        made = _array(raw, dtype, shape, "F" if fortran is True else "C")
        super().__setstate__((1, made.shape, made.dtype, bool(fortran is True), made.tobytes("A")))  # type: ignore[arg-type]


def _array(raw: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    if isinstance(raw, str):  # bytes of protocol 2 and before
        raw = raw.encode("latin1")
    if not isinstance(raw, bytes | bytearray) or not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise ValueError("an array that is not bytes of numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array without a shape")
    if math.prod(shape) * dtype.dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} in {len(raw):,} bytes")
    return np.frombuffer(raw, dtype.dtype).reshape(shape, order=order).copy(order)  # type: ignore[call-overload,no-any-return]


def _reconstruct(*_: Any) -> _Array:
    return np.empty(0).view(_Array)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    return _array(raw, dtype, (), "C")[()]


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    return _array(raw, dtype, shape, order)


NUMPY: Mapping[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): lambda text, *_: text.encode("latin1"),  # bytes, in protocol 2
    ("__builtin__", "bytes"): lambda: b"",  # without arguments: given a number, the real one makes that many
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""What stands for the classes and functions that rebuild arrays, under their old and their new name."""


def _any(module: str, name: str) -> Any:
    return NUMPY.get((module, name), Inert)


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, data: bytes, find: Callable[[str, str], Any], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(io.BytesIO(data))
        self.find = find
        self.persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        return self.find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return Inert() if self.persistent is None else self.persistent(pid)


def unpickle(data: bytes, find: Callable[[str, str], Any], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Unpickle ``data`` with ``find`` in place of imports, in bounded time and memory.

    Raises:
        ValueError: It takes too much of them. ``find``, ``persistent`` and what they return may raise anything.
    """
    pickle_bounds.check(data)
    return _Unpickler(data, find, persistent).load()


def read(data: bytes, what: str) -> Any:
    """Unpickle ``data`` with every class but NumPy's arrays of numbers replaced by :class:`Inert`.

    Raises:
        TrustError: The pickle does not fit this reading.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        return unpickle(data, _any)
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise TrustError(
            f"{what} cannot be read as plain data ({reason(error)}). "
            "If you trust its author, allow its code to run with --trust (trust=True)."
        ) from error


def reason(error: Exception) -> str:
    """Return an error's kind and first line. Only text is shown: other arguments may be values of the pickle."""
    first = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    line = (first.strip().splitlines() or [""])[0][:200].rstrip(".")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
