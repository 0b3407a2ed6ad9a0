"""Measure dense gradients and hidden activity during the updates of someone else's training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunerl.errors import LearnError
from prunerl.train.networks import Layout

Watch = Callable[[Mapping[str, Tensor], float], None]


class Meter:
    """Sums of what was asked for, since it was asked.

    Its hooks on optimizers must be registered before those that mask gradients, so that they see dense ones. A matrix
    that several optimizers train is seen in the first one.
    """

    def __init__(self, network: nn.Module, layout: Layout, optimizers: list[Optimizer], watch: Watch | None) -> None:
        self.network = network
        self.layout = layout
        self.watch = watch
        self.wanted: frozenset[str] = frozenset()
        self.gradients: dict[str, Tensor] = {}
        self.activity: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.listeners: list[RemovableHandle] = []
        names = {id(network.get_parameter(n)): n for part in layout.parts.values() for n in part}
        self.matrices: dict[int, dict[str, nn.Parameter]] = {}
        self.optimizers = optimizers
        self.hooks: list[RemovableHandle] = []
        for optimizer in optimizers:
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            self.matrices[id(optimizer)] = {names.pop(id(p)): p for p in trained if id(p) in names}

    def attach(self) -> None:
        """See every update from now on."""
        self.hooks = [optimizer.register_step_pre_hook(self.before) for optimizer in self.optimizers]

    def ask(self, wanted: frozenset[str]) -> None:
        """Begin anew to measure ``gradients``, ``activity`` or both; what else is measured goes on."""
        self.clear(wanted)
        self.listen(wanted)

    def listen(self, wanted: frozenset[str]) -> None:
        """Go on measuring."""
        self.wanted |= wanted
        if "activity" in wanted:
            for layer in self.layout.hidden:
                module = self.network.get_submodule(layer.output)
                self.listeners.append(module.register_forward_hook(self.heard(layer.output)))

    def ready(self, wanted: frozenset[str]) -> bool:
        """Say whether everything has been seen of what was asked for."""
        gradients = sum(len(m) for m in self.matrices.values()) if "gradients" in wanted else 0
        units = len(self.layout.hidden) if "activity" in wanted else 0
        return len(self.gradients) >= gradients and len(self.activity) >= units

    def means(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the mean gradients and activities."""
        found = [{n: (s / self.counts[n]).cpu() for n, s in d.items()} for d in (self.gradients, self.activity)]
        return found[0], found[1]

    def clear(self, unwanted: frozenset[str]) -> None:
        """Stop measuring some of it, and forget that."""
        self.wanted -= unwanted
        if "activity" in unwanted:
            for listener in self.listeners:
                listener.remove()
            self.listeners, self.activity = [], {}
        if "gradients" in unwanted:
            self.gradients = {}
        seen = self.gradients.keys() | self.activity.keys()
        self.counts = {name: count for name, count in self.counts.items() if name in seen}

    def remove(self) -> None:
        """Take all hooks away."""
        self.clear(frozenset(("gradients", "activity")))
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    @torch.no_grad()
    def before(self, optimizer: Optimizer, *_: Any) -> None:
        """See the gradients of one update."""
        if self.watch is None and "gradients" not in self.wanted:
            return
        mine = self.matrices[id(optimizer)]
        without = [name for name, parameter in mine.items() if parameter.grad is None]
        if without:
            raise LearnError(
                f"Matrices {without} have no gradient, which this method needs. Train them, or choose another method."
            )
        gradients = {name: parameter.grad for name, parameter in mine.items() if parameter.grad is not None}
        if self.watch is not None:
            self.watch(gradients, float(optimizer.param_groups[0]["lr"]))
        if "gradients" in self.wanted:
            for name, gradient in gradients.items():
                self.add(self.gradients, name, gradient.clone())

    def heard(self, name: str) -> Callable[..., None]:
        """Return a hook that sees what a module puts out while an update is computed."""

        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            if torch.is_grad_enabled():
                self.add(self.activity, name, output.detach().abs().flatten(0, -2).mean(0))

        return hook

    def add(self, sums: dict[str, Tensor], name: str, value: Tensor) -> None:
        """Add one value."""
        sums[name] = sums[name] + value if name in sums else value
        self.counts[name] = self.counts.get(name, 0) + 1
