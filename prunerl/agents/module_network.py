"""A function of a ``torch.nn.Module`` as a network that has the module's own parameter names."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor, nn

from prunerl.agents.resize import resize
from prunerl.environments import packed_shape
from prunerl.errors import LoadError
from prunerl.trace import Trace
from prunerl.types import Tie

Forward = Callable[[Any, Tensor], Tensor]
"""From a module and a batch of observations to what is to be computed, shape (batch, outputs)."""

Step = Callable[[Any, Tensor, tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]
"""From a module, a batch of observations and a memory to the output and the next memory."""


class Network(nn.Module):
    """Computes ``forward(module, observations)``; parameters are those of the module, under its own names."""

    def __init__(self, module: nn.Module, forward: Forward, step: Step | None = None) -> None:
        super().__init__()
        # The same dictionaries, not a child: a child would put its name before those of all parameters.
        self._parameters, self._buffers, self._modules = module._parameters, module._buffers, module._modules
        self._non_persistent_buffers_set = module._non_persistent_buffers_set
        self.__dict__["inner"] = module
        self.function, self.stepped = forward, step

    def forward(self, observations: Tensor) -> Tensor:
        return self.function(self.__dict__["inner"], observations)

    def step(self, observations: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Act once: observations of shape (batch, *observation), and the memory after the step before."""
        assert self.stepped is not None  # only recurrent networks are stepped, and those have it
        return self.stepped(self.__dict__["inner"], observations, memory)

    def train(self, mode: bool = True) -> Network:
        self.__dict__["inner"].train(mode)
        self.training = mode
        return self


def unpack(space: gym.spaces.Dict, observations: Tensor) -> dict[str, Any]:
    """Take packed observations of a dict space apart: the inverse of :func:`prunerl.environments.pack`.

    Args:
        space: The environment's observation space.
        observations: Shape (*batch, numbers); the batch may have a time dimension.

    Returns:
        Each part with its own shape, (*batch, *part): floats, as the environment gives their numbers; of Discrete and
        MultiDiscrete spaces integers.

    >>> import torch
    >>> space = gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Box(0, 1, (2,)))
    >>> unpack(space, torch.tensor([[2.0, 0.5, 1.0]]))
    {'a': tensor([2]), 'b': tensor([[0.5000, 1.0000]])}
    """
    parts: dict[str, Any] = {}
    start = 0
    for name, part in space.spaces.items():
        shape = packed_shape(part)
        count = int(np.prod(shape))
        own = observations[..., start : start + count]
        start += count
        if isinstance(part, gym.spaces.Dict):
            parts[name] = unpack(part, own)
        else:
            shaped = own.reshape(*own.shape[:-1], *shape)
            whole = isinstance(part, gym.spaces.Discrete | gym.spaces.MultiDiscrete)
            parts[name] = shaped.long() if whole else shaped
    return parts


def copied(module: nn.Module) -> nn.Module:
    """Return a copy that shares nothing with ``module``, which may have been trained in any way.

    Raises:
        LoadError: The module cannot be copied.
    """
    # Norms of before torch 2 leave the weight that they computed as an attribute, which deepcopy refuses.
    computed = (v for part in module.modules() for v in vars(part).values() if isinstance(v, Tensor) and not v.is_leaf)
    try:
        return copy.deepcopy(module, {id(v): v.detach().clone() for v in computed})
    except Exception as error:  # whatever a third party's attributes raise
        raise LoadError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}). Give the network alone, "
            "without environments, files or writers among its attributes."
        ) from error


def rebuilt(template: nn.Module, shapes: Mapping[str, tuple[int, ...]], stacks: Sequence[str]) -> nn.Module:
    """Return a copy of ``template`` with other widths, and with less depth in its stacks.

    Raises:
        ValueError: A layer cannot have these shapes.
    """
    module = copied(template)
    for prefix in stacks:
        layers = len(stack_names(shapes, prefix))
        stack = module.get_submodule(prefix)
        assert isinstance(stack, nn.Sequential)  # check_stack lets nothing else in
        bare = len(stack) % 2  # without an activation after the last layer
        for index in reversed(range(2 * layers - bare, len(stack))):
            del stack[index]
    resize(module, shapes)
    return module


def stack_names(names: Mapping[str, Any], prefix: str) -> dict[int, list[str]]:
    """Return the tensors of a stack by the number of their layer, in order."""
    found: dict[int, list[str]] = {}
    pattern = re.compile((re.escape(prefix) + r"\." if prefix else "") + r"(\d+)\.\w+")
    for name in names:
        match = pattern.fullmatch(name)
        if match:
            found.setdefault(int(match.group(1)), []).append(name)
    return dict(sorted(found.items()))


def renumbered(names: Mapping[str, Any], stacks: Sequence[str]) -> dict[str, str]:
    """Map names to those that the layers have once gaps in the stacks are closed."""
    result = {name: name for name in names}
    for prefix in stacks:
        start = f"{prefix}." if prefix else ""
        for new, own in enumerate(stack_names(names, prefix).values()):
            result |= {name: f"{start}{2 * new}.{name.rpartition('.')[2]}" for name in own}
    return result


def check_stack(module: nn.Module, prefix: str) -> None:
    """Check that hidden layers can be left out of a stack: Linear and one kind of activation in turn.

    Raises:
        LoadError: They cannot.
    """
    try:
        stack = module.get_submodule(prefix)
    except AttributeError:
        names = [n for n, part in module.named_modules() if isinstance(part, nn.Sequential)]
        raise LoadError(f"stacks names {prefix!r}, which the module does not have. Its Sequentials: {names}.") from None
    layers, activations = list(stack.children())[::2], list(stack.children())[1::2]
    alike = len({repr(a) for a in activations}) <= 1 and not any(list(a.parameters()) for a in activations)
    if type(stack) is not nn.Sequential or not alike or any(type(layer) is not nn.Linear for layer in layers):
        raise LoadError(
            f"Layers cannot be left out of {prefix!r}: it is not a Sequential of Linear and one activation in turn. "
            "Leave it out of stacks; its units can still be pruned."
        )


def noise_ties(module: nn.Module) -> tuple[Tie, ...]:
    """Return what follows the means of noisy layers: the deviations and the noise, which only training reads.

    Reference: Fortunato et al. 2018, Noisy Networks for Exploration.
    """
    ties: list[Tie] = []
    for path, part in module.named_modules():
        start = f"{path}." if path else ""
        widths = (getattr(part, "out_features", None), getattr(part, "in_features", None))
        own = {**part._parameters, **part._buffers}
        matrices = [n for n, t in own.items() if t is not None and tuple(t.shape) == widths]
        if len(matrices) < 2:
            continue
        mean = start + next((n for n in matrices if "mu" in n.lower()), matrices[0])
        for name, tensor in own.items():
            if start + name != mean and tensor is not None:
                ties += [
                    Tie(mean, dim, start + name, place, copies=False) for dim, place in _dims(name, tensor, widths)
                ]
    return tuple(ties)


def _dims(name: str, tensor: Tensor, widths: tuple[Any, Any]) -> list[tuple[int, int]]:
    """Pair dimensions of a matrix of these widths with those of a tensor beside it."""
    if tuple(tensor.shape) == widths:
        return [(0, 0), (1, 1)]
    if tensor.dim() != 1 or tensor.shape[0] not in widths:
        return []
    inner = widths[0] != widths[1] and tensor.shape[0] == widths[1]
    # Where both widths are equal the name has to tell.
    inner = inner or (widths[0] == widths[1] and re.search(r"(^|_)(p|in|input)$", name) is not None)
    return [(1 if inner else 0, 0)]


def shared_ties(acting: Trace, others: Sequence[Trace], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Tie, ...]:
    """Return what of other networks reads or makes units that the network that acts has too.

    Args:
        acting: Trace of the network that acts.
        others: Traces of the others.
        shapes: Shape of each tensor.
    """
    owned = {part: name for name, parts in acting.couplings.items() for part in parts}
    ties: dict[tuple[str, int], Tie] = {}
    for parts in (parts for other in others for parts in other.couplings.values()):
        units = next((owned[part] for part in parts if part in owned), None)
        for target, place in parts if units is not None else ():
            width = shapes[target][place]
            same = [(n, d) for n, d in acting.couplings[units or ""] if shapes[n][d] == width]
            if (target, place) not in owned and same:
                ties.setdefault((target, place), Tie(*same[0], target, place, copies=False))
    return tuple(ties.values())
