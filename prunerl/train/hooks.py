"""Sparse training of any script that has an optimizer: two lines, after the optimizer is made.

from prunerl.train import Gradual, hook
hook(optimizer, q_network, Gradual(sparsity=0.95), updates=10_000, targets=[target_network])
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunerl.errors import BudgetError, LearnError
from prunerl.train import networks
from prunerl.train.callback import Sparse
from prunerl.train.course import Course, Span
from prunerl.train.method import Method
from prunerl.train.methods.rlx2 import RLx2


def hook(
    optimizer: Optimizer,
    network: nn.Module,
    method: Sparse | Method,
    *,
    updates: int,
    targets: nn.Module | Iterable[nn.Module] = (),
    last: Collection[str] | None = None,
) -> Course:
    """Mask the weights of ``network`` after every step of ``optimizer``, as a method says.

    The schedule counts updates: ``start`` and ``end`` are shares of them, and ``every`` is a number of them.

    Args:
        optimizer: The live optimizer.
        network: What it trains, or a part of it. Chains of layers should be ``Sequential``.
        method: Such as ``Gradual(sparsity=0.95)``.
        updates: How many updates the script makes in all.
        targets: Target networks with the parameter names of ``network``; masked when the masks change.
        last: Names of layers that are left dense; by default those that make outputs.

    Returns:
        The course; ``masks`` are those that are held, ``end()`` ends it.

    Raises:
        LearnError: The optimizer does not train the network, or the method needs a replay buffer.
        BudgetError: As in ``learn()``.

    >>> import torch
    >>> from prunerl.train import Static
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> course = hook(torch.optim.Adam(network.parameters()), network, Static(sparsity=0.5), updates=100)
    >>> {name: int(mask.sum()) for name, mask in course.masks.items()}
    {'0.weight': 20, '2.weight': 27}
    """
    chosen = method.method if isinstance(method, Sparse) else method
    if not isinstance(chosen, Method):
        raise LearnError(
            f"A hook takes what masks weights, such as Gradual(sparsity=0.95), and got {method!r}. Shrink and "
            "AdaptiveShrink work within Stable-Baselines3 alone."
        )
    several = not isinstance(targets, nn.Module) or isinstance(targets, nn.ModuleList)
    followers: list[nn.Module] = list(targets) if several else [targets]  # type: ignore[arg-type, list-item]
    if isinstance(chosen, RLx2):
        raise LearnError("RLx2 works on Stable-Baselines3's replay buffer. Use RigL, its topology evolution, here.")
    if updates < 1:
        raise BudgetError(f"A hook got updates={updates}. Set it to the number of updates that the script makes.")
    span = Span(round(chosen.start * updates), round(chosen.end * updates), chosen.every)
    if span.last <= span.first:
        raise BudgetError(f"The schedule ends before it starts: both are at update {span.first}. Set more updates.")
    layout = networks.of_network(network, last=frozenset(last) if last is not None else None)
    course = Course(chosen, network, layout, span, optimizers=[optimizer], targets=followers)
    for target in course.targets:
        for name, mask in course.masks.items():
            if name not in target or target[name].shape != mask.shape:
                found = tuple(target[name].shape) if name in target else "no such parameter"
                raise LearnError(
                    f"A target network has to have {name!r} of shape {tuple(mask.shape)}, and has {found}. "
                    "Give copies of the network."
                )
    course.begin()  # ends what an earlier hook holds of the same matrices
    done = 0

    def after(*_: Any) -> None:
        nonlocal done
        done += 1
        course.at(done)

    course.handles.append(optimizer.register_step_post_hook(after))
    return course
