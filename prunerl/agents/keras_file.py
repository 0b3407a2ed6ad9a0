"""Read and write a ``.keras`` archive as data: JSON and HDF5, no code from it and no Keras."""

from __future__ import annotations

import importlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunerl.agents.keras_builders import variables
from prunerl.agents.keras_config import parse
from prunerl.agents.keras_graph import Graph, attribute
from prunerl.agents.keras_layers import Node
from prunerl.errors import LoadError, PruneError

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
MAX_JSON = 16 * 2**20
MAX_WEIGHTS = 2**31
INFLATION = 64
"""How many times as large as in the archive an entry may be. Keras stores entries as they are."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What an archive holds.

    Attributes:
        config: The model's configuration.
        metadata: Keras' version and the date, as they were; and what the output means, if this package wrote it.
        graph: The configuration as a graph of all outputs.
        tensors: ``<layer>.<variable>`` → tensor; kernels as PyTorch has them, outputs first.
    """

    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    graph: Graph
    tensors: Mapping[str, Tensor]


def recognises(path: Path) -> bool:
    """Say whether a file is meant as a Keras model: by its suffix, or as an archive with Keras' entries."""
    if path.suffix == ".keras":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return {CONFIG, METADATA, WEIGHTS} <= set(archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read(path: Path) -> Contents:
    """Read an archive.

    Raises:
        LoadError: It is not one of Keras 3, is damaged, or holds what is not supported.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            metadata = json.loads(_entry(archive, METADATA, MAX_JSON))
            config = json.loads(_entry(archive, CONFIG, MAX_JSON))
            version = str(metadata["keras_version"])
            if not version.startswith("3."):
                raise LoadError(f"It was saved by Keras {version[:20]}. Load it there, and save it with Keras 3.")
            graph = parse(config)
            tensors = _tensors(_entry(archive, WEIGHTS, MAX_WEIGHTS), graph)
    except FileNotFoundError as error:
        raise LoadError(f"No file at {path}. Give the path of a .keras file.") from error
    except IsADirectoryError as error:
        raise LoadError(f"{path} is a folder, not a .keras file. Give the file inside it.") from error
    except PruneError as error:
        raise LoadError(f"{path}: {error}") from error
    except Exception as error:  # a hostile archive makes zipfile, json and HDF5 raise almost anything
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise LoadError(f"{path} is not a readable .keras file ({first}). Save the model again.") from error
    return Contents(config, metadata, graph, tensors)


def write(contents: Contents) -> bytes:
    """Return an archive with the given configuration and tensors, as Keras lays it out."""
    h5py = _h5py()
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        file.create_group("vars").attrs["name"] = contents.config["config"].get("name") or "model"
        for node, path in _groups(contents.graph):
            group = file.create_group(f"{path}/vars")
            group.attrs["name"] = node.name
            for i, name in enumerate(variables(node)):
                tensor = contents.tensors[f"{attribute(node.name)}.{name}"]
                group.create_dataset(str(i), data=_keras_order(name, tensor).numpy())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # A fixed date: equal agents give equal files.
        for name, data in (
            (METADATA, json.dumps(contents.metadata).encode()),
            (CONFIG, json.dumps(contents.config).encode()),
            (WEIGHTS, weights.getvalue()),
        ):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError as error:
        raise LoadError(f"It has no entry {name!r}. Save the model whole, with model.save('policy.keras').") from error
    if info.file_size > min(limit, INFLATION * (info.compress_size + 1024)):
        raise LoadError(f"Entry {name!r} claims {info.file_size:,} bytes, more than is read. Save the model again.")
    return archive.read(info)


def _groups(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Give each layer its place in the weights: Keras counts the layers of each class, whatever they are called."""
    seen: Counter[str] = Counter()
    for node in graph.nodes:
        if not node.kind.startswith("ops."):
            kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", node.kind)).lower()
            yield node, f"layers/{kind}_{seen[kind]}" if seen[kind] else f"layers/{kind}"
            seen[kind] += 1


def _tensors(blob: bytes, graph: Graph) -> dict[str, Tensor]:
    h5py = _h5py()
    result: dict[str, Tensor] = {}
    with h5py.File(io.BytesIO(blob), "r") as file:
        for node, path in _groups(graph):
            for i, name in enumerate(variables(node)):
                array = _array(file, f"{path}/vars/{i}", len(blob))
                full = f"{attribute(node.name)}.{name}"
                if not np.isfinite(array).all():
                    raise LoadError(f"Tensor {full!r} holds NaN or infinite values. Take an earlier checkpoint.")
                result[full] = _torch_order(name, torch.from_numpy(array))
                _check_shape(node, name, result[full])
    return result


def _array(file: Any, path: str, limit: int) -> Any:
    h5py = _h5py()
    here = file
    for part in path.split("/"):
        # Links may point anywhere, into other files too.
        if not isinstance(here, h5py.Group) or not isinstance(here.get(part, getlink=True), h5py.HardLink):
            raise LoadError(f"The weights hold no {path!r}. Save the model again, with Keras 3 and in one file.")
        here = here[part]
    if not isinstance(here, h5py.Dataset) or here.external or here.is_virtual or here.nbytes > limit:
        raise LoadError(f"{path!r} of the weights is not stored in the file itself. Save the model again.")
    if here.dtype.kind not in "fiu" or here.dtype.itemsize > 8:
        raise LoadError(f"{path!r} of the weights holds {here.dtype}, not numbers. Save the model again.")
    return np.asarray(here[()], dtype=np.float32)


def _h5py() -> Any:
    try:
        return importlib.import_module("h5py")
    except ImportError as error:
        raise LoadError("Reading Keras' weights needs h5py. Install it: pip install 'prunerl[keras]'.") from error


def _check_shape(node: Node, name: str, tensor: Tensor) -> None:
    dims = {"Dense": 2, "Conv1D": 3, "Conv2D": 4}.get(node.kind, 1) if name == "kernel" else 1
    width = {"Dense": "units", "Conv1D": "filters", "Conv2D": "filters"}.get(node.kind)
    fits = tensor.dim() in ((0,) if name == "count" else (dims,)) and 0 not in tensor.shape
    if not fits or (width is not None and tensor.shape[0] != node.config.get(width)):
        raise LoadError(
            f"Layer {node.name!r} has a {name} of shape {tuple(tensor.shape)} (outputs first), which does not fit its "
            "configuration. Save the model again."
        )


def _torch_order(name: str, tensor: Tensor) -> Tensor:
    """Turn a kernel from (*space, inputs, outputs) to (outputs, inputs, *space)."""
    if name != "kernel" or tensor.dim() < 2:
        return tensor
    return tensor.permute(-1, -2, *range(tensor.dim() - 2)).contiguous()


def _keras_order(name: str, tensor: Tensor) -> Tensor:
    if name != "kernel":
        return tensor
    return tensor.permute(*range(2, tensor.dim()), 1, 0).contiguous()
