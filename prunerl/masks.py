"""Hold single weights at zero while an agent trains on.

:func:`attach` serves a live Stable-Baselines3 model, :func:`hold` any script that has an optimizer:

    held = masks.attach(model.policy, decided)      # SB3: every optimizer, target networks too
    held = masks.hold(optimizer, dict(network.named_parameters()), decided)     # anything else
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mkl
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.utils.hooks import RemovableHandle

from prunerl.errors import LearnError, RemovalError
from prunerl.types import Masks

ELEMENTWISE = frozenset((SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta))
"""Optimizers that leave a weight at zero whose gradient and moments are zero, and its moments too."""
ROOTED = frozenset(("exp_avg_sq", "square_avg", "sum"))
"""Moments whose square root these optimizers take."""
FLOOR = 1e-30
"""Masked entries of such moments during a step: where MKL's square root meets zeros, it is five times slower."""
RAISED = 2048
"""Entries from which on that is worth while."""
MKL = bool(mkl.is_available())  # type: ignore[no-untyped-call]

_NOTHING: Mapping[str, Any] = {}
_VERSION = operator.attrgetter("_version")


@dataclass(frozen=True, eq=False)
class Held:
    """Masks that are being held; ``replace()`` changes them, ``remove()`` ends it."""

    handles: tuple[RemovableHandle, ...]
    keepers: tuple[tuple[Optimizer, _Keeper], ...] = ()
    follows: Mapping[str, str] = field(default_factory=dict)

    def remove(self) -> None:
        """Let the weights go: the next update may change them again."""
        for handle in self.handles:
            handle.remove()

    def replace(self, masks: Masks) -> None:
        """Hold other masks of the same parameters from now on, their target networks' too.

        What is masked now becomes zero at once, in weights, targets and moments; what no longer is starts at zero.

        Args:
            masks: Parameter name → bool mask, True = keep, for every parameter that is held.

        Raises:
            RemovalError: A mask is missing, too many, or does not fit. Then nothing has changed.
        """
        known = {name: factor for _, keeper in self.keepers for name, factor in keeper.factors.items()}
        missing = sorted(name for name in known if self.follows.get(name, name) not in masks)
        if missing:
            raise RemovalError(f"There is no mask for {missing}, which are held. Give a mask for each.")
        _check(known, masks)
        for optimizer, keeper in self.keepers:
            for name, factor in keeper.factors.items():
                factor.copy_(masks[self.follows.get(name, name)])
            keeper.enforce(optimizer)


def attach(module: nn.Module, masks: Masks, *, optimizers: Iterable[Optimizer] = ()) -> Held:
    """Hold masks in every optimizer that trains a part of ``module``, such as a live SB3 model's ``policy``.

    Target networks (``q_net_target`` of ``q_net`` and the like) are masked once, together with the weights and
    moments: a target that is averaged or copied from masked weights stays masked. Parameters, their order and their
    names stay as they are.

    Args:
        module: The live networks, whose parameters have the names of the masks.
        masks: Parameter name → bool mask, True = keep; those of target networks may be left out.
        optimizers: The optimizers that train it; by default those that are attributes of the module or of a part of
            it, where Stable-Baselines3 keeps them.

    Raises:
        RemovalError: A mask does not fit its parameter, or a target's mask differs from the one that it follows.
        LearnError: No optimizer trains a masked parameter.
    """
    # One parameter has several names where actor and critic share a features extractor.
    parameters = dict(module.named_parameters(remove_duplicate=False))
    aliases: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        aliases.setdefault(id(parameter), []).append(name)
    _check(parameters, masks)
    followers: dict[str, Tensor] = {name: mask for name, mask in masks.items() if _is_target(name)}
    follows: dict[str, str] = {}
    for name in masks.keys() - followers.keys():
        for target in filter(parameters.__contains__, map(_target_of, aliases[id(parameters[name])])):
            _check(parameters, {target: masks[name]})
            follows[target] = name
            if not torch.equal(followers.setdefault(target, masks[name]), masks[name]):
                raise RemovalError(
                    f"The mask of {target!r} differs from that of {name!r}, which it follows. Leave it out."
                )
    found = list(dict.fromkeys(optimizers)) or list(dict.fromkeys(optimizers_of(module)))
    trained = [{id(parameter) for parameter in _trained_by(optimizer)} for optimizer in found]
    missing = [n for n in masks if n not in followers and not any(id(parameters[n]) in ids for ids in trained)]
    if missing:
        raise _untrained(missing, "any optimizer of the module")
    held: list[Held] = []
    for optimizer, ids in zip(found, trained, strict=True):
        own = {n: m for n, m in masks.items() if n not in followers and id(parameters[n]) in ids}
        if own:
            held.append(hold(optimizer, parameters, {**own, **followers}))
    return Held(tuple(h for one in held for h in one.handles), tuple(k for one in held for k in one.keepers), follows)


def hold(optimizer: Optimizer, parameters: Mapping[str, Tensor], masks: Masks) -> Held:
    """Keep masked weights and their moments at exactly zero after every step of ``optimizer``.

    Weights and moments are multiplied by the mask at once, since momentum alone would revive them. From then on it is
    enough to mask the gradient before each step, where the optimizer is one of ``ELEMENTWISE``; where it is not, and
    whenever someone else wrote into a weight or a moment (as ``load_state_dict`` does), all are multiplied again
    after the step. A clip of the gradient's norm that comes before the step still counts masked gradients. Within a
    step on the CPU masked second moments are ``FLOOR`` and not zero, which changes no weight; hooks that are registered
    later see zeros.

    Args:
        optimizer: The live optimizer.
        parameters: Parameter name → the live parameter.
        masks: Parameter name → bool mask, True = keep. Those of target networks are applied, but not held: targets
            follow.

    Raises:
        RemovalError: A mask does not fit its parameter.
        LearnError: The optimizer does not train a masked parameter.

    >>> network = nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(network.parameters())
    >>> held = hold(optimizer, dict(network.named_parameters()), {"weight": torch.tensor([[True, False]])})
    >>> network(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> (network.weight != 0).tolist()
    [[True, False]]
    """
    _check(parameters, masks)
    trained = {id(parameter) for parameter in _trained_by(optimizer)}
    missing = [name for name in masks if id(parameters[name]) not in trained and not _is_target(name)]
    if missing:
        raise _untrained(missing, "this optimizer")
    factors = {name: mask.to(parameters[name], copy=True) for name, mask in masks.items()}
    pairs = [(parameters[name], factor) for name, factor in factors.items()]
    keeper = _Keeper(
        [pair for pair in pairs if id(pair[0]) in trained],
        [pair for pair in pairs if id(pair[0]) not in trained],
        factors,
    )
    keeper.enforce(optimizer)
    before = optimizer.register_step_pre_hook(keeper.before)
    return Held((before, optimizer.register_step_post_hook(keeper.after)), ((optimizer, keeper),))


def is_held(optimizer: Optimizer) -> bool:
    """Say whether masks are held in an optimizer."""
    hooks = optimizer._optimizer_step_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), _Keeper) for hook in hooks)


def apply(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the tensors with masked entries set to zero."""
    return {name: tensor * masks[name] if name in masks else tensor for name, tensor in tensors.items()}


class _Keeper:
    """What runs before and after each step of one optimizer. All of it counts: a step may take 0.3 ms in all."""

    def __init__(
        self, held: list[tuple[Tensor, Tensor]], followers: list[tuple[Tensor, Tensor]], factors: dict[str, Tensor]
    ) -> None:
        self.held = held
        self.followers = followers
        self.factors = factors  # by name; the same tensors as in the pairs
        self.known: list[Tensor] = []  # weights and moments that were masked
        self.versions: list[int] = []
        self.state: list[Any] = []  # what the optimizer keeps for the weights; held on to, so that no id is used again
        self.ids: list[int] = []
        self.written = False
        self.floors: list[tuple[Tensor, str, Tensor, Tensor]] = []  # weight, key, moment, what is added before a step
        self.raised: list[tuple[Tensor, Tensor]] = []  # moment and its mask, which brings it down again

    def before(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        # A closure computes the gradient anew within the step.
        closure = len(arguments) > 1 or bool(options)
        self.written = closure or type(optimizer) not in ELEMENTWISE or self.versions != _versions(self.known)
        _each(torch._foreach_mul_, [(p.grad, factor) for p, factor in self.held if p.grad is not None])
        state = optimizer.state
        # Moments that were put aside are no longer ours to write to.
        _each(
            torch._foreach_add_,
            [(m, floor) for p, key, m, floor in self.floors if state.get(p, _NOTHING).get(key) is m],
        )

    def after(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        # The first step makes the moments, and load_state_dict puts others in their place.
        if self.written or not self.same(optimizer):
            self.enforce(optimizer)
        else:
            _each(torch._foreach_mul_, self.raised)
            self.versions = _versions(self.known)

    def same(self, optimizer: Optimizer) -> bool:
        """Say whether the optimizer still keeps the very moments that were masked."""
        return list(map(id, self.kept(optimizer))) == self.ids

    def kept(self, optimizer: Optimizer) -> list[Any]:
        """Return what the optimizer keeps for the held weights, moments and counters alike."""
        found = optimizer.state
        return [value for parameter, _ in self.held for value in found.get(parameter, _NOTHING).values()]

    @torch.no_grad()
    def enforce(self, optimizer: Optimizer) -> None:
        """Multiply weights, moments and what follows them by their masks."""
        pairs: list[tuple[Tensor, Tensor]] = []
        self.floors, self.raised = [], []
        for parameter, factor in self.held:
            pairs.append((parameter, factor))
            for key, value in optimizer.state[parameter].items() if parameter in optimizer.state else ():
                if isinstance(value, Tensor) and value.shape == parameter.shape and key != "step":
                    pairs.append((value, factor))
                    self._raise(optimizer, parameter, key, factor)
        _each(torch._foreach_mul_, pairs + self.followers)
        self.known = [tensor for tensor, _ in pairs]
        self.versions = _versions(self.known)
        self.state = self.kept(optimizer)
        self.ids = list(map(id, self.state))

    def _raise(self, optimizer: Optimizer, weight: Tensor, key: str, factor: Tensor) -> None:
        if type(optimizer) not in ELEMENTWISE or optimizer.defaults.get("fused") or not _in_mkl(weight):
            return
        moment = optimizer.state[weight][key]
        if key in ROOTED:
            self.floors.append((weight, key, moment, (1.0 - factor) * FLOOR))
        if key in ROOTED or key == "max_exp_avg_sq":
            self.raised.append((moment, factor))


def _each(change: Callable[[list[Tensor], list[Tensor]], Any], pairs: list[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        change([tensor for tensor, _ in pairs], [other for _, other in pairs])


def _in_mkl(tensor: Tensor) -> bool:
    known = tensor.dtype in (torch.float32, torch.float64)
    return MKL and known and tensor.device.type == "cpu" and tensor.numel() >= RAISED


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return list(map(_VERSION, tensors))


def _check(parameters: Mapping[str, Tensor], masks: Masks) -> None:
    for name, mask in masks.items():
        if name not in parameters:
            raise RemovalError(
                f"There is a mask for {name!r}, which is no parameter. Name one of: {sorted(parameters)}."
            )
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise RemovalError(
                f"Parameter {name!r} needs a bool mask of shape {tuple(parameters[name].shape)}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}."
            )


def _untrained(names: list[str], where: str) -> LearnError:
    return LearnError(
        f"Masked parameters {names} are not trained by {where}, so nothing would hold them at zero. "
        "Pass the optimizers that train them."
    )


def _trained_by(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def optimizers_of(module: nn.Module) -> Iterator[Optimizer]:
    """Yield the optimizers that are attributes of a module or of a part of it."""
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Optimizer))


def _target_of(name: str) -> str:
    network, dot, rest = name.partition(".")
    return f"{network}_target{dot}{rest}"


def _is_target(name: str) -> bool:
    return name.partition(".")[0].endswith("_target")
