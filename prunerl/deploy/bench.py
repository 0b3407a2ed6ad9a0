"""Time one decision in every runtime that is installed here, side by side, on states that the agent visits."""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.runtimes import RUNTIMES, Decide, Scene, Unavailable
from prunerl.errors import BudgetError, PruneError

BLOCK = 50e-6
"""Seconds: decisions are timed in blocks of about that, as the clock itself takes some 50 ns."""
WARM_UP = 0.1
"""Share of the blocks that is not counted."""
OBSERVATIONS = 64


@dataclass(frozen=True)
class Timing:
    """One runtime.

    Attributes:
        name: As the table has it.
        latency: 5 %, 50 % and 95 % quantile of one decision in microseconds; None where it was not timed.
        differs: Largest absolute difference between its actions and those of PyTorch; of choices, the share that
            differs.
        why: Why it was not timed.
    """

    name: str
    latency: tuple[float, float, float] | None = None
    differs: float = 0.0
    why: str = ""


@dataclass(frozen=True, eq=False)
class Bench:
    """What was timed, on what.

    Attributes:
        timings: In the order of the table, the first one that the others are compared with.
        observations: How many states were decided about, again and again.
        blocks: Blocks of decisions that count, of each runtime.
        discrete: Whether actions are choices.
    """

    timings: tuple[Timing, ...]
    observations: int
    blocks: int
    discrete: bool


def bench(
    agent: Any,
    *,
    blocks: int = 300,
    seed: int = 0,
    runtimes: Mapping[str, Callable[[Scene], tuple[Decide, Sequence[Any]]]] = RUNTIMES,
) -> Bench:
    """Time single decisions of an agent, from NumPy array to NumPy action, in each runtime.

    The runtimes take turns, a block of decisions each, so that what else the machine does meets them all alike.

    Args:
        agent: Anything with a ``policy`` and an ``env``.
        blocks: Of decisions, for each runtime.
        seed: Of the episode whose states are decided about.
        runtimes: By name; each makes its function of one observation.

    Raises:
        BudgetError: There are too few blocks for quantiles.
        LowerError: The policy has no program.
        EnvironmentFailure: The environment cannot be made.
    """
    if blocks < 20:
        raise BudgetError(f"blocks must be at least 20 for quantiles of 5 and 95 %, got {blocks}.")
    from prunerl.deploy.lower import lower
    from prunerl.deploy.passes import simplify

    raw, packed = visited(agent, OBSERVATIONS, seed=seed)
    program = simplify(lower(agent.policy, getattr(agent, "codings", {}), dtype=str(packed[0].dtype)))
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        scene = Scene(agent, program, raw, packed, Path(folder))
        ready: dict[str, tuple[Decide, Sequence[Any]]] = {}
        differs: dict[str, float] = {}
        refused: dict[str, str] = {}
        expected = _actions(*RUNTIMES["PyTorch, eager"](scene))
        for name, make in runtimes.items():
            try:
                ready[name] = make(scene)
                differs[name] = difference(expected, _actions(*ready[name]))
            except (ImportError, Unavailable, PruneError) as error:
                ready.pop(name, None)
                refused[name] = _reason(error)
        times = _interleaved(ready, blocks)
    timings = tuple(
        Timing(name, _quantiles(times[name]), differs[name]) if name in times else Timing(name, why=refused[name])
        for name in runtimes
    )
    return Bench(timings, len(packed), blocks, agent.policy.head.kind != "gaussian")


def visited(agent: Any, count: int, *, seed: int = 0) -> tuple[list[Any], list[NDArray[Any]]]:
    """Return observations that an agent visits from the start of an episode on, raw and each as one array."""
    from prunerl import environments, heads

    env = environments.make(agent.env)
    raw: list[Any] = []
    packed: list[NDArray[Any]] = []
    memory, over = heads.empty_memory(agent.policy, 1), True
    while len(raw) < count:
        if over:
            current, _ = env.reset(seed=seed + len(raw))
            memory = heads.empty_memory(agent.policy, 1)
        raw.append(current)
        packed.append(environments.pack(env.observation_space, current))
        masks = env.get_wrapper_attr("action_masks")() if agent.policy.masked else None
        allowed = None if masks is None else np.asarray(masks, dtype=bool)[None]
        actions, memory = heads.step(agent.policy, packed[-1][None], memory, allowed)
        current, _, terminated, truncated, _ = env.step(actions[0])
        over = bool(terminated or truncated)
    env.close()
    return raw, packed


def difference(expected: Sequence[Any], got: Sequence[Any]) -> float:
    """Return the largest absolute difference of actions; of choices the share that differs.

    >>> difference([np.int64(1), np.int64(0)], [np.int64(1), np.int64(2)])
    0.5
    """
    pairs = [(np.asarray(e).reshape(-1), np.asarray(g).reshape(-1)) for e, g in zip(expected, got, strict=True)]
    if np.issubdtype(pairs[0][0].dtype, np.integer):
        return float(np.mean([not np.array_equal(e, g) for e, g in pairs]))
    return float(max(np.max(np.abs(e - g)) for e, g in pairs))


def _actions(decide: Decide, observations: Sequence[Any]) -> list[Any]:
    return [np.array(decide(observation)) for observation in observations]


def _interleaved(ready: Mapping[str, tuple[Decide, Sequence[Any]]], blocks: int) -> dict[str, list[float]]:
    """Return seconds per decision of each runtime's blocks, those for warming up left out."""
    sizes = {name: _block_size(*each) for name, each in ready.items()}
    times: dict[str, list[float]] = {name: [] for name in ready}
    warm = math.ceil(WARM_UP * blocks)
    for block in range(warm + blocks):
        for name, (decide, observations) in ready.items():
            taken = _time(decide, observations, sizes[name])
            if block >= warm:
                times[name].append(taken)
    return times


def _block_size(decide: Decide, observations: Sequence[Any]) -> int:
    single = min(_time(decide, observations, 20) for _ in range(5))
    return max(1, round(BLOCK / single))


def _time(decide: Decide, observations: Sequence[Any], count: int) -> float:
    """Return seconds per decision, over a number of decisions in a row.

    One more goes before them: it brings back into the caches what the runtimes before this one put out of them.
    """
    batch = [observations[i % len(observations)] for i in range(count)]
    decide(batch[-1])
    start = time.perf_counter()
    for observation in batch:
        decide(observation)
    return (time.perf_counter() - start) / count


def _quantiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = np.quantile(seconds, [0.05, 0.5, 0.95]) * 1e6
    return float(low), float(median), float(high)


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"not installed ({error.name or error})"
    return " ".join(str(error).split())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch use one thread, as all the others do, and no garbage be collected while time is taken."""
    import torch

    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
