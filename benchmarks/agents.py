"""Prune the RL Zoo's trained agents, each in a process of its own, and print the table of the README.

    python benchmarks/agents.py --agents FOLDER --out runs/benchmark

The folder holds agents of DLR-RM/rl-trained-agents in their own layout. A run that is there already is not repeated;
remove its folder to measure it again. The time is that of the whole process, from its start to its end, baselines
and report included, as a user waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

AGENTS = (
    # agent of the Zoo, environment of today, parameters and seconds of the prototype (100 lines: units by activation
    # variance times outgoing norm, distillation on visited states; one quiet core), None where there is none
    ("ppo/CartPole-v1", "CartPole-v1", 11, 26),
    ("dqn/CartPole-v1", "CartPole-v1", 15, 40),
    ("dqn/Acrobot-v1", "Acrobot-v1", 15, 37),
    ("dqn/MountainCar-v0", "MountainCar-v0", 36, 40),
    ("ppo/LunarLander-v2", "LunarLander-v3", 36, 53),
    ("dqn/LunarLander-v2", "LunarLander-v3", 7844, 90),
    ("ppo/Pendulum-v1", "Pendulum-v1", 23, 29),
    ("ppo/Hopper-v3", "Hopper-v5", 207, 129),
    ("qrdqn/CartPole-v1", "CartPole-v1", None, None),
    ("sac/Pendulum-v1", "Pendulum-v1", None, None),
    ("ddpg/Pendulum-v1", "Pendulum-v1", None, None),
    ("sac/HalfCheetah-v3", "HalfCheetah-v5", 2935, 65),
)
HEADER = (
    "agent", "run on", "dense", "pruned", "prototype", "widths", "normalised return", "95 % interval", "episodes",
    "passes", "linear policy", "same size, random weights", "seconds", "prototype's",
)  # fmt: skip


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", type=Path, required=True, help="folder of the Zoo's trained agents")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of the runs")
    parser.add_argument("--only", default="", help="only agents whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = []
    for name, env, parameters, seconds in AGENTS:
        if given.only in name:
            folder = given.out / f"{name.replace('/', '-')}-seed{given.seed}"
            report, taken = measure(given.agents, name, env, folder, given.seed)
            rows.append(row(name, env, report, taken, parameters, seconds))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


def measure(agents: Path, name: str, env: str, folder: Path, seed: int) -> tuple[dict[str, object], float]:
    """Return the report of one run and the seconds that its process took."""
    clock = folder.with_suffix(".seconds")
    if not clock.is_file():
        if folder.exists():
            raise SystemExit(
                f"{folder} holds a run without its time, so it was interrupted. Remove it and start again."
            )
        zip_file = agents / f"{name}_1" / f"{name.split('/')[1]}.zip"
        command = [sys.executable, "-m", "prunerl", "prune", str(zip_file), "--env", env, "--seed", str(seed)]
        start = time.perf_counter()
        subprocess.run([*command, "--out", str(folder)], check=True, stdout=sys.stderr)
        clock.write_text(str(time.perf_counter() - start))
    return json.loads((folder / "report.json").read_text()), float(clock.read_text())


def row(
    name: str, env: str, report: dict, seconds: float, parameters: int | None, prototype: int | None
) -> tuple[str, ...]:
    """Return one line of the table."""
    verdict = report["verdict"]
    others = {b["name"]: b for b in report["baselines"]}

    def baseline(kind: str) -> str:
        found = others.get(kind)
        if found is None:
            return "—"
        return f"{found['parameters']:,}: {found['verdict']['normalized']:.3f}" + (
            "" if found["verdict"]["satisfied"] else " ✗"
        )

    return (
        name,
        env,
        f"{report['dense']['parameters']:,}",
        f"**{report['pruned']['parameters']:,}**",
        "—" if parameters is None else f"{parameters:,}",
        " × ".join(map(str, report["pruned"]["units"])) or "none",
        f"{verdict['normalized']:.3f}",
        f"[{verdict['interval'][0]:.3f}, {verdict['interval'][1]:.3f}]",
        str(len(verdict["pruned"])),
        "yes" if verdict["satisfied"] else "no",
        baseline("linear policy"),
        baseline("same size, random weights"),
        f"{seconds:.0f}",
        "—" if prototype is None else str(prototype),
    )


if __name__ == "__main__":
    main()
