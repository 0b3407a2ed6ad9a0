"""A plain Stable-Baselines3 callback that runs any method within ``learn()``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from prunerl.errors import BudgetError, LearnError, LearnWarning
from prunerl.train import buffer, networks
from prunerl.train.course import LET_GO, Course, Span, last_rollout
from prunerl.train.method import Method
from prunerl.train.methods.rlx2 import RLx2
from prunerl.types import Masks

P = ParamSpec("P")
_LIVE = ("model", "locals", "globals", "parent", "course")


class Sparse(BaseCallback):
    """Mask weights while a model learns.

    Masks change between updates, at the start of a rollout, the first one at or after the time that the schedule
    names. ``learn()`` again with ``reset_num_timesteps=False`` goes on with the same masks and the schedule of the
    first call; with ``reset_num_timesteps=True`` the schedule begins anew. Another callback on the same model takes
    over: the masks of the first are let go.

    Args:
        method: What to do.

    Raises:
        LearnError: In ``learn()``: the callback has served another model, another one has taken over, or the model has
            no optimizer.
        BudgetError: In ``learn()``: the sparsity cannot be met, there is nothing to prune, or the schedule ends after
            the last rollout has begun. Off-policy, where that cannot be known before, a warning says so at the end.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.span: Span | None = None
        self.course: Course | None = None
        self.saved: dict[str, Any] | None = None

    @property
    def masks(self) -> Masks:
        """The masks that are held now; empty before ``learn()``."""
        return self.course.masks if self.course is not None else {}

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in _LIVE}
        return state | {"saved": self.course.state() if self.course is not None else self.saved}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {"locals": {}, "globals": {}, "parent": None, "course": None} | state

    def _on_training_start(self) -> None:
        if self.course is not None and self.course.network is not self.model.policy:
            raise LearnError("This callback has pruned another model. Make a new one for this model.")
        if self.model.num_timesteps == 0 or (self.course is None and self.saved is None):
            self._begin()
        elif self.course is None and self.saved is not None and self.span is not None:
            self.course = Course(self.method, self.model.policy, networks.of_model(self.model), self.span)
            self.course.resume(self.saved)
        if isinstance(self.method, RLx2):
            buffer.install(self.model)

    def _begin(self) -> None:
        begun, total = self.model.num_timesteps, self.model._total_timesteps
        method = self.method
        steps = total - begun
        span = Span(begun + round(method.start * steps), begun + round(method.end * steps), method.every)
        if span.last <= span.first:
            raise BudgetError(
                f"The schedule ends before it starts: both are at step {span.first} of {steps}. Train for more steps."
            )
        layout = networks.of_model(self.model)
        if isinstance(self.model, OnPolicyAlgorithm) and method.ramps:
            _check_rollouts(self.model, span)
        if isinstance(method, RLx2):
            buffer.check(self.model)
        course = Course(method, self.model.policy, layout, span)
        if method.needs or method.ramps:
            _check_updates(self.model, type(method).__name__, span)
        if self.course is not None:
            self.course.end()
        self.course, self.span = course, span
        self._record(course.begin())

    def _on_rollout_start(self) -> None:
        self._at()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        # Masks that only move would do so for nothing now; those of a sparsity that rises must get there.
        if self.span is None or not self.method.ramps or self.model.num_timesteps < self.span.last:
            return
        before = self.masks
        self._at(last=True)
        changed = sum(int((mask != before[name]).sum()) for name, mask in self.masks.items())
        if changed:
            warnings.warn(
                f"{type(self.method).__name__} changed {changed} weights after the last update: the schedule ended "
                "after the last rollout had begun. Set a smaller end, or shorter rollouts (train_freq).",
                LearnWarning,
                stacklevel=2,
            )

    def _at(self, *, last: bool = False) -> None:
        if self.course is None:
            return
        if self.course.held is None:
            raise LearnError(LET_GO)
        step = self.model.num_timesteps
        self._record(self.course.at(step, last=last))
        if isinstance(self.method, RLx2) and self.span is not None:
            buffer.adjust(self.model, self.method, step)

    def _record(self, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.logger.record(f"prune/{name}", value)


def runs(method: Callable[P, Method]) -> Callable[P, Sparse]:
    """Return a function that takes a method's settings and returns a callback."""

    @functools.wraps(method, updated=())
    def build(*args: P.args, **kwargs: P.kwargs) -> Sparse:
        if args:  # as where learn() is given the function and not what it returns
            name = method.__name__
            raise BudgetError(f"{name} takes its settings by name. Write {name}(sparsity=0.9), or {name}().")
        return Sparse(method(*args, **kwargs))

    return build


def _check_updates(model: Any, name: str, span: Span) -> None:
    """Refuse a method that goes by what is learnt where nothing is before its schedule ends."""
    if getattr(model, "gradient_steps", 1) == 0:
        raise LearnError(
            f"{name} goes by what is learnt, and the model makes no updates (gradient_steps=0). "
            "Set gradient_steps to 1 or more."
        )
    starts = getattr(model, "learning_starts", 0)
    if starts >= span.last:
        raise LearnError(
            f"{name} goes by what is learnt, but its schedule ends at step {span.last} and updates begin after step "
            f"{starts} (learning_starts). Train for more steps, or set a smaller learning_starts."
        )


def _check_rollouts(model: OnPolicyAlgorithm, span: Span) -> None:
    last, length = last_rollout(model), model.n_steps * model.n_envs
    if span.last > last:
        raise BudgetError(
            f"The schedule ends at step {span.last}, but the last rollout of {length} steps begins at step {last}, so "
            "the final masks would come after all training. Train for more steps, or set a smaller end."
        )
