"""Print how long the command line and the import take, each in fresh processes: the median and the range.

Seconds are of a clock and of the processor; where other work runs, the second ones say more.

python benchmarks/start.py --times 9
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import prunerl": ["-c", "import prunerl"],
    "import torch": ["-c", "import torch"],
    "prunerl --help": ["-m", "prunerl", "--help"],
    "prunerl prune --help": ["-m", "prunerl", "prune", "--help"],
    "prunerl targets": ["-m", "prunerl", "targets"],
}


def main() -> None:
    """Time each command in turn, round after round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=9)
    times = parser.parse_args().times
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(times):
        for name, arguments in COMMANDS.items():
            before, start = _used(), time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            taken[name].append((time.perf_counter() - start, _used() - before))
    print("| | seconds | range | of the processor | range |\n|---|---|---|---|---|")
    for name, pairs in taken.items():
        print(f"| {name} | {' | '.join(_cells(values) for values in zip(*pairs, strict=True))} |")


def _used() -> float:
    """Return the processor's seconds of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cells(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} | {min(values):.2f}–{max(values):.2f}"


if __name__ == "__main__":
    main()
