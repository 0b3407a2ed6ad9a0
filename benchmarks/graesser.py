"""Replicate the classic-control part of Graesser et al. 2022: DQN 512-512, methods × sparsities × seeds.

    python benchmarks/graesser.py --envs Acrobot-v1 --methods dense gradual-erk --sparsities 0.9 --seeds 0 1 2
    python benchmarks/graesser.py --print > docs/data/graesser.md

One line a run in ``--data``; what is there already is not run again, so a stopped command goes on, and several subsets
add up to one table. Commands with other subsets may run side by side.

``narrow`` is the dense network of as many parameters, from scratch, and is in every table. ``narrow-tuned`` has the
learning rate of ``--rates`` that is best on ``--tuning-seeds``, which are no others' seeds. ``stop-early`` is
the dense network of the best evaluation within the first half of its training, pruned afterwards in one shot and
distilled; ``linear`` is a policy without hidden layers that imitates the last dense one. These two need the dense
run of their seed, which ``--kept`` remembers. They are evaluated on the episodes of the dense run's last evaluations.

Updates are written out by hand in ``graesser_update.py``, with sparse products where a network is sparse, so the
seconds of the table are this harness's, and not those of training by PyTorch, where masks save nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graesser_baselines import keep, linear_policy, stop_early
from graesser_dqn import FIRST_SEED, Evaluate, SparseStart, dqn, make, play
from scipy import stats

from prunerl import train

ENVS = ("Acrobot-v1", "MountainCar-v0", "CartPole-v1")
SPARSE = tuple(f"{n}-{spread}" for n in ("static", "set", "rigl", "gradual") for spread in ("erk", "uniform"))
METHODS = ("dense", "narrow", "narrow-tuned", "linear", "stop-early", *SPARSE)
WITHOUT_SPARSITY = ("dense", "linear")
STEPS, WIDTH, EVALUATIONS, EPISODES = 100_000, 512, 50, 20
RATE, RATES = 1e-3, (3e-4, 1e-3, 3e-3, 1e-2)
DATA, KEPT = Path("docs/data/graesser.jsonl"), Path("runs/graesser")
PUBLISHED = {
    ("Acrobot-v1", "dense"): {0.0: -67},
    ("Acrobot-v1", "gradual-erk"): {0.9: -65, 0.95: -65.5, 0.98: -73},
    ("Acrobot-v1", "rigl-erk"): {0.9: -73, 0.95: -73, 0.98: -85},
    ("Acrobot-v1", "set-erk"): {0.9: -68, 0.95: -74, 0.98: -94},
    ("Acrobot-v1", "static-erk"): {0.9: -72, 0.95: -79, 0.98: -95},
    ("Acrobot-v1", "narrow"): {0.9: -76, 0.95: -81, 0.98: -90},
    ("Acrobot-v1", "gradual-uniform"): {0.9: -84, 0.95: -95, 0.98: -125},
    ("MountainCar-v0", "dense"): {0.0: -123},
    ("MountainCar-v0", "gradual-erk"): {0.8: -102, 0.9: -111, 0.95: -115, 0.98: -119},
    ("MountainCar-v0", "gradual-uniform"): {0.8: -200, 0.9: -200, 0.95: -200, 0.98: -200},
    ("MountainCar-v0", "rigl-erk"): {0.9: -157},
    ("MountainCar-v0", "set-erk"): {0.9: -142},
    ("MountainCar-v0", "narrow"): {0.9: -150},
    ("MountainCar-v0", "static-erk"): {0.9: -122},
}
"""Scores digitised from the paper's figures, ± 1–2."""


@dataclass(frozen=True)
class Cell:
    """One run."""

    env: str
    method: str
    sparsity: float
    rate: float
    seed: int
    steps: int


def parameters(inputs: int, width: int, actions: int) -> int:
    """Return the parameters of a network with two hidden layers."""
    return inputs * width + width + width * width + width + width * actions + actions


def narrow(inputs: int, actions: int, sparsity: float) -> int:
    """Return the width of the largest dense network with no more parameters than the sparse one has."""
    matrices = inputs * WIDTH + WIDTH * WIDTH + WIDTH * actions
    left = parameters(inputs, WIDTH, actions) - sparsity * matrices
    return max(w for w in range(1, WIDTH + 1) if parameters(inputs, w, actions) <= left)


def pruning(cell: Cell) -> list[Any]:
    """Return the callbacks of a method, with the settings of the paper's appendix and code: last layers count too."""
    if cell.method not in SPARSE:
        return []
    name, distribution = cell.method.split("-")
    settings: dict[str, Any] = {"sparsity": cell.sparsity, "distribution": distribution, "seed": cell.seed}
    settings["dense_last"] = False
    if name == "gradual":
        return [train.Gradual(**settings, start=0.2, end=0.75, every=1000)]
    if name == "static":
        own = train.Static(**settings)
    else:
        own = {"set": train.SET, "rigl": train.RigL}[name](**settings, every=1000, share=0.5, end=0.75)
    return [own, SparseStart(own)]


def run(cell: Cell, kept: Path) -> dict[str, Any]:
    """Train and evaluate."""
    torch.set_num_threads(1)
    path = kept / f"{cell.env}_{cell.seed}_{cell.steps}.pt"
    begun = time.process_time()
    if cell.method in ("linear", "stop-early"):
        if not path.is_file():
            run(replace(cell, method="dense", sparsity=0.0), kept)
        begun = time.process_time()
        return derived(cell, path) | {"cpu_seconds": round(time.process_time() - begun, 1)}
    env = make(cell.env)
    inputs, actions = env.observation_space.shape[0], env.action_space.n
    width = narrow(inputs, actions, cell.sparsity) if cell.method.startswith("narrow") else WIDTH
    model = dqn(cell.env, [width, width], rate=cell.rate, steps=cell.steps, seed=cell.seed)
    half = cell.steps // 2 if cell.method == "dense" else 0
    evaluate = Evaluate(cell.env, max(cell.steps // EVALUATIONS, 1), EPISODES, half)
    callbacks = pruning(cell)
    model.masked_by = next(iter(callbacks), None)
    model.learn(cell.steps, callback=[*callbacks, evaluate])
    seconds = time.process_time() - begun
    if cell.method == "dense":
        keep(path, model, evaluate)
    last = evaluate.returns[-max(len(evaluate.returns) // 10, 1) :]
    return {
        **asdict(cell), "score": float(np.mean(last)), "width": width, "nonzero": nonzero(model.q_net),
        "returns": [round(r, 2) for r in evaluate.returns], "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def derived(cell: Cell, path: Path) -> dict[str, Any]:
    """Make a policy from the dense run of the same seed, and evaluate it."""
    if cell.method == "linear":
        network, steps = linear_policy(path, cell.env, cell.seed)
    else:
        network, steps = stop_early(path, cell.sparsity, cell.seed)
    number = max(EVALUATIONS // 10, 1)
    envs = [make(cell.env) for _ in range(EPISODES)]
    firsts = [FIRST_SEED + EPISODES * (EVALUATIONS - number + i) for i in range(number)]
    score = float(np.mean([play(network, envs, first) for first in firsts]))
    return {**asdict(cell), "score": score, "nonzero": nonzero(network), "taken": steps}


def nonzero(network: torch.nn.Module) -> int:
    """Return how many parameters are not zero."""
    return sum(int((p != 0).sum()) for p in network.parameters())


def done(data: Path) -> dict[Cell, dict[str, Any]]:
    """Return the runs that are in the file."""
    lines = [json.loads(line) for line in data.read_text().splitlines()] if data.exists() else []
    return {Cell(**{n: r[n] for n in Cell.__dataclass_fields__}): r for r in lines}


def ensure(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """Return a run's result; run it if it is not in the file."""
    known = done(args.data)
    if (found := known.get(cell)) is not None:
        return found
    # The best rate may be that of ``narrow``, whose runs are the same.
    same = known.get(replace(cell, method="narrow")) if cell.method == "narrow-tuned" else None
    result = same | asdict(cell) if same else run(cell, args.kept)
    with args.data.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(f"{asdict(cell)}: {result['score']:.1f} ({result['cpu_seconds']} CPU s)", flush=True)
    return result


def tuned(cell: Cell, args: argparse.Namespace) -> Cell:
    """Return the cell with the learning rate that is best on the seeds of tuning."""

    def mean(rate: float) -> float:
        trials = [replace(cell, method="narrow-tuning", rate=rate, seed=seed) for seed in args.tuning_seeds]
        return float(np.mean([ensure(trial, args)["score"] for trial in trials]))

    return replace(cell, rate=max(args.rates, key=mean))


def table(found: list[dict[str, Any]]) -> str:
    """Return the table of what is there, with 95 % intervals over seeds (Student's t) and the published numbers."""
    lines = [
        "| env | sparsity | method | rate | steps | seeds | score | 95 % | each seed | published | parameters "
        "| CPU s |",
        "|---" * 12 + "|",
    ]
    columns = ("env", "sparsity", "method", "rate", "steps")
    for key in sorted(
        {tuple(r[c] for c in columns) for r in found}, key=lambda k: (*k[:2], METHODS_ORDER[k[2]], *k[3:])
    ):
        mine = [r for r in found if tuple(r[c] for c in columns) == key]
        scores = np.array([r["score"] for r in sorted(mine, key=lambda r: r["seed"])])
        known = PUBLISHED.get((key[0], key[2]), {}).get(key[1], "–")
        left, seconds = (round(float(np.mean([r[c] for r in mine]))) for c in ("nonzero", "cpu_seconds"))
        lines.append(
            f"| {key[0]} | {key[1]:g} | {key[2]} | {key[3]:g} | {key[4]:,} | {len(scores)} | {scores.mean():.1f} | "
            f"{interval_of(scores)} | {', '.join(f'{score:.0f}' for score in scores)} | {known} | {left:,} "
            f"| {seconds} |"
        )
    return "\n".join(lines)


METHODS_ORDER = {name: place for place, name in enumerate((*METHODS, "narrow-tuning"))}


def interval_of(scores: np.ndarray) -> str:
    """Return the 95 % interval of the mean, a dash for one score."""
    if len(scores) < 2:
        return "–"
    half = stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / len(scores) ** 0.5
    return f"{scores.mean() - half:.1f} … {scores.mean() + half:.1f}"


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Return what is asked for, once each, seed by seed, and the narrow network where one is sparse."""
    sparse = any(m not in WITHOUT_SPARSITY for m in args.methods)
    methods = [*args.methods, "narrow"] if sparse else args.methods
    found = [
        Cell(env, method, 0.0 if method in WITHOUT_SPARSITY else sparsity, RATE, seed, args.steps)
        for seed in args.seeds for env in args.envs for sparsity in args.sparsities for method in methods
    ]  # fmt: skip
    return list(dict.fromkeys(found))


def main() -> None:
    """Run the cells that are asked for and not there yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", choices=ENVS, default=["Acrobot-v1", "MountainCar-v0"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9, 0.95])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates that narrow-tuned tries")
    parser.add_argument("--tuning-seeds", nargs="+", type=int, default=[100], help="seeds that it tries them on")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of a run; the paper's are 100,000")
    parser.add_argument("--data", type=Path, default=DATA, help="JSON lines, one a run")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of dense networks")
    parser.add_argument("--print", action="store_true", help="run nothing")
    args = parser.parse_args()
    if set(args.seeds) & set(args.tuning_seeds):
        parser.error("--seeds and --tuning-seeds overlap. Choose on some seeds and report others.")
    args.data.parent.mkdir(parents=True, exist_ok=True)
    for cell in () if args.print else cells_of(args):
        ensure(tuned(cell, args) if cell.method == "narrow-tuned" else cell, args)
    print("# Graesser et al. 2022, classic control\n\n`python benchmarks/graesser.py --print`\n")
    print(table(list(done(args.data).values())))
    print(f"\n{platform.machine()}, one core a run, torch {torch.__version__} on one thread.")


if __name__ == "__main__":
    main()
