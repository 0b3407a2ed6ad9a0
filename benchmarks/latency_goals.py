"""What `benchmarks/latency.py` measures beside what is to be reached, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SB3, DENSE, INT8 = "Stable-Baselines3 predict", "prunerl.compile", "prunerl.compile, int8"
ONNX = ("ONNX Runtime", "ONNX Runtime, IO binding")
"""Its options: the faster one counts."""

CALLS = (
    ("S 0%", DENSE, 500, 25),
    ("M 0%", DENSE, 100, 4),
    ("M 0%", INT8, 200, 10),
    ("M 90%", DENSE, 250, 10),
    ("L 0%", DENSE, None, 1.3),
    ("X 0%", DENSE, None, 1.3),
    ("L 90%", DENSE, None, 4),
    ("X 90%", DENSE, None, 4),
)
"""Network, ours, and how many times as fast as Stable-Baselines3 and as ONNX Runtime one decision is to be."""

SHARE, BATCH, SPARSE, HALF = 0.85, 2, 5, 1
"""Of the machine's limit; of our dense kernel at 80 % in batches, at 90 % on M and at 50 %."""


def goals(done: Mapping[str, Any], peak: float, width: int) -> Iterator[str]:
    """Yield lines of a table: each goal, what was measured, and whether it is held.

    Args:
        done: Name of a measurement → what was got.
        peak: Products of the machine in a nanosecond.
        width: Floats of a vector; some goals are for sixteen.
    """
    yield "| goal | at least | measured | |\n|---|---|---|---|"
    yield from _called(done)
    for net in "MLX":
        if (got := done.get(f"compute {net} 0%")) is not None:
            limit = max(got["reading"], got["macs"] / peak / 1000)
            yield _row(f"{net} dense in C: share of the machine's limit", SHARE, limit / got["µs"][1])
    yield from _sparse(done, width)


def _called(done: Mapping[str, Any]) -> Iterator[str]:
    for net, ours, sb3, onnx in CALLS:
        got = done.get(f"call {net}", {})
        times = {name: got[name]["µs"][1] for name in (SB3, *ONNX, ours) if got.get(name, {}).get("µs")}
        best = min((times[name] for name in ONNX if name in times), default=None)
        for other, goal, taken in (("Stable-Baselines3", sb3, times.get(SB3)), ("ONNX Runtime", onnx, best)):
            if goal is not None and taken is not None and ours in times:
                kind = ", int8" if ours == INT8 else ""
                yield _row(
                    f"{net}{kind}, one decision from Python: times as fast as {other}", goal, taken / times[ours]
                )


def _sparse(done: Mapping[str, Any], width: int) -> Iterator[str]:
    wide = "" if width >= 16 else "; the goal is for AVX-512, which this machine has not"
    for net, share, goal in (("M", 50, HALF), ("L", 50, HALF), ("X", 50, HALF), ("M", 90, SPARSE)):
        got, dense = (done.get(f"compute {net} {s}%") for s in (share, 0))
        if got is not None and dense is not None:
            name = f"{net} {share}% in C: times as fast as our dense{wide}"
            yield _row(name, goal, dense["µs"][1] / got["µs"][1], applies=not wide)
    for net in "MLX":
        got, dense = (done.get(f"batch {net} {s}%") for s in (80, 0))
        if got is not None and dense is not None:
            value = dense[DENSE][1] / got[DENSE][1]
            yield _row(f"{net} 80% in batches of 32: times as fast as our dense", BATCH, value)


def _row(name: str, goal: float, value: float, *, applies: bool = True) -> str:
    verdict = "held" if value >= goal else "missed" if applies else "not held here"
    said = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"| {name} | {goal:g} | {said} | {verdict} |"
