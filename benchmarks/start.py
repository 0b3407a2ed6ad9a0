"""Print how long the command line and the import take, each in fresh processes: the median and the range.

python benchmarks/start.py --times 9
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

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
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(times):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    print("| | median (s) | range (s) |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {statistics.median(taken):.2f} | {min(taken):.2f}–{max(taken):.2f} |")


if __name__ == "__main__":
    main()
