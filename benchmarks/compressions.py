"""Compress the RL Zoo's trained agents in several ways and print the table of ``docs/compressions.md``.

    python benchmarks/compressions.py --agents FOLDER --out runs/compressions

The folder holds agents of DLR-RM/rl-trained-agents in their own layout. Each result is one JSON file in the output
folder; one that is there already is not computed again, remove it to do so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import prunerl
from prunerl.compress import CompressResult, Row, compress
from prunerl.errors import BudgetError
from prunerl.files import write_atomically

AGENTS = (
    ("ppo/CartPole-v1", "CartPole-v1"),
    ("dqn/CartPole-v1", "CartPole-v1"),
    ("dqn/Acrobot-v1", "Acrobot-v1"),
    ("ppo/LunarLander-v2", "LunarLander-v3"),
    ("dqn/LunarLander-v2", "LunarLander-v3"),
    ("ppo/Pendulum-v1", "Pendulum-v1"),
    ("sac/Pendulum-v1", "Pendulum-v1"),
    ("ppo/Hopper-v3", "Hopper-v5"),
    ("sac/HalfCheetah-v3", "HalfCheetah-v5"),
)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
    "share 4 bits": {"share": 4},
    "low rank 0.5": {"low_rank": 0.5},
    "low rank 0.5, int4": {"low_rank": 0.5, "quantize": "int4"},
    "low rank 0.5, share 4 bits": {"low_rank": 0.5, "share": 4},
}
HEADER = (
    "agent", "way", "repaired", "kept", "parameters", "bytes", "of the reference's", "return", "reference's",
    "95 % interval of the difference", "episodes", "not worse", "seconds",
)  # fmt: skip


def main() -> None:
    """Compute what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=Path, required=True, help="folder of the Zoo's trained agents")
    parser.add_argument("--out", type=Path, default=Path("runs/compressions"), help="folder of the results")
    parser.add_argument("--only", default="", help="only agents whose name contains this")
    parser.add_argument("--episodes", type=int, default=None, help="by default as many as the spread of returns needs")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER), flush=True)
    for name, env in AGENTS:
        for way in WAYS if given.only in name else ():
            slug = f"{name}-{way}-seed{given.seed}".replace("/", "-").replace(" ", "-").replace(",", "")
            told = measured(given, name, env, way, given.out / f"{slug}.json")
            print("| " + " | ".join([name, way, *told]) + " |", flush=True)


def measured(given: argparse.Namespace, name: str, env: str, way: str, path: Path) -> list[str]:
    """Return the cells of one row, computed or as they were written before."""
    if path.is_file():
        known: list[str] = json.loads(path.read_text())
        return known
    algorithm, trained_in = name.split("/")
    agent = prunerl.load(given.agents / algorithm / f"{trained_in}_1" / f"{trained_in}.zip", env=env)
    try:
        told = cells(compress(agent, **WAYS[way], episodes=given.episodes, seed=given.seed))
    except BudgetError as error:
        told = [str(error), *[""] * (len(HEADER) - 3)]
    write_atomically(path, json.dumps(told))
    return told


def cells(made: CompressResult) -> list[str]:
    """Return what a result says, without the agent and the way."""
    reference, row = made.rows[0], made.rows[-1]
    repaired = ", ".join(step.name for step in made.stages if len(step.stages) > 1)
    kept = ", ".join(step.name for step in made.stages if step.kept)
    low, high = row.verdict.interval
    return [
        repaired or "–",
        kept or "nothing",
        f"{row.parameters:,}",
        f"{row.bytes:,}",
        f"{row.bytes / reference.bytes:.3f}",
        f"{_mean(row):.4g}",
        f"{_mean(reference):.4g}",
        f"[{low:+.3f}, {high:+.3f}]",
        str(len(row.verdict.pruned)),
        "yes" if row.verdict.satisfied else "no",
        f"{made.seconds:.0f}",
    ]


def _mean(row: Row) -> float:
    return float(np.mean(row.verdict.pruned))


if __name__ == "__main__":
    main()
