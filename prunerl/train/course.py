"""A method at work on live networks: what is held, when it changes, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunerl import masks
from prunerl.errors import BudgetError, LearnError
from prunerl.train import distributions
from prunerl.train.meter import Meter
from prunerl.train.method import Change, Method, Sight
from prunerl.train.methods.redo import dormant
from prunerl.train.networks import Layout, parameters_of

TAU = 0.025
"""Share of the layer's mean activation up to which a unit counts as dormant in what is logged (Sokar et al. 2023)."""
LOG_EVERY = 1000
"""Steps, at least, from one log of dormant units to the next."""
_COUNTS = {"step": 0.0, "mu_product": 1.0}
"""What optimizers correct the bias of moments by → its value before the first update."""
_COURSES = "prunerl_courses"
"""Attribute of an optimizer: the courses whose masks it keeps."""
LET_GO = (
    "The masks of this callback were let go: another callback on the same model, or end(), came after it. "
    "Give learn() one callback that masks weights, and make a new one to mask them again."
)


@dataclass(frozen=True)
class Span:
    """When masks change: every so many steps from ``first`` on, and for the last time at ``last``."""

    first: int
    last: int
    every: int

    def following(self, step: int) -> int | None:
        """Return the next time after ``step``; None when it is over.

        >>> span = Span(20, 45, 10)
        >>> [span.following(step) for step in (0, 20, 29, 40, 45)]
        [20, 30, 30, 45, None]
        """
        if step >= self.last:
            return None
        if step < self.first:
            return self.first
        return min(self.first + ((step - self.first) // self.every + 1) * self.every, self.last)


class Course:
    """One method on one network, from :meth:`begin` or :meth:`resume` on.

    These end any other course of the same matrices in the same optimizers.
    """

    def __init__(
        self,
        method: Method,
        network: nn.Module,
        layout: Layout,
        span: Span,
        *,
        optimizers: Iterable[Optimizer] = (),
        targets: Iterable[nn.Module] = (),
    ) -> None:
        self.method = method
        self.network = network
        self.span = span
        ends = layout.last if method.dense_last else frozenset[str]()
        self.parts = {part: tuple(n for n in names if n not in ends) for part, names in layout.parts.items()}
        self.layout = Layout(self.parts, layout.last, layout.hidden)
        self.parameters = parameters_of(network)
        self.targets = [dict(target.named_parameters()) for target in targets]
        self.optimizers = list(dict.fromkeys(optimizers)) or list(dict.fromkeys(masks.optimizers_of(network)))
        self.kept = self._kept()
        self.generator = torch.Generator().manual_seed(method.seed)
        self.masks: dict[str, Tensor] = {
            n: torch.ones(self.parameters[n].shape, dtype=torch.bool) for names in self.parts.values() for n in names
        }
        self.memory: dict[str, Tensor] = {}
        self.due: int | None = None
        self.log_at = 0
        watch = self._watch if "updates" in method.needs else None
        self.needed = method.needs & {"gradients", "activity"}
        self.asked = False
        self.meter = Meter(network, self.layout, self.optimizers, watch)
        self.held: masks.Held | None = None
        self.handles: list[RemovableHandle] = []

    def begin(self) -> dict[str, float]:
        """Hold the first masks, and return what is to be logged."""
        self.masks = dict(self.method.first(self.sight(0)))
        before = self.span.first - 1
        self.due = self.span.following(before if self.method.at_once else self.span.first)
        self.log_at = self.span.first
        self._hold()
        return self._figures(self.masks)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Hold what was held when ``state`` was taken.

        Raises:
            LearnError: That was another network, or nothing was held any more.
        """
        if not state["held"]:
            raise LearnError(LET_GO)
        self._check_same(state["masks"])
        self.masks, self.memory = dict(state["masks"]), dict(state["memory"])
        self.due, self.log_at, self.asked = state["due"], state["log_at"], state["asked"]
        self.generator.set_state(state["generator"])
        self._hold()
        self.meter.gradients, self.meter.activity = dict(state["gradients"]), dict(state["activity"])
        self.meter.counts = dict(state["counts"])
        self.meter.listen(state["wanted"])

    def state(self) -> dict[str, Any]:
        """Return all that :meth:`resume` needs; what changes later is copied."""
        copied = {n: t.clone() for n, t in self.memory.items()}
        meter = self.meter
        return {
            "held": self.held is not None,
            "masks": dict(self.masks),
            "memory": copied,
            "due": self.due,
            "log_at": self.log_at,
            "asked": self.asked,
            "generator": self.generator.get_state(),
            "gradients": dict(meter.gradients),
            "activity": dict(meter.activity),
            "counts": dict(meter.counts),
            "wanted": meter.wanted,
        }

    def end(self) -> None:
        """Let the weights go; nothing changes masks any more."""
        self.meter.remove()
        for handle in self.handles:
            handle.remove()
        if self.held is not None:
            self.held.remove()
        self.held = None
        for optimizer in self.optimizers:
            vars(optimizer)[_COURSES] = tuple(c for c in courses(optimizer) if c is not self)

    def at(self, step: int, *, last: bool = False) -> dict[str, float]:
        """Change the masks if it is time and everything needed has been measured.

        Args:
            step: Steps so far.
            last: No more updates follow, so nothing can be measured any more.

        Returns:
            What is to be logged, empty when nothing is.
        """
        figures: dict[str, float] = {}
        if self.held is None:
            return figures
        if self.due is not None and step >= self.due and self._measured(last=last):
            figures = self._next(step)
        if step >= self.log_at:
            figures = self._log(step) | figures
        return figures

    def _measured(self, *, last: bool) -> bool:
        """Say whether all that the method needs was measured since it was due; begin to, where it was not."""
        if not self.needed:
            return True
        if not self.asked and not last:
            self.meter.ask(self.needed)
            self.asked = True
            return False
        return self.asked and self.meter.ready(self.needed)

    def _next(self, step: int) -> dict[str, float]:
        gradients, activity = self.meter.means()
        own = activity if "activity" in self.needed else {}
        before, self.due = self.masks, self.span.following(step)
        change = self.method.change(self.sight(step, gradients, own))
        self.meter.clear(self.needed)
        self.asked = False
        figures = self._dormant(step, own) if own and step >= self.log_at else {}
        if change.masks is before and not change.values:
            return figures and {**self._figures(before), **figures}
        self._change(change)
        return self._figures(before) | figures

    def _log(self, step: int) -> dict[str, float]:
        """Measure how many units are dormant from now on, or return it when it has been measured."""
        wanted = frozenset({"activity"}) if self.layout.hidden else frozenset[str]()
        if wanted and wanted <= self.needed and self.asked:
            return {}  # the method measures it, and it is logged from that
        if not wanted <= self.meter.wanted:
            self.meter.ask(wanted)
            return {}
        if not self.meter.ready(wanted):
            return {}
        activity = self.meter.means()[1]
        self.meter.clear(wanted)
        return self._dormant(step, activity) | self._figures(self.masks)

    def _dormant(self, step: int, activity: Mapping[str, Tensor]) -> dict[str, float]:
        self.log_at = step + max(self.method.every, LOG_EVERY)
        silent = [dormant(mean, TAU) for mean in activity.values()]
        return {"dormant": sum(int(s.sum()) for s in silent) / sum(len(s) for s in silent)} if silent else {}

    def sight(
        self, step: int, gradients: Mapping[str, Tensor] | None = None, activity: Mapping[str, Tensor] | None = None
    ) -> Sight:
        """Return what the method sees at a step; what it measured is on the CPU, and so are the parameters."""
        return Sight(
            {n: p.detach().cpu() for n, p in self.parameters.items()},
            self.masks,
            self.parts,
            self.kept,
            min(step, self.span.last) - self.span.first,
            self.span.last - self.span.first,
            self.generator,
            gradients or {},
            activity or {},
            self.layout.hidden,
            self.memory,
        )

    def _kept(self) -> dict[str, int]:
        kept: dict[str, int] = {}
        for part, own in (("actor", self.method.actor_sparsity), ("critic", self.method.critic_sparsity)):
            if own is not None and not self.parts.get(part):
                raise BudgetError(
                    f"{part}_sparsity={own}, but no matrix that may be pruned is of a{'n' * (part == 'actor')} {part}: "
                    f"there are {', '.join(p for p, names in self.parts.items() if names) or 'none'} only. "
                    "Leave it out and set sparsity, or set dense_last=False where its only matrices make outputs."
                )
        if "activity" in self.method.needs and not self.layout.hidden:
            raise BudgetError(
                f"{type(self.method).__name__} looks at hidden units, and none are found: they are outputs of linear "
                "layers within a Sequential, behind an activation. Give the network such a layer."
            )
        for part, names in self.parts.items():
            shapes = {n: tuple(self.parameters[n].shape) for n in names}
            sparsity = self.method.sparsity_of(part)
            if names:
                kept |= distributions.kept(shapes, sparsity, self.method.distribution)
        if not kept:
            raise BudgetError(
                "All weight matrices make outputs, which are left dense, so there is nothing to prune. "
                "Give the network a hidden layer, or set dense_last=False."
            )
        return kept

    def _check_same(self, saved: Mapping[str, Tensor]) -> None:
        """Check that this is the network whose masks were saved: what is masked is exactly zero."""
        same = saved.keys() == self.masks.keys() and all(m.shape == self.masks[n].shape for n, m in saved.items())
        if not same or any(bool((self.parameters[n].detach().cpu()[~m] != 0).any()) for n, m in saved.items()):
            raise LearnError("This callback has pruned another model. Make a new one for this model.")

    def _hold(self) -> None:
        if self.held is not None:
            self.end()
        self.meter.attach()
        try:
            self.held = masks.attach(self.network, self.masks, optimizers=self.optimizers)
        except Exception:
            self.meter.remove()
            raise
        mine = {id(self.parameters[name]) for name in self.masks}
        for optimizer in self.optimizers:
            for other in courses(optimizer):
                if mine & {id(other.parameters[name]) for name in other.masks}:
                    other.end()
            vars(optimizer)[_COURSES] = (*courses(optimizer), self)
        self._mask_targets()

    @torch.no_grad()
    def _change(self, change: Change) -> None:
        for name, value in change.values.items():
            self.parameters[name].copy_(value)
        for name, where in change.forget.items():
            for optimizer in self.optimizers:
                for key, moment in optimizer.state.get(self.parameters[name], {}).items():
                    if isinstance(moment, Tensor) and moment.shape == where.shape and key not in _COUNTS:
                        moment.masked_fill_(where.to(moment.device), 0.0)
                    elif isinstance(moment, Tensor) and key in _COUNTS and bool(where.all()):
                        moment.fill_(_COUNTS[key])
        if self.held is not None and (change.values or change.masks is not self.masks):
            self.held.replace(change.masks)
        self.masks = change.masks if change.masks is self.masks else dict(change.masks)
        self._mask_targets()

    @torch.no_grad()
    def _mask_targets(self) -> None:
        for target in self.targets:
            for name, mask in self.masks.items():
                target[name].mul_(mask.to(target[name].device))

    def _watch(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        live = {name: self.parameters[name].detach() for name in gradients}
        span = self.span.last - self.span.first
        sight = Sight(live, self.masks, self.parts, self.kept, 0, span, self.generator, memory=self.memory)
        self.method.watch(sight, gradients, rate)

    def _figures(self, before: Mapping[str, Tensor]) -> dict[str, float]:
        figures = {"sparsity": sparsity(self.masks.values())}
        if all(self.parts.values()) and len(self.parts) > 1:
            figures |= {f"sparsity_{p}": sparsity(self.masks[n] for n in names) for p, names in self.parts.items()}
        if self.layout.hidden:
            figures["units"] = float(surviving(self.layout, self.masks))
        if before is not self.masks:
            figures["changes"] = float(sum(int((m != before[n]).sum()) for n, m in self.masks.items()))
        return figures


def last_rollout(model: OnPolicyAlgorithm) -> int:
    """Return the step at which the last rollout of this call of ``learn()`` begins."""
    length, begun = model.n_steps * model.n_envs, model.num_timesteps
    return begun + (model._total_timesteps - begun - 1) // length * length


def courses(optimizer: Optimizer) -> tuple[Course, ...]:
    """Return the courses whose masks an optimizer keeps now."""
    found: tuple[Course, ...] = vars(optimizer).get(_COURSES, ())
    return found


def sparsity(found: Iterable[Tensor]) -> float:
    """Return the share of entries that are masked.

    >>> sparsity([torch.tensor([True, False]), torch.tensor([False, False])])
    0.75
    """
    every = list(found)
    return 1.0 - sum(int(m.sum()) for m in every) / sum(m.numel() for m in every) if every else 0.0


def surviving(layout: Layout, held: Mapping[str, Tensor]) -> int:
    """Return how many hidden units still read something and are still read."""
    number = 0
    for layer in layout.hidden:
        width = len(held[layer.weight]) if layer.weight in held else None
        if width is None:
            continue
        alive = held[layer.weight].flatten(1).any(1)
        read = [held[r][:, :width].any(0) if r in held else torch.ones(width, dtype=torch.bool) for r in layer.readers]
        number += int((alive & torch.stack(read).any(0)).sum())
    return number
