"""Hidden layers that go as a whole: what reads the last one reads an earlier one instead, refitted by least squares."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunerl.errors import LearnError
from prunerl.remove import replicas
from prunerl.repair.least_squares import least_squares
from prunerl.trace import Trace, activity, features, trace
from prunerl.train.shrink_cut import named
from prunerl.train.shrink_networks import Network, optimizers, target_of, ties
from prunerl.types import State

Entry = TypeVar("Entry")


@dataclass(frozen=True, eq=False)
class Shallow:
    """A network without its last hidden layers.

    Attributes:
        network, traced, state: What is left, under the names that it has once the layers are gone.
        gone: Positions in the stack of the modules that go.
    """

    network: Network
    traced: Trace
    state: State
    gone: range


def shallow(network: Network, traced: Trace, state: State, depth: int, inputs: Tensor, ridge: float) -> Shallow:
    """Return the network with its first ``depth`` hidden layers alone.

    The layers that read the last hidden one are refitted on the outputs of the one that is last now, to what they
    computed before; in the target, to what they computed in the target. They have no moments: those were of other
    weights.

    Args:
        network: The network.
        traced: Trace of its module.
        state: Its tensors and moments, and those of its target.
        depth: Hidden layers that are left, from 1 to one less than there are.
        inputs: What it reads in visited states, shape (samples, features).
        ridge: Penalty of the least squares.

    Raises:
        LearnError: gSDE draws its noise from the hidden layer that would go.
    """
    if network.noise:
        raise LearnError(
            f"gSDE makes the noise of {network.name!r} from its last hidden layer, so that one cannot go. "
            "Leave depth out, or train with use_sde=False."
        )
    module = copy.deepcopy(network.module)
    stack = network.stack
    gone = positions(network, depth)
    kept = [i for i in range(len(_sequence(module, stack))) if i not in gone]
    _delete(_sequence(module, stack), gone)
    renamed = {f"{stack}.{old}": f"{stack}.{new}" for new, old in enumerate(kept)}
    left = replace(
        network,
        module=module,
        hidden=tuple(renamed[name] for name in network.hidden[:depth]),
        readers=tuple(renamed.get(name, name) for name in network.readers),
    )
    tensors = _renamed(state.tensors, network, renamed)
    moments = {n: m for n, m in _renamed(state.moments, network, renamed).items() if not _reads(n, left)}
    width = tensors[f"{left.hidden[-1]}.weight"].shape[0]
    for name in (n for n in tensors if n.endswith(".weight") and _reads(n, left)):
        tensors[name] = tensors[name].new_zeros(len(tensors[name]), width)
    _resize(module, left, tensors)
    smaller = State(tensors, moments)
    retraced = trace(module, inputs)
    fitted = dict(tensors)
    old_maps, new_maps = replicas(state, ties(network, state), traced), replicas(smaller, ties(left, smaller), retraced)
    for old, new in zip(old_maps, new_maps, strict=True):
        with torch.no_grad():
            computed = activity(traced, named(state, traced, old), inputs).outputs
        layers = {layer.name: layer for layer in traced.layers}
        before = dict(zip(left.readers, network.readers, strict=True))
        wanted = [
            features(layers[before[layer.name]], computed[before[layer.name]]) if layer.name in before else None
            for layer in retraced.layers
        ]
        solved = least_squares(retraced, named(smaller, retraced, new), {}, inputs, wanted, ridge=ridge)
        fitted |= {new.get(name, name): tensor for name, tensor in solved.items()}
    return Shallow(left, retraced, replace(smaller, tensors=fitted), gone)


def positions(network: Network, depth: int) -> range:
    """Return the positions in the stack of what lies behind the hidden layer ``depth``, up to what reads it."""
    sequence = _sequence(network.module, network.stack)
    inside = [r for r in network.readers if r.startswith(f"{network.stack}.")]
    first = int(network.hidden[depth].rpartition(".")[2])
    return range(first, int(inside[0].rpartition(".")[2]) if inside else len(sequence))


def forget(policy: nn.Module, network: Network, gone: range) -> None:
    """Delete layers from the live policy, its target and its optimizers, and the moments of what read them."""
    live = dict(policy.named_parameters())
    for stack in (network.stack, target_of(network.stack)):
        if any(name.startswith(f"{stack}.") for name in live):
            _delete(_sequence(policy, stack), gone)
    left = {id(parameter) for parameter in policy.parameters()}
    readers = [live[n] for n in live if any(n.startswith(f"{reader}.") for reader in network.readers)]
    removed = [parameter for parameter in live.values() if id(parameter) not in left]
    ids = {id(parameter) for parameter in removed}
    for optimizer in optimizers(policy):
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]
        for parameter in (*removed, *readers):
            optimizer.state.pop(parameter, None)


def _sequence(owner: nn.Module, name: str) -> nn.Sequential:
    found = owner.get_submodule(name)
    assert isinstance(found, nn.Sequential)  # Stable-Baselines3 builds no other stack
    return found


def _delete(sequence: nn.Sequential, gone: range) -> None:
    for position in reversed(gone):
        del sequence[position]


def _renamed(entries: Mapping[str, Entry], network: Network, renamed: Mapping[str, str]) -> dict[str, Entry]:
    """Return what is left under its new name: of the network, of its target, and of readers outside of the stack."""
    both = dict(renamed) | {target_of(old): target_of(new) for old, new in renamed.items()}
    stacks = (f"{network.stack}.", f"{target_of(network.stack)}.")
    found = {}
    for name, entry in entries.items():
        layer, _, kind = name.rpartition(".")
        if layer in both or not name.startswith(stacks):
            found[f"{both.get(layer, layer)}.{kind}"] = entry
    return found


def _reads(name: str, network: Network) -> bool:
    return name.rpartition(".")[0] in {*network.readers, *(target_of(reader) for reader in network.readers)}


def _resize(module: nn.Module, network: Network, tensors: Mapping[str, Tensor]) -> None:
    for reader in network.readers:
        part: Any = module.get_submodule(reader)
        part.weight = nn.Parameter(tensors[f"{reader}.weight"].clone(), requires_grad=False)
        part.in_features = part.weight.shape[1]
