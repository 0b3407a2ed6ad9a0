"""A small report, built by hand: three rounds, of which the second is the result, and two baselines that fail."""

from __future__ import annotations

import pytest

from prunerl.types import EnvSpec, Report, Round, Row, Size, Stage, Verdict

DENSE_RETURNS = (500.0, 500.0, 480.0, 496.0)


def verdict(shift: float, *, satisfied: bool, first_seed: int = 0) -> Verdict:
    """Return a verdict whose pruned returns lie ``shift`` (normalised, with the random policy at 0) off the dense."""
    offset = shift * 494.0
    return Verdict(
        dense=DENSE_RETURNS,
        pruned=tuple(value + offset for value in DENSE_RETURNS),
        seeds=(first_seed, 4),
        random=0.0,
        normalized=1.0 + shift,
        iqm=1.0 + shift,
        interval=(shift - 0.01, shift + 0.02),
        confidence=0.95,
        tolerance=0.05,
        satisfied=satisfied,
    )


def row(name: str, size: Size, shift: float, *, satisfied: bool) -> Row:
    """Return a row of the comparison, judged on the seeds from 10000 on."""
    return Row(
        name=name,
        size=size,
        total_parameters=2 * size.parameters,
        bytes=1000 + 4 * size.parameters,
        latency=(10.1, 12.3, 15.0),
        verdict=verdict(shift, satisfied=satisfied, first_seed=10_000),
        seconds=1.25,
        env_steps=7000,
    )


def made_round(index: int, size: Size, shifts: tuple[float, float, float], kept: int, *, satisfied: bool) -> Round:
    """Return a round whose stages end ``shifts`` (normalised) off the dense agent; the last is the best."""
    stages = tuple(
        Stage(name, 0.1 + index, verdict(shift, satisfied=satisfied, first_seed=100), 0.5, 400)
        for name, shift in zip(("cut", "least_squares", "distill"), shifts, strict=True)
    )
    return Round(
        index=index,
        structure="units",
        criterion="taylor",
        target=0.5**index,
        size=size,
        kept={"policy_net.0": (kept, 64), "policy_net.2": (4, 64)},
        stages=stages,
        best=2,
        satisfied=satisfied,
        seconds=2.5,
        env_steps=1200,
    )


@pytest.fixture
def report() -> Report:
    """Return the report."""
    dense, middle = Size(4996, 4990, 4864, (64, 64)), Size(1000, 1000, 900, (16, 16))
    small, smallest = Size(62, 62, 48, (8, 4)), Size(14, 14, 10, (2, 2))
    return Report(
        agent="cartpole.zip",
        algorithm="ppo",
        env=EnvSpec("CartPole-v1", {"sutton_barto_reward": False}, (("wraps:Clip", {"high": [1.0, 2.0]}),)),
        settings={"tolerance": 0.05, "episodes": 4, "criterion": "taylor", "schedule": [0.5, 0.25], "seed": None},
        dense=row("dense", dense, 0.0, satisfied=True),
        pruned=row("pruned", small, -0.01, satisfied=True),
        baselines=(
            row("linear policy", Size(10, 10, 8, ()), -0.9, satisfied=False),
            row("same size, random weights", small, -0.3, satisfied=False),
        ),
        rounds=(
            made_round(1, middle, (-0.2, -0.1, 0.0), 16, satisfied=True),
            made_round(2, small, (-0.6, -0.2, -0.01), 8, satisfied=True),
            made_round(3, smallest, (-0.9, -0.8, -0.7), 2, satisfied=False),
        ),
        kept_whole={"action_net": "its outputs are the actions | choices"},
        notes=("The value network was cut to the same widths.",),
        versions={"prunerl": "0.1.0", "torch": "2.13"},
        command="prunerl prune cartpole.zip --env CartPole-v1",
        seconds=61.5,
        env_steps=25_000,
    )
