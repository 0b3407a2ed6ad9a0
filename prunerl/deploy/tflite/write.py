"""A program as one ``.tflite`` file for LiteRT, for one observation at a time.

The file is written directly, by the schema that comes with LiteRT: TensorFlow is not needed. Inputs and outputs have
names in the signature ``serving_default``: ``observation``, ``allowed`` where the policy takes a mask, and the values
of the memory by name; ``action``, and ``next_<name>`` for each value of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.expand import SIMPLE, expand
from prunerl.deploy.program import ALLOWED, OBSERVATION, Program
from prunerl.errors import ExportError

NATIVE = ("relu", "relu6", "leaky_relu", "abs", "neg", "square")
MISSING = "Writing and checking TFLite files needs ai-edge-litert and flatbuffers: pip install 'prunerl[tflite]'."
SIGNATURE = "serving_default"

Arrays = dict[str, NDArray[Any]]


def tflite_bytes(program: Program) -> bytes:
    """Return a program as the bytes of a ``.tflite`` file; weights in codes take a byte each, or half of one for int4.

    Raises:
        ExportError: LiteRT has no form of an operation, or the libraries are missing.
    """
    try:
        import flatbuffers  # noqa: F401
        from ai_edge_litert import schema_py_generated  # noqa: F401
    except ImportError as error:
        raise ExportError(MISSING) from error
    from prunerl.deploy.tflite.graph import Graph
    from prunerl.deploy.tflite.operations import write

    expanded = expand(program, (*SIMPLE, *NATIVE))
    graph = Graph(expanded.shapes, masked=program.allowed > 0)
    inputs, outputs = write(expanded, graph)
    return graph.file(inputs, outputs, SIGNATURE)


def tflite_player(path: str | Path) -> Callable[..., tuple[NDArray[Any], Arrays]]:
    """Return a function that plays a ``.tflite`` file in LiteRT, on one thread, one observation after another.

    It takes observations, shape (batch, *observation), the memory by name and the mask of allowed actions or None,
    and returns the actions and the next memory by the names of the present one.

    Raises:
        ExportError: The library is missing, or it cannot run the file.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ExportError(MISSING) from error
    try:
        runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner(SIGNATURE)
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"LiteRT cannot run the file: {error}. Choose another format.") from error
    inputs = runner.get_input_details()

    def play(observations: NDArray[Any], memory: Arrays, allowed: NDArray[np.bool_] | None) -> Any:
        made = [_one(i, observations, memory, allowed) for i in range(len(observations))]
        return (
            np.concatenate([one["action"] for one in made]),
            {name: np.concatenate([one[f"next_{name}"] for one in made]) for name in memory},
        )

    def _one(i: int, observations: NDArray[Any], memory: Arrays, allowed: NDArray[np.bool_] | None) -> Arrays:
        given = {OBSERVATION: observations, **memory, **({} if allowed is None else {ALLOWED: allowed})}
        if ALLOWED in inputs and allowed is None:
            given[ALLOWED] = np.ones((len(observations), inputs[ALLOWED]["shape"][1]), bool)
        out: Arrays = runner(**{name: x[i : i + 1].astype(inputs[name]["dtype"]) for name, x in given.items()})
        return out

    return play
