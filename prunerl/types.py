"""The nouns: frozen data that the stages of the loop pass on to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # PyTorch takes seconds to import, and these nouns only name its types
    from torch import Tensor, nn

Decision = Mapping[str, "Tensor"]
"""Group name → bool tensor of shape (units,), True = keep."""

Scores = Mapping[str, "Tensor"]
"""Group name → float tensor of shape (units,), high = keep."""

Masks = Mapping[str, "Tensor"]
"""Parameter name → bool tensor of the parameter's shape, True = keep."""

VERSION = "0.1.0"

Structure = Literal["units", "weights", "layers"]
FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Slice:
    """The part of one tensor that belongs to the units of a group.

    Attributes:
        tensor: Name of a parameter or buffer.
        dim: The dimension that is cut, or None when single entries of the flat tensor are meant.
        index: Shape (units, k): the k rows (or entries) along ``dim`` that each unit owns.
    """

    tensor: str
    dim: int | None
    index: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be removed one by one; what a unit owns lives and dies together."""

    name: str
    units: int
    slices: tuple[Slice, ...]
    structure: Structure = "units"

    def __str__(self) -> str:
        where = ", ".join(f"{s.tensor}[dim {s.dim}]" for s in self.slices)
        return f"{self.name}: {self.units} {self.structure} ({where})"


@dataclass(frozen=True)
class Tie:
    """One dimension of ``target`` that follows one dimension of ``source``.

    Target networks follow the online network, and the exploration noise of gSDE follows the last hidden layer. What
    the target has along its dimension beyond the source's length, such as a critic's actions after the features that
    it shares, is kept.

    Attributes:
        copies: The target is a copy of the source, as a target network is: it takes its values after a repair.
            False: only its shape follows.
    """

    source: str
    source_dim: int
    target: str
    target_dim: int
    copies: bool = True


@dataclass(frozen=True, eq=False)
class State:
    """All that surgery touches.

    Attributes:
        tensors: Every parameter and buffer of the agent's networks by name.
        moments: Parameter name → the optimizer's tensors for it (such as Adam's ``exp_avg``).
        masks: Single weights that are held at zero, for parameters that have any.
    """

    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)


@dataclass(frozen=True)
class EnvSpec:
    """How to make the environment: a Gymnasium id, its keyword arguments and wrappers (``module:Class``).

    ``frame_stack`` observations are stacked as Stable-Baselines3's ``VecFrameStack`` does; 1 stacks none.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    frame_stack: int = 1


@dataclass(frozen=True, eq=False)
class Normalizer:
    """Observation statistics: ``clip((obs − mean) / sqrt(var + epsilon), ±clip)``, shapes as the observation.

    Where ``where`` is given and False, an entry of the observation passes as it is.
    """

    mean: FloatArray
    var: FloatArray
    epsilon: float = 1e-8
    clip: float = 10.0
    where: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class Head:
    """What the output of a policy network means.

    Attributes:
        kind: ``categorical`` (logits, ``sizes`` of each choice), ``q_values``, ``bernoulli`` (logits) or
            ``gaussian`` (the mean of the action).
        sizes: Number of choices of each categorical part; empty otherwise.
        low, high: Bounds of the action, shape (actions,), for ``gaussian``.
        std: Standard deviation of the action, shape (actions,), for ``gaussian``.
        squashed: The mean passes a tanh before it is scaled to the bounds.
        shape: Shape of one action in the environment.
    """

    kind: Literal["categorical", "q_values", "bernoulli", "gaussian"]
    sizes: tuple[int, ...] = ()
    low: FloatArray | None = None
    high: FloatArray | None = None
    std: FloatArray | None = None
    squashed: bool = False
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Policy:
    """What is deployed: raw observation → normalizer → network → head → action.

    A raw observation is one array, see :func:`prunerl.environments.pack`: an environment's dict of arrays comes as one
    vector, which the network takes apart again.

    Attributes:
        network: Maps a batch of (normalised) observations, shape (batch, *observation), to the head's input, shape
            (batch, outputs). Its parameters carry the same names as in ``State.tensors``. A recurrent one maps
            sequences from an empty memory, (batch, time, *observation) → (batch, time, outputs), and its method
            ``step(observations, memory)`` takes (batch, *observation) and returns (output, next memory).
        head: What the output means.
        observation_shape: Shape of one packed observation.
        normalizer: Observation statistics.
        memory: Shape of each tensor of a recurrent network's memory for one environment, without the batch, which
            is dimension 1: (layers, batch, units) for an LSTM's two. Empty for other networks.
        masked: The environment says by ``action_masks()`` which actions are allowed.
    """

    network: nn.Module
    head: Head
    observation_shape: tuple[int, ...]
    normalizer: Normalizer | None = None
    memory: tuple[tuple[int, ...], ...] = ()
    masked: bool = False


@dataclass(frozen=True, eq=False)
class Critic:
    """A network that is needed to train on, but not to act.

    Attributes:
        name: Such as ``value`` or ``qf0``.
        network: Maps ``inputs(observations)`` to values; parameters named as in ``State.tensors``.
        inputs: From the policy network's inputs in visited states to those of this network.
        twins: Critics of equal ``twins`` keep equal widths, each its own best units.
        actions: How many of its inputs, the last ones, are an action within −1 and 1; 0 where it judges states alone.
    """

    name: str
    network: nn.Module
    inputs: Callable[[Tensor], Tensor]
    twins: str
    actions: int = 0


class Agent(Protocol):
    """The only bridge to an RL library. Implementations are immutable: each change gives another agent."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm, such as ``ppo``."""

    @property
    def env(self) -> EnvSpec:
        """The environment that the agent acts in."""

    @property
    def policy(self) -> Policy:
        """What is deployed: the network that acts, with its pre- and postprocessing."""

    @property
    def state(self) -> State:
        """Every parameter, buffer, optimizer moment and mask."""

    @property
    def ties(self) -> tuple[Tie, ...]:
        """What follows the policy's parameters when they are cut."""

    @property
    def critics(self) -> tuple[Critic, ...]:
        """The networks that are needed to train on but not to act, without targets."""

    @property
    def stacks(self) -> tuple[str, ...]:
        """Prefixes of the plain stacks of layers out of which :meth:`with_state` can leave a hidden layer."""

    @property
    def learns(self) -> bool:
        """Whether :meth:`learn` can train it on; False where only the user's own script can."""

    @property
    def suffix(self) -> str:
        """What the name of a saved file ends in, such as ``.zip``."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader of a report should know of how the agent was read."""

    def with_state(self, state: State) -> Agent:
        """Return the same agent with other tensors; widths and depth are read off their shapes."""

    def simplified(self) -> Agent:
        """Return an agent that acts the same by a smaller network, where its library can say so; else the agent itself.

        What such a step gives up is for training alone, such as the quantiles whose mean is acted by.
        """

    def learn(self, steps: int, *, seed: int) -> Agent:
        """Return the agent after ``steps`` more environment steps of its own training; masks hold.

        Raises:
            LearnError: The agent's library cannot train it on from here.
        """

    def save(self, path: str | Path) -> None:
        """Write a file that the agent's own library loads."""


@dataclass(frozen=True)
class Verdict:
    """Returns of the pruned and the dense agent on the same seeds, and what follows from them.

    Attributes:
        dense, pruned: Return of each episode, paired by seed.
        seeds: First seed and number of episodes.
        random: Mean return of the random policy: 0 on the normalised scale (the dense agent's mean is 1).
        normalized: Normalised mean return of the pruned agent.
        iqm: Normalised interquartile mean of the pruned agent.
        interval: Bootstrap interval of the mean paired difference, normalised.
        confidence: Level of the interval.
        tolerance: The pruned agent passes when ``interval[0] > -tolerance``.
        satisfied: Whether it passes.
    """

    dense: tuple[float, ...]
    pruned: tuple[float, ...]
    seeds: tuple[int, int]
    random: float
    normalized: float
    iqm: float
    interval: tuple[float, float]
    confidence: float
    tolerance: float
    satisfied: bool


@dataclass(frozen=True)
class Size:
    """Size of a policy: what is stored and what one decision costs.

    Attributes:
        parameters: Numbers stored for the network that acts.
        nonzeros: Those that are not zero.
        macs: Multiply–accumulates of one decision.
        units: Width of each hidden layer.
    """

    parameters: int
    nonzeros: int
    macs: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One judged version of a pruned agent within a round: as cut, or after one repair."""

    name: str
    divergence: float
    verdict: Verdict
    seconds: float
    env_steps: int


@dataclass(frozen=True)
class Round:
    """One pass of the loop: what was decided, what it left, and how each stage of its repair was judged."""

    index: int
    structure: Structure
    criterion: str
    target: float
    size: Size
    kept: Mapping[str, tuple[int, int]]
    stages: tuple[Stage, ...]
    best: int
    satisfied: bool
    seconds: float
    env_steps: int


@dataclass(frozen=True)
class Row:
    """One agent of the comparison table.

    Attributes:
        name: ``dense``, ``pruned`` or the name of a baseline.
        size: Size of the policy network.
        total_parameters: Parameters of the whole agent, critics and targets included.
        bytes: Size of the saved agent on disk.
        latency: 5 %, 50 % and 95 % quantile of one decision at batch 1, in microseconds.
        verdict: Judged on the confirmation seeds.
        seconds, env_steps: What it took to make it.
    """

    name: str
    size: Size
    total_parameters: int
    bytes: int
    latency: tuple[float, float, float]
    verdict: Verdict
    seconds: float
    env_steps: int


@dataclass(frozen=True)
class Report:
    """Everything that is needed to draw the table again. See ``docs/report.md`` for the file's schema."""

    agent: str
    algorithm: str
    env: EnvSpec
    settings: Mapping[str, Any]
    dense: Row
    pruned: Row
    baselines: tuple[Row, ...]
    rounds: tuple[Round, ...]
    kept_whole: Mapping[str, str]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    command: str
    seconds: float
    env_steps: int
