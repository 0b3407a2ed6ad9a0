"""One update of a Q-network with two hidden layers, written out, for ``graesser_dqn.py``.

Gradients are what autograd finds, to rounding. Minibatches lie in columns, so that the product with a sparse matrix
adds up rows, and gradients are written where the last ones were. Where masks leave no more than :data:`SPARSE` of the
middle matrix, its products touch the weights that are there, by ``graesser_sparse.c``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunerl import train
from prunerl.deploy import build

BATCH = 128
SPARSE = 0.4
"""Density from which on the dense products are faster."""
GATE = torch.ops.aten.threshold_backward


@dataclass(frozen=True)
class Sparse:
    """Where the weights of a matrix are: a place in it, the unit that each reads, and where a row's begin."""

    first: Tensor
    at: Tensor
    of: Tensor

    @property
    def arguments(self) -> tuple[int, ...]:
        """What the C functions take."""
        return len(self.first) - 1, self.first.data_ptr(), self.at.data_ptr(), self.of.data_ptr()


class Update:
    """Computes gradients, and keeps room for what is computed on the way.

    Args:
        online, target: The networks, each with three linear layers.
        gamma, decay: The discount, and the factor of the penalty on the squares of hidden weights.
        masks: The callback whose masks the network has; None where it is dense.
    """

    def __init__(
        self, online: nn.Module, target: nn.Module, gamma: float, decay: float, masks: train.Sparse | None = None
    ) -> None:
        self.online, self.target = _layers(online), _layers(target)
        self.gamma, self.decay, self.masks = gamma, decay, masks
        names = {id(p): name for name, p in online.named_parameters()}
        self.middle = f"q_net.{names[id(self.online[1][0])]}"
        self.mask: Tensor | None = None
        self.forward: Sparse | None = None
        self.backward: Sparse | None = None
        units = [len(bias) for _, bias in self.online]
        self.rooms = [[torch.empty(n, BATCH) for n in units] for _ in range(3)]
        self.columns = torch.arange(BATCH)
        for parameter in online.parameters():
            parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def __call__(self, batch: tuple[Tensor, ...]) -> None:
        """Write the gradients of the loss of one minibatch: observations, actions, rewards, observations that follow,
        1 where the episode goes on.
        """
        observations, actions, rewards, following, going = batch
        if len(observations) != BATCH:
            raise ValueError(f"Minibatches are of {BATCH}, got {len(observations)}. Train with batch_size={BATCH}.")
        self._look()
        (one, two, values), (back_one, back_two, back), rooms = self.rooms
        best = self._values(self.target, following.T, rooms).amax(0)
        wanted = torch.addcmul(rewards, going, best, value=self.gamma)
        self._values(self.online, observations.T, self.rooms[0])
        back.zero_()
        back[actions, self.columns] = (values[actions, self.columns] - wanted).mul_(2 / BATCH)
        _, (middle, _), (last, _) = self.online
        torch.mm(last.T, back, out=back_two)
        GATE.grad_input(back_two, two, 0.0, grad_input=back_two)
        self._back(back_one, back_two, one)
        for (weight, bias), signal, read, decay in (
            (self.online[0], back_one, observations.T, self.decay),
            (self.online[1], back_two, one, self.decay),
            (self.online[2], back, two, 0.0),
        ):
            torch.sum(signal, 1, out=bias.grad)
            if weight is not middle or self.forward is None or self._measured():
                torch.addmm(weight, signal, read.T, beta=2 * decay, out=weight.grad)
            else:
                pointers = (weight.data_ptr(), ctypes.c_float(2 * decay), signal.data_ptr(), read.data_ptr())
                _library().gradient(*self.forward.arguments, *pointers, weight.grad.data_ptr())

    def _values(self, layers: list[tuple[Tensor, Tensor]], read: Tensor, rooms: list[Tensor]) -> Tensor:
        one, two, values = rooms
        (first, first_bias), (middle, bias), (last, last_bias) = layers
        torch.addmm(first_bias[:, None], first, read, out=one).relu_()
        if self.forward is None:
            torch.addmm(bias[:, None], middle, one, out=two).relu_()
        else:
            pointers = (middle.data_ptr(), bias.data_ptr(), None, one.data_ptr(), two.data_ptr())
            _library().product(*self.forward.arguments, *pointers)
        return torch.addmm(last_bias[:, None], last, two, out=values)

    def _back(self, found: Tensor, signal: Tensor, one: Tensor) -> None:
        middle = self.online[1][0]
        if self.backward is None:
            torch.mm(middle.T, signal, out=found)
            GATE.grad_input(found, one, 0.0, grad_input=found)
        else:
            pointers = (middle.data_ptr(), None, one.data_ptr(), signal.data_ptr(), found.data_ptr())
            _library().product(*self.backward.arguments, *pointers)

    def _measured(self) -> bool:
        """Say whether the method looks at the gradients of weights that are not there."""
        course = self.masks.course if self.masks is not None else None
        return course is not None and "gradients" in course.meter.wanted

    def _look(self) -> None:
        """Find where the weights are, when the masks have changed."""
        mask = self.masks.masks.get(self.middle) if self.masks is not None else None
        if mask is self.mask:
            return
        self.mask, self.forward, self.backward = mask, None, None
        if mask is not None and float(mask.float().mean()) <= SPARSE:
            self.forward, self.backward = places(mask)
            self.online[1][0].grad.zero_()


def places(mask: Tensor) -> tuple[Sparse, Sparse]:
    """Return where a matrix's weights are, row by row and column by column."""
    found = []
    for turned in (mask, mask.T):
        rows, columns = turned.nonzero(as_tuple=True)
        at = rows * mask.shape[1] + columns if turned is mask else columns * mask.shape[1] + rows
        first = torch.zeros(len(turned) + 1, dtype=torch.int64)
        torch.cumsum(turned.sum(1), 0, out=first[1:])
        found.append(Sparse(first, at.contiguous(), columns.contiguous()))
    return found[0], found[1]


def sample(buffer: Any, size: int) -> tuple[Tensor, ...]:
    """Return a minibatch, drawn by the random numbers by which Stable-Baselines3 draws it from one environment."""
    chosen = np.random.randint(0, buffer.buffer_size if buffer.full else buffer.pos, size=size)
    np.random.randint(0, 1, size=size)  # it draws the environment too
    columns = (buffer.observations, buffer.actions[..., 0], buffer.rewards, buffer.next_observations)
    found = [torch.from_numpy(column[chosen, 0]) for column in columns]
    over = buffer.dones[chosen, 0] * (1.0 - buffer.timeouts[chosen, 0])
    return *found, torch.from_numpy(1.0 - over)


def _layers(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.weight, m.bias) for m in network.modules() if isinstance(m, nn.Linear)]


@cache
def _library() -> Any:
    compiler = build.find()
    if compiler is None:
        raise SystemExit("Sparse products need a C compiler. Install gcc or clang, or name yours in CC.")
    unit = build.Unit("sparse", Path(__file__).with_name("graesser_sparse.c").read_text(), ("-march=native",))
    found = ctypes.CDLL(str(build.library([unit], compiler, build.folder(None), name="graesser")))
    count, pointer = ctypes.c_int64, ctypes.c_void_p
    found.product.argtypes = [count, *[pointer] * 8]
    found.gradient.argtypes = [count, *[pointer] * 4, ctypes.c_float, *[pointer] * 3]
    found.product.restype = found.gradient.restype = None
    return found
