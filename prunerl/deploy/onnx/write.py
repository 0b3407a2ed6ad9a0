"""A program as one ONNX file: raw observation in, environment action out.

The inputs are ``observation``, ``allowed`` (bool) where the policy takes a mask, and the values of the memory by
name; the outputs ``action`` and ``next_<name>`` for each value of the memory. The batch is dynamic.
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

OPSET, OLDEST = 21, 13
"""Opset by default, the first with integers of 4 bits; and the oldest, the first that dequantises by output."""

NATIVE = ("relu", "leaky_relu", "abs", "neg", "reciprocal", "elu", "selu", "softsign")
MISSING = "Writing and checking ONNX files needs onnx and onnxruntime: pip install 'prunerl[onnx]'."

Arrays = dict[str, NDArray[Any]]


def onnx_bytes(program: Program, *, opset: int = OPSET, name: str = "policy") -> bytes:
    """Return a program as the bytes of an ONNX file.

    Args:
        program: A program.
        opset: Version of ONNX's operators.
        name: Of the graph.

    Returns:
        The file; weights of 4 bits and fewer take 4 bits there from opset 21 on and 8 before.

    Raises:
        ExportError: An operator does not exist in that opset, or the libraries are missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ExportError(MISSING) from error
    from prunerl.deploy.onnx.graph import Graph
    from prunerl.deploy.onnx.operations import write

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= opset <= newest:
        raise ExportError(f"opset {opset} cannot be written. Choose one from {OLDEST} to {newest}.")
    expanded = expand(program, (*SIMPLE, *NATIVE))
    graph = Graph(opset, expanded.shapes, masked=program.allowed > 0)
    write(expanded, graph)
    return graph.file(expanded, name)


def onnx_player(path: str | Path) -> Callable[..., tuple[NDArray[Any], Arrays]]:
    """Return a function that plays an ONNX file in ONNX Runtime, on one thread.

    It takes observations, shape (batch, *observation), the memory by name and the mask of allowed actions or None,
    and returns the actions and the next memory by the names of the present one.

    Raises:
        ExportError: The library is missing, or it cannot run the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(MISSING) from error
    options = onnxruntime.SessionOptions()
    # One decision is too little work to share: more threads make it slower.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions share no base class
        raise ExportError(f"ONNX Runtime cannot run the file: {error}. Choose another opset.") from error
    taken = [given.name for given in session.get_inputs()]

    def play(observations: NDArray[Any], memory: Arrays, allowed: NDArray[np.bool_] | None) -> Any:
        given = {OBSERVATION: observations, **memory}
        if ALLOWED in taken:
            given[ALLOWED] = np.ones((len(observations), _width(session)), bool) if allowed is None else allowed
        actions, *following = session.run(None, given)
        return actions, dict(zip(memory, following, strict=True))

    return play


def _width(session: Any) -> int:
    return int(next(given.shape[1] for given in session.get_inputs() if given.name == ALLOWED))
