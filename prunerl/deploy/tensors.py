"""A program as one safetensors file: weights as they are stored, and all else as JSON in its metadata.

Codes are packed: eight entries of 3 bits take three bytes. Reading needs NumPy and safetensors, runs no code, and
trusts nothing that it has not checked.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from prunerl.deploy import program as form
from prunerl.deploy.program import Matrix, Operation, Program
from prunerl.deploy.verify import decoded, fault
from prunerl.errors import ExportError, LoadError
from prunerl.files import digest

FORMAT, VERSION = "prunerl-program", 1
SEAL = "sha256"
LARGEST = 2**28
"""Bytes of a file that is read: 64 million weights of 32 bits."""

KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in get_args(Operation)}
Tensors = Mapping[str, NDArray[Any]]


def program_bytes(program: Program) -> bytes:
    """Return a program as the bytes of a safetensors file.

    Raises:
        ExportError: The program is not whole, for instance because a weight is not finite.
    """
    wrong = fault(program)
    if wrong is not None:
        raise ExportError(f"This policy cannot be stored: {wrong}.")
    tensors: dict[str, NDArray[Any]] = {}
    told = {
        "format": FORMAT,
        "version": VERSION,
        "operations": [_written_operation(o, f"{i}.", tensors) for i, o in enumerate(program.operations)],
        **{
            part.name: _written(getattr(program, part.name), part.name, tensors)
            for part in fields(program)
            if part.name != "operations"
        },
    }
    text = json.dumps(told, separators=(",", ":"), allow_nan=False)
    seal = np.frombuffer(bytes.fromhex(_seal(text, tensors)), dtype=np.uint8)
    # The seal is a tensor because two entries of metadata come in no fixed order, and equal programs give equal files.
    return safetensors.numpy.save({**tensors, SEAL: seal}, {"program": text})


def load_program(path: str | Path) -> Program:
    """Read a program from a safetensors file.

    Raises:
        LoadError: The file cannot be read, is not such a file, was changed after it was written, or is not whole.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
        return program_from(data)
    except OSError as error:
        raise LoadError(f"Cannot read {str(path)!r}: {error.strerror or error}. Check the path.") from error
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error


def program_from(data: bytes) -> Program:
    """Return the program that the bytes of a safetensors file hold.

    Raises:
        LoadError: As :func:`load_program`.
    """
    if len(data) > LARGEST:
        raise LoadError(f"The file is larger than {LARGEST} bytes, the most that is read.")
    try:
        tensors = safetensors.numpy.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LoadError(f"This is not a whole safetensors file: {error}. Export the policy again.") from error
    text, seal = metadata.get("program"), tensors.pop(SEAL, None)
    if text is None or seal is None:
        raise LoadError("This safetensors file holds no policy program. Give one that export() wrote.")
    if _seal(text, tensors) != seal.tobytes().hex():
        raise LoadError("The file was changed after it was written: its digest is another. Export the policy again.")
    try:
        program = _read(json.loads(text), tensors)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise LoadError(f"The program in the file is malformed: {error}. Export the policy again.") from error
    wrong = fault(program)
    if wrong is not None:
        raise LoadError(f"The program in the file does not fit together: {wrong}. Export the policy again.")
    return program


def _seal(text: str, tensors: Tensors) -> str:
    """Return the SHA-256 over the JSON and every tensor's name, type, shape and bytes."""
    parts = [f"{name} {x.dtype} {x.shape} {digest(x.tobytes())}" for name, x in sorted(tensors.items())]
    return digest("\n".join([text, *parts]))


def _written_operation(operation: Operation, prefix: str, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    parts = {f.name: _written(getattr(operation, f.name), prefix + f.name, tensors) for f in fields(operation)}
    return {"operation": type(operation).__name__, **parts}


def _written(value: Any, name: str, tensors: dict[str, NDArray[Any]]) -> Any:
    """Return a value as JSON; arrays go to ``tensors``."""
    if isinstance(value, Matrix):
        return _written_matrix(value, name, tensors)
    if isinstance(value, np.ndarray):
        tensors[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {key: _written(part, name, tensors) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_written(part, name, tensors) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _written_matrix(matrix: Matrix, name: str, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    if matrix.codes is None:
        return {"matrix": _written(matrix.values, name, tensors)}
    lowest = 0 if matrix.codebook is not None else 1 - 2 ** (matrix.bits - 1)
    tensors[f"{name}.codes"] = _packed(matrix.codes.astype(np.int64) - lowest, matrix.bits)
    kind, numbers = ("codebook", matrix.codebook) if matrix.codebook is not None else ("scale", matrix.scale)
    return {
        "codes": {"tensor": f"{name}.codes"},
        "shape": list(matrix.codes.shape),
        "bits": matrix.bits,
        kind: _written(numbers, f"{name}.{kind}", tensors),
    }


def _packed(codes: NDArray[np.int64], bits: int) -> NDArray[np.uint8]:
    if codes.min() < 0 or codes.max() >= 2**bits:
        raise ExportError(f"Codes of {bits} bits lie outside of what {bits} bits can hold.")
    digits = (codes.reshape(-1, 1) >> np.arange(bits)) & 1
    return np.packbits(digits.astype(np.uint8), bitorder="little")


def _unpacked(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int32]:
    if packed.dtype != np.uint8 or packed.ndim != 1 or len(packed) != -(-count * bits // 8):
        raise ValueError(f"{count} codes of {bits} bits do not take {packed.nbytes} bytes")
    digits = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    codes = np.zeros(count, dtype=np.int32)
    for place in range(bits):
        codes |= digits[:, place].astype(np.int32) << place
    return codes


class _Unused(dict[str, NDArray[Any]]):
    """Tensors that no part of the program has taken yet; each is taken once, so nothing grows beyond the file."""

    def take(self, told: Any) -> NDArray[Any]:
        return self.pop(told["tensor"])


def _read(told: Any, tensors: Tensors) -> Program:
    if (told["format"], told["version"]) != (FORMAT, VERSION):
        raise ValueError(f"format {told['format']!r}, version {told['version']!r}; version {VERSION} can be read")
    unused = _Unused(tensors)
    operations = tuple(_read_operation(o, unused) for o in told["operations"])
    parts = {f.name: told[f.name] for f in fields(Program) if f.name != "operations"}
    parts["shapes"] = {name: tuple(shape) for name, shape in told["shapes"].items()}
    parts["action_shape"], parts["notes"] = tuple(told["action_shape"]), tuple(told["notes"])
    program = Program(operations, **parts)
    for part, hint in _hints(Program).items():
        if part != "operations" and not _is(getattr(program, part), hint):
            raise ValueError(f"{part} is not a {hint}")
    if unused:
        raise ValueError(f"tensors {sorted(unused)} belong to nothing")
    return program


def _read_operation(told: Any, tensors: _Unused) -> Operation:
    kind = told["operation"]
    if kind not in KINDS:
        raise ValueError(f"operation {kind!r} is not known; known are {', '.join(KINDS)}")
    hints = _hints(KINDS[kind])
    if set(told) != {"operation", *hints}:
        raise ValueError(f"{kind} has the parts {', '.join(hints)}, and got {', '.join(set(told) - {'operation'})}")
    parts = {name: _read_value(told[name], tensors) for name in hints}
    for name, hint in hints.items():
        if not _is(parts[name], hint):
            raise ValueError(f"{name} of {kind} cannot be {type(parts[name]).__name__}")
    operation: Operation = KINDS[kind](**parts)
    return operation


def _read_value(told: Any, tensors: _Unused) -> Any:
    if isinstance(told, list):
        return tuple(_read_value(part, tensors) for part in told)
    if not isinstance(told, dict):
        return told
    if "float" in told:
        return float(told["float"])
    if "tensor" in told:
        return tensors.take(told)
    if "matrix" in told:
        values = tensors.take(told["matrix"])
        return Matrix(values)
    return _read_matrix(told, tensors)


def _read_matrix(told: Any, tensors: _Unused) -> Matrix:
    bits, shape, packed = told["bits"], tuple(told["shape"]), tensors.take(told["codes"])
    if not _is(bits, int) or not 1 <= bits <= 16 or not _is(shape, tuple[int, ...]) or min(shape, default=0) < 1:
        raise ValueError(f"codes of {bits!r} bits and shape {shape!r}")
    codes = _unpacked(packed, bits, math.prod(shape)).reshape(shape)
    codebook = tensors.take(told["codebook"]) if "codebook" in told else None
    scale = None if codebook is not None else tensors.take(told["scale"])
    codes = codes if codebook is not None else codes + np.int32(1 - 2 ** (bits - 1))
    small: Any = np.int8 if bits <= 8 and codebook is None else (np.uint8 if bits <= 8 else np.int32)
    return Matrix(decoded(codes, scale, codebook), codes.astype(small), scale, codebook, bits)


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, vars(form))


def _is(value: Any, hint: Any) -> bool:
    """Tell whether a value has an annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        fits = isinstance(value, str) and value in inner
    elif origin in (typing.Union, types.UnionType):
        fits = any(_is(value, option) for option in inner)
    elif origin is tuple:
        fits = isinstance(value, tuple) and all(_is(part, inner[0]) for part in value)
    elif origin is np.ndarray:
        fits = isinstance(value, np.ndarray) and value.dtype == get_args(inner[1])[0]
    elif origin is not None:
        fits = isinstance(value, Mapping) and all(_is(k, inner[0]) and _is(v, inner[1]) for k, v in value.items())
    elif hint is Matrix:
        fits = isinstance(value, Matrix) and value.values.dtype == np.float32
    else:
        fits = type(value) is hint or (hint is float and type(value) is int)
    return fits
