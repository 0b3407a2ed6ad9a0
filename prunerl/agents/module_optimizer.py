"""Take the moments out of live optimizers, and build optimizers that go on from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerl.errors import LearnError, LoadError

Moments = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Recipe:
    """An optimizer's class, and the options and parameter names of each of its groups."""

    kind: type[Optimizer]
    groups: tuple[tuple[Mapping[str, Any], tuple[str, ...]], ...]


def taken(optimizers: Sequence[Optimizer], module: nn.Module) -> tuple[tuple[Recipe, ...], Moments]:
    """Return how to build the optimizers again, and their moments by the name of the parameter.

    Raises:
        LoadError: An optimizer trains a parameter that is not the module's.
    """
    names = {id(p): n for n, p in module.named_parameters()}
    recipes, moments = [], {}
    for optimizer in optimizers:
        groups = []
        for group in optimizer.param_groups:
            if any(id(p) not in names for p in group["params"]):
                raise LoadError(
                    f"{type(optimizer).__name__} trains parameters that {type(module).__name__} does not have. Give "
                    "the live optimizer of this very module; several networks go into one nn.ModuleDict."
                )
            own = tuple(names[id(p)] for p in group["params"])
            groups.append(({k: v for k, v in group.items() if k != "params"}, own))
            for name, parameter in zip(own, group["params"], strict=True):
                saved = optimizer.state.get(parameter) or {}
                moments[name] = {k: torch.as_tensor(v).clone() for k, v in saved.items() if v is not None}
        recipes.append(Recipe(type(optimizer), tuple(groups)))
    return tuple(recipes), {name: entries for name, entries in moments.items() if entries}


def build(recipes: Sequence[Recipe], index: int, module: nn.Module, moments: Moments) -> Optimizer:
    """Build one of the optimizers over a live module, and give it the moments.

    Raises:
        LearnError: There is no such optimizer.
    """
    if not -len(recipes) <= index < len(recipes):
        raise LearnError(
            f"There is no optimizer {index}: {len(recipes)} were given. "
            "Give the live one(s): prunerl.from_module(module, optimizer=...)."
        )
    parameters = dict(module.named_parameters(remove_duplicate=False))
    recipe = recipes[index]
    # A layer that was left out of a stack has no parameters any more.
    groups = [
        {**options, "params": [parameters[n] for n in names if n in parameters]} for options, names in recipe.groups
    ]
    build_from: Any = recipe.kind
    optimizer: Optimizer = build_from(groups)
    for _, names in recipe.groups:
        for name in (n for n in names if n in moments and n in parameters):
            optimizer.state[parameters[name]] = {k: v.clone() for k, v in moments[name].items()}
    return optimizer
