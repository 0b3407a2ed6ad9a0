"""Measure what it costs to cut half of the units of an MLP: by hand, with prunerl, and with two other tools.

    python benchmarks/surgery.py --torch-pruning PYTHON > docs/data/surgery.md

The first table is a network of 98.5 million parameters (64-7000-7000-7000-8), the second one stacks of up to 128
layers, 64 wide. Each measurement is a process of its own, and the tools take turns. What is timed is all that is
needed from the loaded network to the smaller one:

- plain slicing: the L1 norm of what each unit owns, ``topk``, ``index_select``, without any check;
- prunerl: ``trace``, ``magnitude``, ``by_sparsity`` and ``remove``, with its check against the masked original;
- Torch-Pruning: ``MagnitudePruner`` with the L1 norm, its dependency graph included;
- ``torch.nn.utils.prune.global_unstructured``: half of the weights, by masks, so nothing becomes smaller.

Seconds are CPU time with torch on one thread, after the same has been done once to a tiny network in the same process;
"first call" is without that, with whatever is imported and compiled by it. Extra memory is the peak of the process
above what it was with the network loaded.

Torch-Pruning is not among this package's dependencies: ``--torch-pruning`` names the Python of an environment that has
it (``pip install torch==2.13.0 torch-pruning==1.6.1``). Finished measurements are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LARGE = (64, 7000, 7000, 7000, 8)
TINY = (64, 16, 16, 16, 8)
DEPTHS = (16, 32, 64, 128)
TOOLS = ("plain slicing", "prunerl", "torch-pruning", "torch.nn.utils.prune")
STATES = 32


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch-pruning", default=sys.executable, metavar="PYTHON", help="Python that has it")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--depths", nargs="*", type=int, default=list(DEPTHS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/surgery.jsonl"), help="file of finished measurements")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--widths", help=argparse.SUPPRESS)
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, tuple(map(int, given.widths.split(","))), cold=given.cold)))
        return
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for key in wanted(given.tools, given.depths, given.repetitions):
        if all(entry["key"] != key for entry in entries(given.out)):
            entry = {"key": key, **started(key, given.torch_pruning)}
            print(entry, file=sys.stderr)
            with given.out.open("a") as file:
                file.write(json.dumps(entry) + "\n")
    print("\n".join(report(given.tools, given.depths, entries(given.out))))


def wanted(tools: list[str], depths: list[int], repetitions: int) -> Iterator[list[Any]]:
    """Yield the key of each measurement: tool, widths, cold, repetition."""
    stacks = [[64] * depth + [8] for depth in depths]  # as many linear layers as the depth
    for index in range(repetitions):
        for tool in tools:
            # It takes most of a minute and gigabytes, so once is enough to see that.
            if tool != "torch.nn.utils.prune" or index == 0:
                yield [tool, list(LARGE), False, index]
                yield from ([tool, list(LARGE), True, index] for _ in range(tool != "torch.nn.utils.prune"))
        for widths in stacks:
            yield from ([tool, widths, False, index] for tool in tools if tool != "torch.nn.utils.prune")


def started(key: list[Any], other: str) -> dict[str, Any]:
    """Return one measurement, made in a new process."""
    tool, widths, cold, _ = key
    python = other if tool == "torch-pruning" else sys.executable
    command = [python, __file__, "--one", tool, "--widths", ",".join(map(str, widths)), *["--cold"] * cold]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:120]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(tool: str, widths: tuple[int, ...], *, cold: bool) -> dict[str, Any]:
    """Prune one network in this process and return what it took."""
    torch.set_num_threads(1)
    prune = {
        "plain slicing": sliced,
        "prunerl": by_prunerl,
        "torch-pruning": by_torch_pruning,
        "torch.nn.utils.prune": by_torch,
    }[tool]()
    if not cold:
        prune(built(TINY))
    network = built(widths)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, start = time.perf_counter(), time.process_time()
    left = prune(network)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "wall": wall, "extra": extra / 1024, "left": left}


def built(widths: tuple[int, ...]) -> nn.Sequential:
    """Return an MLP with ReLU between its layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sliced() -> Callable[[nn.Sequential], int]:
    """Return the function that does it by hand."""

    @torch.no_grad()
    def prune(network: nn.Sequential) -> int:
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        columns: Tensor | None = None
        left = 0
        for index, layer in enumerate(linear):
            weight, bias = layer.weight, layer.bias
            rows = None
            if index + 1 < len(linear):
                score = weight.abs().sum(1) + bias.abs() + linear[index + 1].weight.abs().sum(0)
                rows = score.topk(len(score) // 2).indices.sort().values
                weight, bias = weight.index_select(0, rows), bias.index_select(0, rows)
            if columns is not None:
                weight = weight.index_select(1, columns)
            columns = rows
            layer.weight, layer.bias = nn.Parameter(weight.clone() if rows is None else weight), nn.Parameter(bias)
            left += weight.numel() + bias.numel()
        return left

    return prune


def by_prunerl() -> Callable[[nn.Sequential], int]:
    """Return the function that does it with prunerl."""
    from prunerl.criteria import magnitude
    from prunerl.decide import by_sparsity
    from prunerl.evidence import VisitedEvidence
    from prunerl.remove import remove
    from prunerl.trace import trace, unit_groups
    from prunerl.types import Head, State

    def prune(network: nn.Sequential) -> int:
        observations = torch.randn(STATES, 64, generator=torch.Generator().manual_seed(0))
        network.requires_grad_(False)
        traced = trace(network, observations)
        state = State({name: parameter.data for name, parameter in network.named_parameters()})
        groups = unit_groups(traced, state.tensors)
        head = Head("q_values", sizes=(8,))
        evidence = VisitedEvidence(traced, state, head, lambda: observations, torch.Generator())
        decision = by_sparsity(groups, magnitude(evidence, groups), 0.5, scope="local")
        smaller = remove(traced, state, groups, decision, ties=(), observations=observations)
        return sum(tensor.numel() for tensor in smaller.tensors.values())

    return prune


def by_torch_pruning() -> Callable[[nn.Sequential], int]:
    """Return the function that does it with Torch-Pruning."""
    import torch_pruning

    def prune(network: nn.Sequential) -> int:
        pruner = torch_pruning.pruner.MagnitudePruner(
            network,
            torch.randn(1, 64),
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=[network[-1]],
        )
        pruner.step()
        return sum(parameter.numel() for parameter in network.parameters())

    return prune


def by_torch() -> Callable[[nn.Sequential], int]:
    """Return the function that masks half of the weights with PyTorch's own tool."""
    from torch.nn.utils import prune as torch_prune

    def prune(network: nn.Sequential) -> int:
        weights = [(layer, "weight") for layer in network if isinstance(layer, nn.Linear)]
        torch_prune.global_unstructured(weights, pruning_method=torch_prune.L1Unstructured, amount=0.5)
        return sum(parameter.numel() for parameter in network.parameters())

    return prune


def report(tools: list[str], depths: list[int], found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the report."""

    def values(tool: str, widths: list[int], what: str, *, cold: bool = False) -> list[float]:
        return [e[what] for e in found if e["key"][:3] == [tool, widths, cold] and what in e]

    def median(numbers: list[float], form: str) -> str:
        return format(statistics.median(numbers), form) if numbers else "—"

    yield "# What it costs to cut half of the units\n"
    yield f"`python benchmarks/surgery.py --torch-pruning PYTHON` on {platform.machine()}, {os.cpu_count()} cores, "
    yield f"Python {platform.python_version()}, torch {torch.__version__}. CPU seconds on one thread, medians.\n"
    for tool in tools:
        failed = next((e["failed"] for e in found if e["key"][0] == tool and "failed" in e), None)
        if failed is not None:
            yield f"{tool}: {failed}\n"
    yield f"## {'-'.join(map(str, LARGE))}, {sum(p.numel() for p in built(LARGE).parameters()):,} parameters\n"
    yield "| tool | seconds | of plain slicing | range | first call | extra peak memory, MB | parameters left | runs |"
    yield "|---|---|---|---|---|---|---|---|"
    plain = values("plain slicing", list(LARGE), "seconds")
    for tool in tools:
        seconds = values(tool, list(LARGE), "seconds")
        share = f"{statistics.median(seconds) / statistics.median(plain):.2f}" if seconds and plain else "—"
        spread = f"{min(seconds):.2f}–{max(seconds):.2f}" if seconds else "—"
        first = median(values(tool, list(LARGE), "seconds", cold=True), ".2f")
        extra, left = values(tool, list(LARGE), "extra"), values(tool, list(LARGE), "left")
        cells = (median(seconds, ".2f"), share, spread, first, median(extra, ".0f"), median(left, ",.0f"))
        yield f"| {tool} | {' | '.join(cells)} | {len(seconds)} |"
    if depths:
        yield "\n## Depth: layers of width 64, seconds\n"
        yield "| tool | " + " | ".join(f"{depth} layers" for depth in depths) + " |\n|" + "---|" * (len(depths) + 1)
        for tool in tools:
            if tool != "torch.nn.utils.prune":
                cells = tuple(median(values(tool, [64] * depth + [8], "seconds"), ".3f") for depth in depths)
                yield f"| {tool} | {' | '.join(cells)} |"


def entries(out: Path) -> list[dict[str, Any]]:
    """Return what is in the file; a line that was cut off by an interruption is left out."""
    found = []
    for line in out.read_text().splitlines() if out.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


if __name__ == "__main__":
    main()
