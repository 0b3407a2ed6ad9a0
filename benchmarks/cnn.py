"""Train PPO with ``CnnPolicy`` on a small environment of images, prune it, and check what is left of it.

    python benchmarks/cnn.py --out runs/cnn

The pruned agent must keep its return (a confirmed verdict at tolerance 0.05) with at most 10 % of the parameters and at
most 25 % of the multiply–accumulates of the network that acts, and the zip must act alike in plain Stable-Baselines3
in a process that cannot import this package. The exit status is 1 where it does not. What is there already is not made
again: remove the folder to measure it again.
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

import catch
import numpy as np

ENV = "catch:Catch-v0"
STEPS = 150_000
PARAMETERS, MACS = 0.10, 0.25
HEADER = (
    "agent", "return", "normalised", "95 % interval", "passes", "widths", "parameters", "MACs", "whole agent",
    "bytes", "µs a decision", "seconds",
)  # fmt: skip
ALONE = """
import sys
sys.modules["prunerl"] = None
import numpy as np
from stable_baselines3 import PPO
model = PPO.load(sys.argv[1], device="cpu")
np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), deterministic=True)[0])
"""


def main() -> int:
    """Train and prune where that is missing, print the table, and return 0 where everything is as it must be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/cnn"), help="folder of the agent and the run")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    dense, folder = given.out / "dense.zip", given.out / f"run-seed{given.seed}"
    trained = timed(given.out / "training.seconds", lambda: train(dense))
    pruned = timed(folder.with_suffix(".seconds"), lambda: prune(dense, folder, given.seed))
    report = json.loads((folder / "report.json").read_text())
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for row in (report["dense"], report["pruned"], *report["baselines"]):
        print("| " + " | ".join(cells(row)) + " |")
    print("\nReturn after each stage of each round, normalised, on selection seeds:\n")
    print("| round | widths | parameters | MACs | cut | least squares | distilled | passes | seconds |\n|" + "---|" * 9)
    for made in report["rounds"]:
        print("| " + " | ".join(stages(made)) + " |")
    print(f"\nTraining took {trained:.0f} s, pruning as a whole, baselines and report included, {pruned:.0f} s.\n")
    return checked(report, acts_alike(folder / "agent.zip", given.out))


def timed(clock: Path, work: object) -> float:
    """Do what was not done yet and return the seconds that it took."""
    if not clock.is_file():
        start = time.perf_counter()
        work()  # type: ignore[operator]
        clock.write_text(str(time.perf_counter() - start))
    return float(clock.read_text())


def train(file: Path) -> None:
    """Train the dense agent with the network of Stable-Baselines3's ``CnnPolicy``, NatureCNN."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.utils import LinearSchedule

    torch.set_num_threads(1)
    model = PPO(
        "CnnPolicy",
        make_vec_env(ENV, n_envs=16, seed=0),
        n_steps=64,
        batch_size=256,
        n_epochs=4,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        ent_coef=0.005,
        gamma=0.95,
        seed=0,
        device="cpu",
    )
    model.learn(STEPS)
    model.save(file)


def prune(dense: Path, folder: Path, seed: int) -> None:
    """Prune with the default settings, as a user does; the environment is imported by its id."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "prunerl", "prune", str(dense), "--env", ENV, "--seed", str(seed)]
    subprocess.run([*command, "--out", str(folder)], check=True, stdout=sys.stderr, env=environment)


def acts_alike(file: Path, folder: Path) -> bool:
    """Tell whether plain Stable-Baselines3 acts on 500 images as this package does with the same zip."""
    import prunerl
    from prunerl import heads

    env, images = catch.Catch(), []
    env.reset(seed=0)
    moves = np.random.default_rng(0)
    for _ in range(500):
        image, _, over, _, _ = env.step(moves.integers(3))
        images.append(env.reset()[0] if over else image)
    np.save(folder / "images.npy", np.stack(images))
    command = [sys.executable, "-c", ALONE, str(file), str(folder / "images.npy"), str(folder / "actions.npy")]
    subprocess.run(command, check=True)
    own = heads.act(prunerl.load(file, env=ENV).policy, np.stack(images))
    return bool(np.array_equal(np.load(folder / "actions.npy"), own))


def cells(row: dict) -> tuple[str, ...]:
    """Return one line of the table."""
    verdict = row["verdict"]
    return (
        row["name"],
        f"{np.mean(verdict['pruned']):.2f}",
        f"{verdict['normalized']:.3f}",
        f"[{verdict['interval'][0]:.3f}, {verdict['interval'][1]:.3f}]",
        "yes" if verdict["satisfied"] else "no",
        " × ".join(map(str, row["units"])) or "none",
        f"{row['parameters']:,}",
        f"{row['macs']:,}",
        f"{row['total_parameters']:,}",
        f"{row['bytes']:,}",
        f"{row['latency'][1]:.0f}",
        f"{row['seconds']:.0f}",
    )


def stages(made: dict) -> tuple[str, ...]:
    """Return one line of the table of rounds; a repair that was not needed has a dash."""
    returns = {stage["name"]: f"{stage['verdict']['normalized']:.3f}" for stage in made["stages"]}
    return (
        str(made["index"]),
        " × ".join(map(str, made["units"])),
        f"{made['parameters']:,}",
        f"{made['macs']:,}",
        *(returns.get(name, "—") for name in ("cut", "least_squares", "distill")),
        "yes" if made["satisfied"] else "no",
        f"{made['seconds']:.0f}",
    )


def checked(report: dict, alike: bool) -> int:
    """Print each check with what was found, and return 1 where one failed."""
    dense, pruned = report["dense"], report["pruned"]
    parameters, macs = (pruned[what] / dense[what] for what in ("parameters", "macs"))
    checks = (
        ("the verdict is confirmed", report["verdict"]["satisfied"], f"{report['verdict']['normalized']:.3f}"),
        (f"at most {PARAMETERS:.0%} of the parameters", parameters <= PARAMETERS, f"{parameters:.2%}"),
        (f"at most {MACS:.0%} of the MACs", macs <= MACS, f"{macs:.2%}"),
        ("plain Stable-Baselines3 acts alike", alike, "yes" if alike else "no"),
    )
    for what, right, found in checks:
        print(f"- {'passed' if right else 'FAILED'}: {what} ({found})")
    return 0 if all(right for _, right, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
