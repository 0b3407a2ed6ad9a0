"""Play episodes with anything that can act, in this process, and keep what was decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl import environments, heads
from prunerl.deploy.program import Program
from prunerl.errors import EnvironmentFailure
from prunerl.types import EnvSpec, Policy


@dataclass(frozen=True)
class Player:
    """What can act in an environment.

    Attributes:
        act: From observations, shape (batch, *observation), the memory and the mask of allowed actions or None, to the
            actions, shape (batch, *action), and the next memory.
        start: Makes the memory of one environment at the start of an episode.
    """

    act: Callable[[NDArray[Any], Any, NDArray[np.bool_] | None], tuple[NDArray[Any], Any]]
    start: Callable[[], Any] = dict


@dataclass(frozen=True, eq=False)
class Visit:
    """One decision: what was seen, with which memory, what was allowed, and what was done; batches of one."""

    observation: NDArray[Any]
    memory: Any
    allowed: NDArray[np.bool_] | None
    action: NDArray[Any]
    first: bool


@dataclass(frozen=True, eq=False)
class Played:
    """Episodes: the return and length of each, and the first of the decisions."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    visits: tuple[Visit, ...]


def agent_player(policy: Policy) -> Player:
    """Return the agent itself as a player."""
    return Player(
        lambda observations, memory, allowed: heads.step(policy, observations, memory, allowed),
        lambda: heads.empty_memory(policy, 1),
    )


def program_player(program: Program, act: Callable[..., tuple[NDArray[Any], Any]]) -> Player:
    """Return a player that begins episodes with the empty memory of a program."""
    shapes = {name: (1, *program.shapes[name]) for name in program.memory}
    return Player(act, lambda: {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def play(player: Player, env: EnvSpec, chosen: Sequence[int], *, masked: bool = False, keep: int = 0) -> Played:
    """Play one episode a seed in this process.

    Args:
        player: What acts.
        env: Where.
        chosen: Seed of each episode's reset.
        masked: The environment says which actions are allowed.
        keep: Decisions to keep, the first ones.

    Raises:
        EnvironmentFailure: The environment cannot be made, or fails.
    """
    made = environments.make(env)
    visits: list[Visit] = []
    returns, lengths = [], []
    try:
        for seed in chosen:
            total, length = _episode(player, made, env, seed, masked, visits, keep)
            returns.append(total)
            lengths.append(length)
    finally:
        made.close()
    return Played(tuple(returns), tuple(lengths), tuple(visits))


def _episode(
    player: Player, made: environments.Env, env: EnvSpec, seed: int, masked: bool, visits: list[Visit], keep: int
) -> tuple[float, int]:
    with _failing(env):
        observation, _ = made.reset(seed=seed)
    memory, total, length, over = player.start(), 0.0, 0, False
    while not over:
        packed = environments.pack(made.observation_space, observation)[None]
        allowed = np.ravel(made.get_wrapper_attr("action_masks")()).astype(bool)[None] if masked else None
        actions, following = player.act(packed, memory, allowed)
        if len(visits) < keep:
            visits.append(Visit(packed.copy(), memory, allowed, actions, length == 0))
        with _failing(env):
            observation, reward, terminated, truncated, _ = made.step(actions[0])
        memory, total, length, over = following, total + float(reward), length + 1, terminated or truncated
    return total, length


@contextmanager
def _failing(env: EnvSpec) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a third party's environment can raise anything
        raise EnvironmentFailure(
            f"Environment {env.id!r} failed while it was stepped: {type(error).__name__}: {error}. Mend it."
        ) from error
