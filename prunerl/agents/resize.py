"""Give a live ``torch.nn`` module other widths, in place.

It imports nothing but PyTorch, so that it can be pickled by value and be used in a process without this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def resize(module: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Put an empty tensor in the place of each parameter and buffer whose shape is to be another one.

    The attributes that say widths (``in_features``, ``out_channels``, ``num_features``, ``hidden_size``, ...) are set
    to what the new shapes say, so that the module runs once its tensors are loaded. Tensors that are not named, and
    those that have the shape already, stay as they are.

    Args:
        module: What to change.
        shapes: Name of a parameter or buffer, as in ``module.state_dict()``, → its new shape.

    Raises:
        ValueError: A name is not known, or a layer cannot have these shapes. Nothing is changed.

    >>> network = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
    >>> resize(network, {"0.weight": (3, 4), "0.bias": (3,), "2.weight": (2, 3)})
    >>> network
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): Tanh()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    parts = dict(module.named_modules())
    named: dict[str, dict[str, Shape]] = {path: {} for path in parts}
    for name, shape in shapes.items():
        path, _, own = name.rpartition(".")
        known = parts.get(path)
        if known is None or (own not in known._parameters and own not in known._buffers):
            raise ValueError(f"{type(module).__name__} has no parameter or buffer {name!r}. Name those that it has.")
        named[path][own] = tuple(shape)
    # Widths are worked out before anything is changed: a layer that cannot have them leaves the module as it was.
    widths = {path: _widths(part, path, _Shapes(part, path, named)) for path, part in parts.items()}
    made: dict[int, Tensor] = {}  # a parameter that is used in two places stays one
    for path, part in parts.items():
        for own, shape in named[path].items():
            _replace(part, own, shape, made)
        for attribute, value in widths[path].items():
            setattr(part, attribute, value)


class _Shapes:
    """Shapes of a module's own tensors, before and after."""

    def __init__(self, part: nn.Module, path: str, named: Mapping[str, Mapping[str, Shape]]) -> None:
        tensors = {**part._parameters, **part._buffers}
        self.old = {n: tuple(t.shape) for n, t in tensors.items() if t is not None}
        self.new = {n: named[path].get(n, shape) for n, shape in self.old.items()}
        for whole, (inner, kept) in _parametrized(part).items():
            shape = tuple(kept.shape)
            below = f"{path}.parametrizations.{whole}".lstrip(".")
            self.old[whole], self.new[whole] = shape, named[below].get(inner, shape)
        for inner in ("weight_orig", "weight_v"):  # norms of before torch 2, and ``torch.nn.utils.prune``
            if inner in part._parameters and "weight" not in self.old:
                self.old["weight"], self.new["weight"] = self.old[inner], self.new[inner]


def _parametrized(part: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Return which tensor of a parametrization has the shape of the whole: weight norm's direction, or the original."""
    found: dict[str, tuple[str, Tensor]] = {}
    entries = part._modules.get("parametrizations")
    for whole, entry in entries.items() if isinstance(entries, nn.ModuleDict) else ():
        for inner in ("original1", "original"):
            tensor = entry._parameters.get(inner, entry._buffers.get(inner))
            if tensor is not None:
                found[whole] = (inner, tensor)
                break
    return found


def _replace(part: nn.Module, own: str, shape: Shape, made: dict[int, Tensor]) -> None:
    old = part._parameters.get(own, part._buffers.get(own))
    if old is None or tuple(old.shape) == shape:
        return
    if id(old) not in made:
        empty = torch.empty(shape, dtype=old.dtype, device=old.device)
        made[id(old)] = nn.Parameter(empty, old.requires_grad) if isinstance(old, nn.Parameter) else empty
        made[-id(old)] = old  # kept alive: another tensor must not get its id
    setattr(part, own, made[id(old)])  # not into the dictionaries: recurrent layers keep a list beside them


Widths = dict[str, int | Shape]


def _widths(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    if shapes.old == shapes.new:
        return {}
    for kind, rule in _RULES:
        if isinstance(part, kind):
            return rule(part, path, shapes)
    return _features(part, shapes)


def _features(part: nn.Module, shapes: _Shapes) -> Widths:
    """Read the widths of Linear, and of all layers that name theirs as PyTorch does, off their tensors."""
    inner, outer = getattr(part, "in_features", None), getattr(part, "out_features", None)
    if not isinstance(inner, int) or not isinstance(outer, int):
        width = getattr(part, "num_features", None)
        return next(({"num_features": shapes.new[n][0]} for n, old in shapes.old.items() if old == (width,)), {})
    for name, old in shapes.old.items():
        new = shapes.new[name]
        if old == (outer, inner) and len(new) == 2:
            return {"out_features": new[0], "in_features": new[1]}
    for name, old in shapes.old.items():
        new = shapes.new[name]
        if old == (inner, outer) and len(new) == 2:
            return {"in_features": new[0], "out_features": new[1]}
    return {}


def _bilinear(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    outer, first, second = shapes.new["weight"]
    return {"out_features": outer, "in1_features": first, "in2_features": second}


def _convolution(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    assert isinstance(part, nn.modules.conv._ConvNd)
    outer, inner = shapes.new["weight"][:2]
    groups = part.groups
    if groups > 1 and not part.transposed and inner == 1 and part.in_channels == part.out_channels == groups:
        groups = outer  # each channel is a group of its own
    inner, outer = (outer, inner * groups) if part.transposed else (inner * groups, outer)
    if inner % groups or outer % groups:
        raise ValueError(f"{path}: {inner} → {outer} channels cannot be split into {groups} groups. Keep it whole.")
    return {"in_channels": inner, "out_channels": outer, "groups": groups}


def _vector(attribute: str) -> Rule:
    """Read one width off any of the layer's vectors."""

    def rule(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
        return next(({attribute: s[0]} for s in shapes.new.values() if len(s) == 1), {})

    return rule


def _group_norm(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    assert isinstance(part, nn.GroupNorm)
    channels = shapes.new["weight"][0]
    groups = channels if part.num_groups == part.num_channels else part.num_groups
    if channels % groups:
        raise ValueError(f"{path}: {channels} channels cannot be split into {groups} groups. Keep it whole.")
    return {"num_channels": channels, "num_groups": groups}


def _layer_norm(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    return {"normalized_shape": shapes.new["weight"]}


def _embedding(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    count, width = shapes.new["weight"]
    return {"num_embeddings": count, "embedding_dim": width}


def _cell(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    return {"input_size": shapes.new["weight_ih"][1], "hidden_size": shapes.new["weight_hh"][1]}


def _recurrent(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    assert isinstance(part, nn.RNNBase)
    gates, first = _GATES[part.mode], shapes.new["weight_ih_l0"]
    hidden, rest = divmod(first[0], gates)
    out = shapes.new["weight_hh_l0"][1]  # the projection of an LSTM that has one
    directions = 2 if part.bidirectional else 1
    wanted: dict[str, Shape] = {}
    for layer in range(part.num_layers):
        for suffix in ("", "_reverse")[:directions]:
            end = f"l{layer}{suffix}"
            inputs = first[1] if layer == 0 else out * directions
            wanted |= {f"weight_ih_{end}": (gates * hidden, inputs), f"weight_hh_{end}": (gates * hidden, out)}
            wanted |= {f"bias_ih_{end}": (gates * hidden,), f"bias_hh_{end}": (gates * hidden,)}
            wanted |= {f"weight_hr_{end}": (out, hidden)}
    wrong = [n for n, shape in shapes.new.items() if shape != wanted[n]]
    if rest or wrong or (part.proj_size == 0 and out != hidden):
        name = (wrong or ["weight_ih_l0"])[0]
        raise ValueError(
            f"{path}: {type(part).__name__} has one hidden size for all its layers; {name} of shape {shapes.new[name]} "
            f"does not fit one of {hidden}. Cut all its layers to one width, or keep it whole."
        )
    proj = {"proj_size": out} if part.proj_size else {}
    return {"input_size": first[1], "hidden_size": hidden, **proj}


def _attention(part: nn.Module, path: str, shapes: _Shapes) -> Widths:
    raise ValueError(
        f"{path}: nn.MultiheadAttention has one width for its inputs, heads and outputs. Keep it whole, or write the "
        "attention with three nn.Linear."
    )


Rule = Callable[[nn.Module, str, _Shapes], Widths]
_RULES: tuple[tuple[type[nn.Module], Rule], ...] = (
    (nn.Bilinear, _bilinear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.modules.batchnorm._NormBase, _vector("num_features")),
    (nn.GroupNorm, _group_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _vector("num_parameters")),
    (nn.RNNCellBase, _cell),
    (nn.RNNBase, _recurrent),
    (nn.MultiheadAttention, _attention),
)
