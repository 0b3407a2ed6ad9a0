"""Read the files that ``torch.save`` writes as data: their tensors, numbers, texts, lists and dicts, and nothing else.

``torch.load(weights_only=True)`` runs no code either, but it crashes on a key that is nested deeply enough, and makes a
million million numbers out of four where a file says so. Here each claim is compared with the bytes that are there.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunerl.agents import inert, pickle_bounds

_MAGIC = 0x1950A86A20F9469CFC6C
_DIMENSIONS = 16
_SHARED = 8
"""How many times the file's bytes its tensors may hold together: networks share features, under a few names each."""

_DTYPES: Mapping[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Dict(dict[Any, Any]):
    """An ordered dict, whose further attributes (the versions of modules) are left out."""

    def __setstate__(self, state: Any) -> None:
        """Leave them out."""


def read(blob: bytes) -> Any:
    """Read a file of ``torch.save``, of today or from before PyTorch 1.6.

    Raises:
        Exception: Of any kind: it is damaged, claims what it does not hold, or holds more than data.
    """
    return _read_zip(blob) if blob[:2] == b"PK" else _read_stream(blob)


def _read_zip(blob: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        entries = archive.infolist()
        names = {entry.filename.partition("/")[2]: entry for entry in entries}
        if len(names) != len(entries) or len({e.filename.partition("/")[0] for e in entries}) != 1:
            raise ValueError("two of its entries have one name")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("an entry is compressed, which torch.save does not do")
        if sum(entry.file_size for entry in entries) > len(blob):
            raise ValueError("its entries claim more bytes than it has")
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")
        tensors = _Tensors(lambda key: archive.read(names[f"data/{key}"]), _SHARED * len(blob) + 2**20)
        return inert.unpickle(archive.read(names["data.pkl"]), tensors.find, tensors.storage)


def _read_stream(blob: bytes) -> Any:
    pickles, at = [], 0
    for _ in range(5):
        end = pickle_bounds.check(blob, at)
        pickles.append(blob[at:end])
        at = end
    magic, _, system, data, keys = pickles
    if inert.unpickle(magic, _find) != _MAGIC or inert.unpickle(system, _find).get("little_endian") is not True:
        raise ValueError("it is not from torch.save on a little-endian machine")
    sizes: dict[str, int] = {}  # the storages come last, so their sizes are gathered on a first reading

    def measure(pid: Any) -> None:
        key, dtype, count = _storage(pid)
        sizes[key] = count * dtype.itemsize

    inert.unpickle(data, _find_storages, measure)
    records = {}
    for key in inert.unpickle(keys, _find):
        at += 8  # the number of elements, which the pickle says as well
        records[key] = blob[at : at + sizes[key]]
        at += sizes[key]
    tensors = _Tensors(records.__getitem__, _SHARED * len(blob) + 2**20)
    return inert.unpickle(data, tensors.find, tensors.storage)


class _Tensors:
    """Rebuilds tensors while a pickle is read: ``record`` gives a storage's bytes, ``most`` bytes are made of them."""

    def __init__(self, record: Callable[[str], bytes], most: int) -> None:
        self.record, self.left = record, most
        self.storages: dict[str, Tensor] = {}

    def storage(self, pid: Any) -> Tensor:
        key, dtype, count = _storage(pid)
        if key not in self.storages:
            raw = self.record(key)
            if len(raw) != count * dtype.itemsize:
                raise ValueError(f"storage {key!r} claims {count * dtype.itemsize:,} bytes and has {len(raw):,}")
            self.storages[key] = _numbers(raw, dtype)
        if self.storages[key].dtype != dtype or len(self.storages[key]) != count:
            raise ValueError(f"storage {key!r} is said to be two different ones")
        return self.storages[key]

    def find(self, module: str, name: str) -> Any:
        rebuilds = module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor")
        return self.rebuild if rebuilds else _find(module, name)

    def rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        tensor = _view(storage, offset, size, stride)
        self.left -= tensor.numel() * tensor.element_size()
        if self.left < 0:
            raise ValueError("its tensors hold more than the file")
        return tensor


def _storage(pid: Any) -> tuple[str, torch.dtype, int]:
    """Return a storage's key, and the dtype and number of its elements."""
    kind, dtype, key, _, count = pid[:5]
    if kind != "storage" or not isinstance(dtype, torch.dtype) or type(count) is not int or count < 0:
        raise ValueError("a storage that is not one of numbers")
    if not isinstance(key, str) or (len(pid) > 5 and pid[5] is not None):
        raise ValueError("a storage within a storage")
    return key, dtype, count


def _find_storages(module: str, name: str) -> Any:
    return _find(module, name) if name in _DTYPES else inert.Inert


def _find(module: str, name: str) -> Any:
    if module in ("torch", "torch.storage") and name in _DTYPES:
        return _DTYPES[name]
    if (module, name) in _KNOWN:
        return _KNOWN[module, name]
    raise ValueError(f"it names {module}.{name}")


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("torch", "Size"): tuple,
    **inert.NUMPY,
}


def _numbers(raw: bytes, dtype: torch.dtype) -> Tensor:
    if not raw:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:  # other bytes than 0 and 1 are not defined
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(raw), dtype=dtype)


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """Return the part of a storage that a tensor says it is."""
    if not isinstance(storage, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor that is not of numbers")
    if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise ValueError("a tensor without a shape")
    count, last = math.prod(size), offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if len(size) > _DIMENSIONS or count > len(storage) or (count and last >= len(storage)):
        raise ValueError(f"a tensor of shape {size} in a storage of {len(storage):,} numbers")
    if not count and max((offset, *size)) > max(len(storage), 2**20):
        raise ValueError("an empty tensor of an impossible shape")
    return torch.as_strided(storage, size, stride, offset if count else 0)
