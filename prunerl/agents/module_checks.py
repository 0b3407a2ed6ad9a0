"""What can be wrong with a module and what was said of it, found before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from prunerl import environments, heads
from prunerl.agents.module_head import check_output
from prunerl.errors import LoadError, SpaceError
from prunerl.types import Normalizer, Policy


def pairs(tensors: Mapping[str, Tensor], source: str, target: str) -> list[tuple[str, str]]:
    """Pair each tensor of a part of the module with that of its target.

    Raises:
        LoadError: The target is not a copy.
    """
    pairs = [(n, target + n[len(source) :]) for n in tensors if n.startswith(f"{source}.")]
    wrong = [t for s, t in pairs if t not in tensors or tensors[t].shape != tensors[s].shape]
    if wrong or not pairs:
        first = f"there is no {wrong[0]!r} of that shape" if wrong else f"no tensor's name begins with '{source}.'"
        raise LoadError(f"{target!r} is not a copy of {source!r}: {first}. Name two equal parts in targets=.")
    return pairs


def check_tensors(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise LoadError(f"from_module takes a torch.nn.Module, got a {type(module).__name__}.")
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise LoadError(f"{name!r} in the module's state_dict is a {type(tensor).__name__}, not a tensor.")
        if tensor.device.type != "cpu":
            raise LoadError(f"{name!r} is on device {tensor.device}. Move the module first: module.cpu().")
        floating = tensor.is_floating_point() or tensor.is_complex()
        if floating and tensor.dtype != torch.float32:
            raise LoadError(f"{name!r} holds {tensor.dtype}, observations are float32. Convert it: module.float().")
        if floating and not bool(tensor.isfinite().all()):
            raise LoadError(f"{name!r} holds numbers that are not finite. Take an earlier checkpoint.")


def check_normalizer(normalizer: Normalizer | None, shape: tuple[int, ...]) -> None:
    for got in () if normalizer is None else (np.shape(normalizer.mean), np.shape(normalizer.var)):
        if got != shape:
            raise SpaceError(f"The observation statistics have shape {got}, the environment's observations {shape}.")


def example_of(policy: Policy, space: gym.Space[Any]) -> Tensor:
    """Draw inputs of the network from the observation space."""
    space.seed(0)
    drawn = np.stack([environments.pack(space, space.sample()) for _ in range(3)])
    inputs = heads.prepare(policy, drawn)
    return inputs.unsqueeze(1).repeat_interleave(2, dim=1) if policy.memory else inputs


def check_forward(policy: Policy, example: Tensor, name: str) -> None:
    """Run a module once.

    Raises:
        SpaceError: It does not take these observations, or gives something else than the head needs.
    """
    batch = example.shape[: 2 if policy.memory else 1]
    try:
        with torch.no_grad():
            output: Any = policy.network(example)
            stepped = policy.network.step(example[:, 0], heads.empty_memory(policy, 3)) if policy.memory else None  # type: ignore[operator]
    except Exception as error:  # whatever a third party's forward raises
        raise SpaceError(
            f"{name} does not take a batch of observations, {example.dtype} of shape {tuple(example.shape)}: "
            f"{type(error).__name__}: {error}. Say in forward= how it is called, and give the env it was trained in."
        ) from error
    check_output(output, batch, policy.head, "forward")
    if stepped is not None:
        check_output(stepped[0], batch[:1], policy.head, "step")
