"""RLx2: RigL, multi-step targets after a delay, and a replay buffer that forgets what is too old."""

from __future__ import annotations

from dataclasses import dataclass

from prunerl.errors import BudgetError
from prunerl.train.methods.evolve import RigL


@dataclass(frozen=True, kw_only=True)
class RLx2(RigL):
    """Evolve topologies as RigL does, learn from multi-step targets, and keep the replay buffer close to the policy.

    The last two need an off-policy algorithm with arrays as observations; the buffer's are in
    :mod:`prunerl.train.buffer`.

    Attributes:
        n_steps: Rewards summed in a target once ``delay`` steps have passed.
        delay: Steps of one-step targets.
        threshold: Half the mean squared distance of the oldest actions from the policy's, in actions scaled to
            [−1, 1], above which the oldest tenth is forgotten. 0 keeps all.
        check_every: Steps from one such check to the next.
        least: Transitions that are kept in any case.

    Reference: Tan et al. 2023, *RLx2: Training a sparse deep RL model from scratch*; defaults from the authors' code.
    """

    end: float = 1.0
    every: int = 10_000
    n_steps: int = 3
    delay: int = 300_000
    threshold: float = 0.2
    check_every: int = 10_000
    least: int = 100_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_steps < 1 or self.delay < 0 or self.check_every < 1 or self.least < 1 or self.threshold < 0.0:
            raise BudgetError(
                "RLx2 needs n_steps, check_every and least of 1 or more, and delay and threshold of 0 or more."
            )
