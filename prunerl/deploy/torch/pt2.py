"""A program as one ``.pt2`` file of ``torch.export``, with a dynamic batch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prunerl.deploy.program import Program
from prunerl.deploy.torch.module import torch_module
from prunerl.errors import ExportError

Arrays = dict[str, NDArray[Any]]


def pt2_bytes(program: Program) -> bytes:
    """Return a program as the bytes of a file that ``torch.export.load`` reads.

    Its module takes and returns what :func:`prunerl.deploy.torch.module.torch_module` says.

    Raises:
        ExportError: PyTorch cannot export it.
    """
    given = _example(program)
    batch = torch.export.Dim("batch", min=1)
    first, *others = [{0: batch} for _ in given]
    try:
        with warnings.catch_warnings():
            # PyTorch warns of its own internals here.
            warnings.simplefilter("ignore")
            shapes = {"observations": first, **({"others": tuple(others)} if others else {})}
            exported = torch.export.export(torch_module(program), given, dynamic_shapes=shapes)
            file = io.BytesIO()
            torch.export.save(exported, file)
    except ExportError:
        raise
    except Exception as error:  # torch.export raises many types
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"torch.export cannot export this policy: {first_line}. Choose another format.") from error
    return file.getvalue()


def _example(program: Program) -> tuple[torch.Tensor, ...]:
    """Return inputs for a batch of two: of a batch of one PyTorch would take the 1 for a constant."""
    observations = torch.zeros((2, *program.observation_shape), dtype=getattr(torch, program.observation_dtype))
    allowed = [torch.ones((2, program.allowed), dtype=torch.bool)] if program.allowed else []
    memory = [torch.zeros((2, *program.shapes[name])) for name in program.memory]
    return (observations, *allowed, *memory)


def pt2_player(path: str | Path) -> Callable[..., tuple[NDArray[Any], Arrays]]:
    """Return a function that plays a ``.pt2`` file in PyTorch.

    It takes observations, shape (batch, *observation), the memory by name and the mask of allowed actions or None,
    and returns the actions and the next memory by the names of the present one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        module = torch.export.load(path).module()

    def play(observations: NDArray[Any], memory: Arrays, allowed: NDArray[np.bool_] | None) -> Any:
        others = ([] if allowed is None else [allowed]) + list(memory.values())
        with torch.inference_mode():
            made = module(torch.from_numpy(observations), *(torch.from_numpy(x) for x in others))
        if not memory:
            return made.numpy(), {}
        return made[0].numpy(), {name: x.numpy() for name, x in zip(memory, made[1:], strict=True)}

    return play
