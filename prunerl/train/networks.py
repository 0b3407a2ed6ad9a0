"""What of a live network is masked: its weight matrices, which part they belong to, and which units lie between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.torch_layers import NatureCNN
from torch import Tensor, nn

from prunerl import errors, masks
from prunerl.errors import BudgetError, LearnError

_CRITIC = ("critic.", "value_net.", "mlp_extractor.value_net.", "vf_features_extractor.")
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_UNSUPPORTED = ("TRPO",)
"""Algorithms that change weights outside of their optimizer."""


@dataclass(frozen=True)
class Hidden:
    """One layer of hidden units.

    Attributes:
        weight: The matrix whose rows make the units.
        bias: Its bias, or None.
        output: Name of the module whose output the units are, after the activation.
        readers: Matrices whose first columns read the units.
    """

    weight: str
    bias: str | None
    output: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """The weight matrices of live networks.

    Attributes:
        parts: ``actor`` and ``critic`` → names of their matrices, in order. A Q-network that acts is an actor.
        last: Matrices that make outputs.
        hidden: Layers of linear units.
    """

    parts: Mapping[str, tuple[str, ...]]
    last: frozenset[str]
    hidden: tuple[Hidden, ...]


def of_model(model: Any) -> Layout:
    """Return the layout of a Stable-Baselines3 model.

    Raises:
        LearnError: No optimizer trains it.
        BudgetError: It has no weight matrix.
    """
    name = type(model).__name__
    if not any(masks.optimizers_of(model.policy)) or name in _UNSUPPORTED:
        raise LearnError(
            f"{name} does not train its policy with an optimizer alone, so masks cannot be held. "
            "Use PPO, A2C, DQN, QRDQN, SAC, TD3, DDPG or TQC."
        )
    return of_network(model.policy)


def of_network(network: nn.Module, *, last: frozenset[str] | None = None) -> Layout:
    """Return the layout of a network: a Stable-Baselines3 policy, or one whose chains of layers are ``Sequential``.

    Args:
        network: The live network.
        last: Names of layers that make outputs; by default those that no other layer is seen to read. Where there
            is no ``Sequential`` that is the last one.

    Raises:
        BudgetError: It has no weight matrix.
        NameUnknownError: There is no such layer.
    """
    matrices = dict(_matrices(network))
    if not matrices:
        raise BudgetError(
            f"{type(network).__name__} has no weight matrix, so there is nothing to prune. Give it a hidden layer."
        )
    hidden = tuple(_hidden(network, matrices))
    read = {h.weight for h in hidden}
    layers = [name.removesuffix(".weight") for name in matrices]
    if last is not None:
        for name in (name for name in last if name not in layers):
            raise errors.unknown("layer", name, layers)
        ends = {f"{name}.weight" for name in last}
    elif any(isinstance(m, nn.Sequential) for m in network.modules()):
        ends = {n for n in matrices if n not in read and "features_extractor" not in n}
    else:
        ends = {next(reversed(matrices))}
    parts: dict[str, list[str]] = {}
    for name in matrices:
        parts.setdefault("critic" if name.startswith(_CRITIC) else "actor", []).append(name)
    return Layout({part: tuple(names) for part, names in parts.items()}, frozenset(ends), hidden)


def _matrices(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the trained matrices once each, by the first name they have; targets follow and are left out."""
    seen: set[int] = set()
    for name, module in network.named_modules():
        if not isinstance(module, _MATRICES) or name.split(".")[0].endswith("_target"):
            continue
        if module.weight.requires_grad and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield f"{name}.weight", module


def _hidden(network: nn.Module, matrices: Mapping[str, nn.Module]) -> Iterator[Hidden]:
    heads = _heads(matrices) | _behind_features(network, matrices)
    for name, chain in network.named_modules():
        if not isinstance(chain, nn.Sequential):
            continue
        children = [f"{name}.{key}" if name else key for key, _ in chain.named_children()]
        places = [i for i, child in enumerate(children) if f"{child}.weight" in matrices]
        for place, following in zip(places, [*places, len(children)][1:], strict=True):
            layer, after = network.get_submodule(children[place]), children[following : following + 1]
            readers = tuple(f"{child}.weight" for child in after) or heads.get(name, ())
            readers = tuple(r for r in readers if isinstance(matrices[r], nn.Linear))
            if isinstance(layer, nn.Linear) and readers and following > place + 1:
                bias = f"{children[place]}.bias" if layer.bias is not None else None
                yield Hidden(f"{children[place]}.weight", bias, children[following - 1], readers)


def _heads(matrices: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return which layers read the end of a ``Sequential``, where Stable-Baselines3's policies have heads."""
    known = {
        "mlp_extractor.policy_net": ("action_net.weight", "action_net.0.weight"),
        "mlp_extractor.value_net": ("value_net.weight",),
        "actor.latent_pi": ("actor.mu.weight", "actor.mu.0.weight", "actor.log_std.weight"),
    }
    return {trunk: tuple(n for n in names if n in matrices) for trunk, names in known.items()}


def _behind_features(network: nn.Module, matrices: Mapping[str, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Return which layers read the linear layer of a convolutional features extractor, which networks may share."""
    found: dict[int, tuple[str, list[str]]] = {}
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        return {}  # which reads the features instead
    for name, module in network.named_modules(remove_duplicate=False):
        prefix = name.removesuffix("features_extractor")
        if type(module) is not NatureCNN or prefix == name or prefix.partition(".")[0].endswith("_target"):
            continue
        readers = found.setdefault(id(module), (f"{name}.linear", []))[1]
        readers += [reader for reader in _first_behind(prefix, matrices) if reader not in readers]
    return {name: tuple(readers) for name, readers in found.values()}


def _first_behind(prefix: str, matrices: Mapping[str, nn.Module]) -> list[str]:
    heads = {"pi_": ("policy", ("action_net.weight", "action_net.0.weight")), "vf_": ("value", ("value_net.weight",))}
    if prefix in heads:
        trunk, direct = heads[prefix]
        first = f"mlp_extractor.{trunk}_net.0.weight"
        return [name for name in ((first,) if first in matrices else direct) if name in matrices]
    if not prefix:  # an actor-critic policy has it by the names above as well
        return []
    own = [name for name in matrices if name.startswith(prefix) and "features_extractor" not in name]
    if any("latent_pi" in name for name in own):
        own = [name for name in own if "latent_pi" in name]
    return [name for name in own if name.endswith(".0.weight") or name.count(".") == 2]


def parameters_of(network: nn.Module) -> dict[str, Tensor]:
    """Return every parameter by every name that it has."""
    return dict(network.named_parameters(remove_duplicate=False))
