"""Between a live model's optimizers and entropy coefficient, and an agent's data."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def optimizers(policy: Any) -> dict[str, Optimizer]:
    """Return the optimizers of a live policy, by the names that a zip gives them."""
    found = {
        "policy.optimizer": getattr(policy, "optimizer", None),
        "actor.optimizer": getattr(getattr(policy, "actor", None), "optimizer", None),
        "critic.optimizer": getattr(getattr(policy, "critic", None), "optimizer", None),
    }
    return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


def parameter_names(policy: Any, optimizer: Optimizer) -> list[str]:
    """Return the names of an optimizer's parameters, in its order."""
    names = {id(p): n for n, p in policy.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def load_moments(
    policy: Any, moments: Mapping[str, Mapping[str, Tensor]], options: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put moments by parameter name, and the options of the parameter groups, into a live policy's optimizers."""
    for name, optimizer in optimizers(policy).items():
        names = parameter_names(policy, optimizer)
        fresh = optimizer.state_dict()
        known = options.get(name, {})
        groups = [{**g, **_known(known, g), "params": g["params"]} for g in fresh["param_groups"]]
        state = {i: _interned(moments[n]) for i, n in enumerate(names) if n in moments}
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def moments_of(policy: Any) -> dict[str, dict[str, Tensor]]:
    """Return the moments of all optimizers of a live policy, by parameter name."""
    moments = {}
    for optimizer in optimizers(policy).values():
        names = parameter_names(policy, optimizer)
        for i, entries in optimizer.state_dict()["state"].items():
            moments[names[i]] = _tensors(entries)
    return moments


def saved_moments(
    tensors: Mapping[str, Tensor], saved: Mapping[str, Any], names: list[str]
) -> dict[str, dict[str, Tensor]] | None:
    """Return the moments of a saved optimizer by parameter name, or None when they do not fit the tensors."""
    keys = (saved.get("param_groups") or [{}])[0].get("params") or range(len(names))
    places = {key: place for place, key in enumerate(keys)}  # before 2020 PyTorch counted by address
    moments = {}
    for key, entries in (saved.get("state") or {}).items():
        place = places.get(key, -1)
        if not isinstance(key, int) or not 0 <= place < len(names):
            return None
        kept = {k: torch.as_tensor(v) for k, v in entries.items() if v is not None}
        if any(v.dim() > 0 and v.shape != tensors[names[place]].shape for v in kept.values()):
            return None
        moments[names[place]] = kept
    return moments


def load_entropy(entropy: Mapping[str, Any], model: Any) -> None:
    """Put the entropy coefficient and its optimizer's state into a live model."""
    if "log_ent_coef" in entropy and getattr(model, "log_ent_coef", None) is not None:
        model.log_ent_coef.data.copy_(entropy["log_ent_coef"])
        if "moments" in entropy:
            groups = model.ent_coef_optimizer.state_dict()["param_groups"]
            state = {0: _interned(entropy["moments"])}
            model.ent_coef_optimizer.load_state_dict({"state": state, "param_groups": groups})
    elif "ent_coef_tensor" in entropy and hasattr(model, "ent_coef_tensor"):
        model.ent_coef_tensor = entropy["ent_coef_tensor"].clone()


def entropy_of(model: Any) -> dict[str, Any]:
    """Return the entropy coefficient of a live model, and its optimizer's state."""
    if getattr(model, "log_ent_coef", None) is not None:
        result: dict[str, Any] = {"log_ent_coef": model.log_ent_coef.detach().clone()}
        moments = model.ent_coef_optimizer.state_dict()["state"].get(0)
        return result if moments is None else {**result, "moments": _tensors(moments)}
    fixed = getattr(model, "ent_coef_tensor", None)
    return {} if fixed is None else {"ent_coef_tensor": fixed.detach().clone()}


def _known(options: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in group and k not in ("params", "lr")}


def _interned(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    # A pickle writes equal keys once only when they are one object: equal agents give equal files.
    return {sys.intern(k): torch.as_tensor(v).clone() for k, v in entries.items()}


def _tensors(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    return {k: torch.as_tensor(v).clone() for k, v in entries.items() if v is not None}
