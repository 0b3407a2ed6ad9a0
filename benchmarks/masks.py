"""Measure what it costs to hold masks during ``learn()``, and whether they hold, beside PyTorch's own two ways.

    python benchmarks/masks.py --out runs/masks.jsonl > docs/data/masks.md

Each algorithm trains seven live models side by side, all from the same weights: dense; dense once more, which shows
what the noise is; masked once and then let go, which shows what a sparse start alone costs; with
``prunerl.masks.attach``; with the callback ``prunerl.train.Static``; with ``torch.nn.utils.prune``; and with a
parametrization that multiplies by the mask. Networks and training settings are those of the RL Zoo's entries for the
environment, in one environment at a time. The sparsity of every weight matrix of the online networks is 0.9; the
callback spreads the same sparsity over the hidden matrices alone, as is its default. A repetition calls ``learn()``
once for each, in an order that changes, and takes its CPU time (of this process, torch on one thread); what stands in
the table is the median over the repetitions of the ratio to the dense model of the same repetition. Every eight
repetitions all models are made anew, since where tensors happen to lie in memory makes a difference too; the intervals
are those of a bootstrap over these blocks. All repetitions together: the ratio of the summed times, with what happens
now and then, such as the callback's look at dormant units. What is spent in the two hooks of ``prunerl.masks`` is taken
by the same clock around them, its own time included.

What PyTorch's ways do to a target network is shown by a second, untimed model that is masked as its user would do it,
online network alone. For the timed one the target networks are masked as well, so that training runs at all.

Finished repetitions are kept in ``--out`` and not repeated; remove the file to measure again.
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
from sb3_contrib import TQC
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from prunerl import masks
from prunerl.train import Static
from prunerl.train.callback import Sparse

SPARSITY = 0.9
BLOCK = 8
WIDE = {"net_arch": [256, 256]}
LATE = {"learning_starts": 200, "buffer_size": 20_000}
ALGORITHMS: dict[str, tuple[str, str, int, Callable[[], BaseAlgorithm]]] = {
    # environment, widths, steps of one repetition, model
    "PPO": ("Pendulum-v1", "64-64", 256, lambda: PPO(
        "MlpPolicy", "Pendulum-v1", n_steps=128, batch_size=64, n_epochs=10, gamma=0.9, learning_rate=1e-3, seed=0,
        policy_kwargs={"net_arch": [64, 64]},
    )),
    "DQN": ("MountainCar-v0", "256-256", 192, lambda: DQN(
        "MlpPolicy", "MountainCar-v0", learning_rate=4e-3, batch_size=128, gamma=0.98, train_freq=16, gradient_steps=8,
        target_update_interval=600, seed=0, policy_kwargs=dict(WIDE), **LATE,
    )),
    "SAC": ("Pendulum-v1", "256-256", 12, lambda: SAC(
        "MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=0, policy_kwargs=dict(WIDE), **LATE,
    )),
    "TD3": ("Pendulum-v1", "256-256", 24, lambda: TD3(
        "MlpPolicy", "Pendulum-v1", gamma=0.98, learning_rate=1e-3, seed=0, policy_kwargs=dict(WIDE), **LATE,
    )),
    "TQC": ("Pendulum-v1", "256-256", 12, lambda: TQC(
        "MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=0, policy_kwargs=dict(WIDE), **LATE,
    )),
}  # fmt: skip
WAYS = ("prunerl", "static", "prune", "parametrize")
ARMS = ("dense", "again", "let go", *WAYS)
LABELS = {
    "again": "dense again",
    "let go": "masked once, let go",
    "prunerl": "`prunerl.masks`",
    "static": "`prunerl.train.Static`",
    "prune": "`torch.nn.utils.prune`",
    "parametrize": "`parametrize`",
}


class Masked(nn.Module):
    """A parametrization: the weight times the mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--blocks", type=int, default=20, help=f"of each algorithm, of {BLOCK} repetitions each")
    parser.add_argument("--length", type=float, default=1.0, help="factor of the steps of one repetition")
    parser.add_argument("--out", type=Path, default=Path("runs/masks.jsonl"), help="file of finished measurements")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in given.algorithms:
        if not any("exact" in entry for entry in of(name, given.out)):
            append(given.out, {"algorithm": name, "exact": {way: examine(name, way) for way in WAYS}})
    for block in range(given.blocks):
        for name in given.algorithms:
            if sum("block" in entry for entry in of(name, given.out)) <= block:
                append(given.out, {"algorithm": name, "block": measure(name, given.length)})
    if not of("Adam", given.out):
        append(given.out, {"algorithm": "Adam", "microseconds": adam()})
    print("\n".join(table(given.algorithms, given.out)))


def measure(name: str, length: float) -> list[dict[str, float]]:
    """Return the seconds of each arm, repetition by repetition, of models that are made for it."""
    _, _, steps, make = ALGORITHMS[name]
    clock = Clock()  # before hooks are registered
    models = {way: warmed(make()) for way in ARMS}
    decided = drawn(models["dense"])
    callbacks = {way: mask(model, way, decided, targets=True) for way, model in models.items()}
    for way, model in models.items():
        model.learn(settling(model, steps), callback=callbacks[way], reset_num_timesteps=False)
    found = []
    for index in range(BLOCK):
        order = [ARMS[(i + index) % len(ARMS)] for i in range(len(ARMS))]
        seconds = {}
        for way in order if index % 2 else order[::-1]:
            gc.collect()
            clock.seconds, start = 0.0, time.process_time()
            models[way].learn(round(steps * length), callback=callbacks[way], reset_num_timesteps=False)
            seconds[way] = time.process_time() - start
            if way == "prunerl":
                seconds["hooks"] = clock.seconds
        found.append(seconds)
        print(f"{name} {index + 1}/{BLOCK}: " + " ".join(f"{w} {s:.3f}" for w, s in seconds.items()), file=sys.stderr)
    return found


class Clock:
    """The seconds that go into the hooks of ``prunerl.masks`` from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("before", "after"):
            hook = getattr(masks._Keeper, name)
            setattr(masks._Keeper, name, self.timed(getattr(hook, "__wrapped__", hook)))

    def timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Return the hook with its time taken."""

        @functools.wraps(hook)
        def run(*arguments: Any) -> None:
            start = time.process_time()
            hook(*arguments)
            self.seconds += time.process_time() - start

        return run


def settling(model: BaseAlgorithm, steps: int) -> int:
    """Return for how many steps a model trains before it is timed; a callback needs more than one rollout."""
    return 4 * model.n_steps if isinstance(model, PPO) else steps


def adam() -> dict[str, list[float]]:
    """Return the microseconds of one step of Adam on one matrix, each time that it was taken."""
    keep = torch.rand(256, 256, generator=torch.Generator().manual_seed(0)) >= SPARSITY
    steps: dict[str, Callable[[], Any]] = {}
    for way in ("dense", "zeros", "held"):
        layer = nn.Linear(256, 256, bias=False)
        optimizer = torch.optim.Adam(layer.parameters())
        layer.weight.grad = torch.randn(256, 256) * (1.0 if way == "dense" else keep)
        if way == "held":
            masks.hold(optimizer, {"weight": layer.weight}, {"weight": keep})
        steps[way] = optimizer.step
    found: dict[str, list[float]] = {way: [] for way in steps}
    for _ in range(300):
        for way, step in steps.items():
            start = time.process_time()
            for _ in range(10):
                step()
            found[way].append((time.process_time() - start) * 1e5)
    return found


def warmed(model: BaseAlgorithm) -> BaseAlgorithm:
    """Return the model after enough training to have momentum, and a buffer to draw from."""
    return model.learn(256)


def drawn(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Return a random mask for each weight matrix of the online networks."""
    generator = torch.Generator().manual_seed(0)
    named = [(n, p) for n, p in model.policy.named_parameters() if p.dim() == 2 and "_target." not in n]
    return {n: torch.rand(p.shape, generator=generator) >= SPARSITY for n, p in named}


def target_of(name: str) -> str:
    """Return the name that the weight has in the target network."""
    network, _, rest = name.partition(".")
    return f"{network}_target.{rest}"


def mask(model: BaseAlgorithm, way: str, decided: dict[str, Tensor], *, targets: bool) -> Sparse | None:
    """Mask a live model in one of the ways; ``targets`` concerns PyTorch's two. Return the callback where it is one."""
    if way == "static":
        return Static(sparsity=SPARSITY)
    if way == "prunerl":
        masks.attach(model.policy, decided)
    elif way == "let go":
        masks.attach(model.policy, decided).remove()
    elif way in WAYS:
        known = dict(model.policy.named_parameters())
        for name, keep in decided.items():
            for one in (name, target_of(name)) if targets else (name,):
                if one in known:
                    part, _, leaf = one.rpartition(".")
                    module = model.policy.get_submodule(part)
                    if way == "prune":
                        prune.custom_from_mask(module, leaf, keep)
                    else:
                        parametrize.register_parametrization(module, leaf, Masked(keep))
    return None


def examine(name: str, way: str) -> dict[str, str]:
    """Train a model whose online networks are masked, and say what became of it."""
    model = warmed(ALGORITHMS[name][3]())
    steps = 1300 if name == "DQN" else 64  # at least one update of its target network
    decided = drawn(model)
    original = dict(model.policy.named_parameters())
    optimizers = {o for m in model.policy.modules() for o in vars(m).values() if isinstance(o, torch.optim.Optimizer)}
    callback = mask(model, way, decided, targets=False)
    if callback is not None:
        model.learn(settling(model, 16), callback=callback, reset_num_timesteps=False)
        decided = dict(callback.masks)
    revived = {"weights": 0, "moments": 0}

    def look(*_: Any) -> None:
        for weight, keep in ((original[n], keep) for n, keep in decided.items()):
            revived["weights"] = max(revived["weights"], int((weight[~keep] != 0).sum()))
            for state in (optimizer.state[weight] for optimizer in optimizers if weight in optimizer.state):
                entries = [m for m in state.values() if m.shape == weight.shape]
                revived["moments"] = max(revived["moments"], *(int((m[~keep] != 0).sum()) for m in entries))

    for optimizer in optimizers:
        optimizer.register_step_post_hook(look)
    said = {"training": attempt(lambda: model.learn(steps, callback=callback, reset_num_timesteps=False))}
    total = sum(int((~keep).sum()) for keep in decided.values())
    said["stored weights"] = f"{revived['weights']:,} of {total:,} not zero" if revived["weights"] else "exact"
    said["moments"] = f"{revived['moments']:,} not zero" if revived["moments"] else "exact"
    pairs = [(n, original[target_of(n)]) for n in decided if target_of(n) in original]
    wrong = sum(int((target[~decided[n]] != 0).sum()) for n, target in pairs)
    said["targets"] = ("exact" if not wrong else f"{wrong:,} not zero") if pairs else "none"
    buffer = io.BytesIO()
    said["zip"] = attempt(lambda: (model.save(buffer), type(model).load(buffer)))
    for part, _, leaf in (name.rpartition(".") for name in decided) if way.startswith("p") and way != "prunerl" else ():
        made_permanent(model.policy.get_submodule(part), leaf, way)
    said["sparsity after"] = f"{share(model, decided):.3f}"
    trained_on = attempt(lambda: model.learn(steps, callback=callback, reset_num_timesteps=False))
    said["trained on"] = f"{share(model, decided):.3f}" if trained_on == "runs" else trained_on
    return said


def made_permanent(module: nn.Module, leaf: str, way: str) -> None:
    """Leave the masked weight as a plain parameter."""
    if way == "prune":
        prune.remove(module, leaf)
    else:
        parametrize.remove_parametrizations(module, leaf)


def share(model: BaseAlgorithm, decided: dict[str, Tensor]) -> float:
    """Return the share of zeros in the weights that were masked."""
    weights = [model.policy.get_parameter(name) for name in decided]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def attempt(action: Callable[[], Any]) -> str:
    """Do it; return ``runs`` or what went wrong."""
    try:
        action()
    except Exception as error:  # whatever it is, it is the result
        return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}…"
    return "runs"


def table(algorithms: list[str], out: Path) -> Iterator[str]:
    """Yield the lines of the report."""
    yield "# What it costs to hold masks while an agent trains\n"
    yield f"`{' '.join(['python', *sys.argv])}`\n"
    yield (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"Stable-Baselines3 {stable_baselines3.__version__}. CPU time of `learn()` relative to the dense model of the "
        "same repetition: median, and its 95 % interval by a bootstrap over blocks of repetitions; below it the ratio "
        "of all repetitions together, with the interval of the same kind. Held : let go: `prunerl.masks` relative to "
        "the model that was masked once and not held. In hooks: the share of `learn()` that is spent in the two hooks "
        f"of `prunerl.masks`. Sparsity {SPARSITY}.\n"
    )
    columns = ("algorithm", "environment", "widths", "repetitions", *LABELS.values(), "held : let go", "in hooks")
    yield "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    for name in algorithms:
        blocks = [entry["block"] for entry in of(name, out) if "block" in entry]
        environment, widths = ALGORITHMS[name][:2]
        compared = [*((way, "dense") for way in LABELS), ("prunerl", "let go"), ("hooks", "prunerl")]
        cells = [summary(blocks, *pair, middle) for pair in compared]
        yield f"| {name} | {environment} | {widths} | {BLOCK * len(blocks)} | {' | '.join(cells)} |"
        cells = [summary(blocks, *pair, together) for pair in compared]
        yield f"| | | all together | | {' | '.join(cells)} |"
    yield "\n## Where the time goes\n"
    yield (
        "Adam takes the square root of its second moments, and MKL's square root takes a slow path where it meets a "
        "zero (and a slower one at a denormal number, which it does in dense networks as well, once a unit has been "
        "dead for some 70,000 updates). So masked entries are held at 10⁻³⁰ within a step and at zero after it. One "
        f"step on one 256 × 256 matrix, sparsity {SPARSITY}, median of CPU time:\n"
    )
    taken = {way: statistics.median(times) for way, times in of("Adam", out)[0]["microseconds"].items()}
    yield "| | µs |\n|---|---|"
    yield f"| dense | {taken['dense']:.0f} |"
    yield f"| gradient, weights and moments zero where masked | {taken['zeros']:.0f} |"
    yield f"| held by `prunerl.masks`, all it does included | {taken['held']:.0f} |"
    yield "\n## Whether they hold\n"
    yield (
        "Each way masks the online networks and trains. Stored weights and the optimizer's moments are looked at after "
        "every update, the target networks at the end; zip: `save`, then `load` by plain Stable-Baselines3. Sparsity "
        "after: the share of zeros in the stored weights once PyTorch's masks are made permanent (`prune.remove`, "
        "`remove_parametrizations`), which a zip that loads needs; trained on: the same after more training. "
        f"{SPARSITY} was set. What fails at the first update of a target network had little time to go wrong before.\n"
    )
    keys = ("training", "stored weights", "moments", "targets", "zip", "sparsity after", "trained on")
    yield "| algorithm | way | " + " | ".join(keys) + " |\n|" + "---|" * (len(keys) + 2)
    for name in algorithms:
        exact = next(entry["exact"] for entry in of(name, out) if "exact" in entry)
        for way, said in exact.items():
            yield f"| {name} | {LABELS[way]} | " + " | ".join(said[key].replace("|", "/") for key in keys) + " |"


Block = list[dict[str, float]]
Statistic = Callable[[list[Block], str, str], float]


def summary(blocks: list[Block], way: str, other: str, statistic: Statistic) -> str:
    """Return a statistic of all blocks, and its interval when blocks are drawn again."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(blocks), size=(2000, len(blocks)))
    low, high = np.quantile([statistic([blocks[i] for i in draw], way, other) for draw in drawn], [0.025, 0.975])
    return f"{statistic(blocks, way, other):.3f} [{low:.3f}, {high:.3f}]"


def middle(blocks: list[Block], way: str, other: str) -> float:
    """Return the median of the ratios of two ways' times."""
    return statistics.median(seconds[way] / seconds[other] for block in blocks for seconds in block)


def together(blocks: list[Block], way: str, other: str) -> float:
    """Return the ratio of the summed times."""
    return sum(s[way] for block in blocks for s in block) / sum(s[other] for block in blocks for s in block)


def of(name: str, out: Path) -> list[dict[str, Any]]:
    """Return what the file has of one algorithm; a line that was cut off by an interruption is left out."""
    lines = out.read_text().splitlines() if out.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [entry for entry in found if entry["algorithm"] == name]


def append(out: Path, entry: dict[str, Any]) -> None:
    """Add one line to the file."""
    with out.open("a") as file:
        file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
