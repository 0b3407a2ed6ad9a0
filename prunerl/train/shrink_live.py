"""A live model whose networks change their widths between two of its rollouts."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from prunerl import masks
from prunerl.errors import LearnError
from prunerl.trace import EXAMPLES, Trace, trace
from prunerl.train import shrink_networks
from prunerl.train.grow import grown
from prunerl.train.shrink_cut import Cut, difference, imitating, narrowed, outputs
from prunerl.train.shrink_depth import Shallow, forget, shallow
from prunerl.train.shrink_networks import Network, States

Widths = Mapping[str, tuple[int, ...]]
"""Name of a network → width of each of its hidden layers."""


@dataclass(frozen=True)
class Resized:
    """What one change of widths did.

    Attributes:
        step: Environment steps so far.
        widths: The widths from then on.
        parameters: Trained parameters from then on.
        differences: Name of a network → root mean square change of its outputs over their spread, after the repair.
        seconds: CPU time that the change took.
    """

    step: int
    widths: Widths
    parameters: int
    differences: Mapping[str, float]
    seconds: float


class Live:
    """A live model, the traces of its networks, and the states that it visited lately.

    Args:
        model: The live model.
        cut: How units are chosen, and how their loss is repaired.
        states: Visited states that are looked at.
        seed: Of what is drawn.

    Raises:
        LearnError: The model's networks cannot change their widths.
    """

    def __init__(self, model: Any, cut: Cut, *, states: int, seed: int) -> None:
        self.model, self.cut, self.count = model, cut, states
        self.networks = shrink_networks.networks(model)
        self.generator = torch.Generator().manual_seed(seed)
        self.recent: deque[Any] = deque()
        self.traces: dict[str, Trace] = {}
        self.began = time.process_time()
        self.seconds = 0.0

    def state(self) -> dict[str, Any]:
        """Return what :meth:`resume` needs to go on in another process."""
        spent = time.process_time() - self.began
        recent, drawn = list(self.recent), self.generator.get_state()
        return {"recent": recent, "generator": drawn, "seconds": self.seconds, "spent": spent}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.recent = deque(state["recent"])
        self.generator.set_state(state["generator"])
        self.seconds, self.began = state["seconds"], time.process_time() - state["spent"]

    @property
    def on_policy(self) -> bool:
        """Whether visited states are those of rollouts, and not of a replay buffer."""
        return hasattr(self.model, "rollout_buffer")

    def widths(self) -> dict[str, tuple[int, ...]]:
        """Return the present widths."""
        return {network.name: shrink_networks.widths(self.model.policy, network) for network in self.networks}

    def keep_rollout(self) -> None:
        """Remember the states of the rollout that just ended; the buffer is emptied before the next one."""
        if not self.on_policy:
            return
        buffer = self.model.rollout_buffer
        seen = buffer.observations
        named = seen if isinstance(buffer, DictRolloutBuffer) else {"": seen}
        self.recent.append({key: value.reshape(-1, *value.shape[2:]).copy() for key, value in named.items()})
        size = [len(next(iter(rollout.values()))) for rollout in self.recent]
        while sum(size[1:]) >= self.count:
            self.recent.popleft()
            size.pop(0)

    def ready(self) -> bool:
        """Tell whether states were visited that a change can look at, from the policy's own actions."""
        if self.on_policy:
            return bool(self.recent)
        buffer, starts = self.model.replay_buffer, getattr(self.model, "learning_starts", 0)
        return bool(self.model.num_timesteps > starts and buffer.size() > EXAMPLES)

    def check_free(self) -> None:
        """Check that no weight is masked.

        Raises:
            LearnError: Masks of the present shapes are held.
        """
        if any(masks.is_held(optimizer) for optimizer in masks.optimizers_of(self.model.policy)):
            raise LearnError(
                "Weights of this model are masked, and masks do not change their shapes with the layers. Give learn() "
                "either what masks weights or what shrinks. To shrink a masked model, let its masks go first: by "
                "callback.course.end(), or by saving it and loading it anew."
            )

    def shrink(self, targets: Widths) -> Resized:
        """Remove units so that each network has the widths that ``targets`` says, and repair what that loses.

        Where a network gets fewer widths than it has hidden layers, the layers behind go as a whole. The run is not
        disturbed otherwise: random streams, buffers, schedules and the entropy coefficient stay.

        Raises:
            LearnError: No state was visited yet, a layer cannot go, or weights are masked.
            BudgetError: A target is not between 1 and the present width.
        """
        self.check_free()
        begun, differences = time.process_time(), {}
        policy = self.model.policy
        with _own_random_streams(), torch.no_grad(), _evaluating(policy):
            states = self._visited()
            # All is computed before anything is written: a change that fails leaves the model as it is.
            inputs = {n.name: n.inputs(states).detach().float().cpu() for n in self.networks}
            smaller = []
            for network in self.networks:
                made, differences[network.name] = self._smaller(network, targets[network.name], inputs[network.name])
                smaller.append(made)
            for old, new in zip(self.networks, smaller, strict=True):
                if new.gone:
                    forget(policy, old, new.gone)
                    self.traces[new.network.name] = new.traced
                shrink_networks.write(self.model, new.network, new.state)
            self.networks = tuple(new.network for new in smaller)
        return self._changed(begun, differences)

    def _smaller(self, network: Network, target: Sequence[int], seen: Tensor) -> tuple[Shallow, float]:
        """Return a smaller network, and how far its outputs are from those of the present one."""
        before, traced = shrink_networks.read(self.model.policy, network), self._trace(network, seen)
        wanted = outputs(network, traced, before, seen)
        made = Shallow(network, traced, before, range(0))
        with torch.enable_grad():
            if len(target) < len(network.hidden):
                made = shallow(network, traced, before, len(target), seen, self.cut.ridge)
            rest = made.network, made.traced
            after = narrowed(*rest, made.state, target, seen, self.cut, generator=self.generator)
            if self.cut.distill and after is not before:
                after = imitating(*rest, after, wanted, seen, self.cut, generator=self.generator)
        moved = difference(wanted[0], outputs(*rest, after, seen)[0])
        return replace(made, state=after), moved

    def grow(self, targets: Widths) -> Resized:
        """Add units so that each network has the widths that ``targets`` says; no output changes.

        Raises:
            BudgetError: A target is below the present width.
            LearnError: Weights are masked.
        """
        self.check_free()
        begun, policy = time.process_time(), self.model.policy
        states = {n.name: shrink_networks.read(policy, n) for n in self.networks}
        changed = {n.name: grown(n, states[n.name], targets[n.name], generator=self.generator) for n in self.networks}
        for network in self.networks:
            shrink_networks.write(self.model, network, changed[network.name])
        return self._changed(begun, dict.fromkeys(changed, 0.0))

    def record(self) -> None:
        """Log widths, parameters and the share of the time so far that changes of widths took."""
        logger = self.model.logger
        for name, layers in self.widths().items():
            for i, units in enumerate(layers):
                logger.record(f"shrink/{name}_{i}", units)
        logger.record("shrink/parameters", shrink_networks.parameters(self.model.policy))
        logger.record("shrink/time_share", self.seconds / max(time.process_time() - self.began, 1e-9))

    def _changed(self, begun: float, differences: Mapping[str, float]) -> Resized:
        shrink_networks.say_widths(self.model, self.networks)
        seconds = time.process_time() - begun
        self.seconds += seconds
        for name, value in differences.items():
            self.model.logger.record(f"shrink/{name}_change", value)
        size = shrink_networks.parameters(self.model.policy)
        return Resized(self.model.num_timesteps, self.widths(), size, differences, seconds)

    def _trace(self, network: Network, inputs: Tensor) -> Trace:
        if network.name not in self.traces:
            self.traces[network.name] = trace(network.module, inputs)
        return self.traces[network.name]

    def _visited(self) -> States:
        model = self.model
        if not self.ready():
            raise LearnError("No state was visited yet, so units cannot be scored. Shrink after the first rollout.")
        if self.on_policy:
            whole = {k: np.concatenate([r[k] for r in self.recent])[-self.count :] for k in self.recent[0]}
            return States(obs_as_tensor(whole.get("", whole), model.device))
        data = model.replay_buffer.sample(
            min(self.count, model.replay_buffer.size()), env=model.get_vec_normalize_env()
        )
        discrete = hasattr(model.action_space, "n")
        return States(data.observations, None if discrete else data.actions.float())


@contextmanager
def _own_random_streams() -> Iterator[None]:
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


@contextmanager
def _evaluating(policy: Any) -> Iterator[None]:
    modes = [(part, part.training) for part in policy.modules()]  # targets are in another mode than what they follow
    policy.set_training_mode(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def everywhere(
    live: Live, actor: int | Sequence[int], critic: int | Sequence[int], depth: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the widths of all networks: one number is that of each hidden layer, or of the first ``depth``."""
    found = {}
    for network in live.networks:
        wanted = actor if network.role == "actor" else critic
        count = len(network.hidden) if depth is None else min(depth, len(network.hidden))
        found[network.name] = (wanted,) * count if isinstance(wanted, int) else tuple(wanted)
    return found
