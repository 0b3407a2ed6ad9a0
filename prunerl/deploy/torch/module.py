"""A program as a PyTorch module, for batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunerl.deploy.expand import SIMPLE, expand
from prunerl.deploy.program import ALLOWED, OBSERVATION, Matrix, Program
from prunerl.deploy.torch.operations import FUNCTIONS, Step, apply


def torch_module(program: Program) -> nn.Module:
    """Return a module that acts as the program does, for batches of raw observations.

    Its inputs are the observations, shape (batch, *observation); where the program takes it, which actions are
    allowed, bool of shape (batch, allowed); and each value of the memory in the program's order. It returns the
    actions, shape (batch, *action), alone, or a tuple of the actions and the next memory in the same order.
    """
    return _Module(program).eval()


class _Module(nn.Module):
    """Weights are buffers, codes among them as the integers they are, so that files stay small."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = expand(program, (*SIMPLE, *FUNCTIONS))
        for index, operation in enumerate(self.program.operations):
            for field in dataclasses.fields(operation):
                self._keep(f"{field.name}_{index}", getattr(operation, field.name))

    def _keep(self, name: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self.register_buffer(name, torch.from_numpy(np.array(value)))
        elif isinstance(value, Matrix) and value.codes is None:
            self.register_buffer(name, torch.from_numpy(np.array(value.values)))
        elif isinstance(value, Matrix):
            codes = np.array(value.codes)
            self.register_buffer(f"{name}_codes", torch.from_numpy(codes.astype(np.min_scalar_type(_extreme(codes)))))
            if value.codebook is not None:
                self.register_buffer(f"{name}_codebook", torch.from_numpy(np.array(value.codebook)))
            else:
                column = np.reshape(np.asarray(value.scale, np.float32), (-1, *(1,) * (codes.ndim - 1)))
                self.register_buffer(f"{name}_scale", torch.from_numpy(column.copy()))

    def _weight(self, name: str) -> Tensor:
        if hasattr(self, name):
            return self.get_buffer(name)
        codes = self.get_buffer(f"{name}_codes")
        if hasattr(self, f"{name}_codebook"):
            return self.get_buffer(f"{name}_codebook")[codes.long()]
        return codes.float() * self.get_buffer(f"{name}_scale")

    def forward(self, observations: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the actions, and the next memory where there is one."""
        program = self.program
        taken = [*([ALLOWED] if program.allowed else []), *program.memory]
        values = {OBSERVATION: observations.float(), **dict(zip(taken, others, strict=True))}
        for index, operation in enumerate(program.operations):

            def weight(field: str, index: int = index) -> Tensor:
                return self._weight(f"{field}_{index}")

            name = operation.result
            values[name] = apply(operation, Step(values, weight, program.shapes[name]))
        actions = values[program.action].reshape(-1, *program.action_shape).to(getattr(torch, program.action_dtype))
        memory = tuple(values[name] for name in program.memory.values())
        return (actions, *memory) if memory else actions


def _extreme(codes: np.ndarray[Any, Any]) -> int:
    """Return the number that decides which integer type holds the codes: the lowest if negative, else the highest."""
    low, high = int(codes.min()), int(codes.max())
    return min(low, -high - 1) if low < 0 else high
