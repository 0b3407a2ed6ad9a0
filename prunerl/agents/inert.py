"""Read the numbers out of a pickle without running any code from it."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from prunerl.errors import TrustError

_ARRAY, _BUFFER, _SCALAR = np.empty(1).__reduce__()[0], np.empty(1).__reduce_ex__(5)[0], np.float64(0).__reduce__()[0]
_NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): function
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _ARRAY),
            ("multiarray", "scalar", _SCALAR),
            ("numeric", "_frombuffer", _BUFFER),
        )
    },
}
"""What rebuilds arrays, under its old and its new name; taken from arrays, since NumPy warns of its private modules."""


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
                self.fields.update(part)

    def append(self, item: Any) -> None:
        """Accept list items of a pickled list subclass."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Accept entries of a pickled dict subclass."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _NUMPY.get((module, name), Inert)

    def persistent_load(self, pid: Any) -> Any:
        return Inert()


def read(data: bytes, what: str) -> Any:
    """Unpickle ``data`` with every class but NumPy's arrays replaced by :class:`Inert`.

    Raises:
        TrustError: The pickle does not fit this reading.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise TrustError(
            f"{what} cannot be read as plain data ({type(error).__name__}: {error}). "
            "If you trust its author, allow its code to run with --trust (trust=True)."
        ) from error
