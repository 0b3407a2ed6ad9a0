"""Measure one decision from Python in every runtime, and in C alone beside what the machine can do.

    python -m venv latency
    latency/bin/pip install torch==2.13.0
    latency/bin/pip install stable-baselines3 onnx onnxscript onnxruntime openvino ai-edge-litert tflite flatbuffers
    latency/bin/pip install safetensors pyyaml scipy rich tyro
    latency/bin/pip install -e . --no-deps
    latency/bin/python benchmarks/latency.py --core 1 > docs/data/latency.md

The networks are policies of Stable-Baselines3 (PPO) with random weights: S = 4-64-64-2, M = 24-256-256-6,
L = 376-400-300-17, X = 64-1024-1024-8; sparse ones have that share of their weights, chosen at random, at zero. With
``--agents FOLDER`` each folder in it that ``prunerl.load`` takes is measured as well.

All runtimes are in one process on one core, one thread each, and take turns, some decisions each; one before them that
is not counted, brings the runtime's weights back into the caches. The figures are quantiles of the mean of such a turn.
"Pure compute" is the compiled function called in a loop in C; its limit is the time in which the machine reads as many
bytes as the policy's weights have, again and again, or does as many products, whichever is longer, measured in the same
run. A runtime that is not installed is named with the reason. What is measured is kept in ``--out`` and not measured
again. It takes some five minutes on a quiet machine.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from latency_goals import goals
from stable_baselines3 import PPO

import prunerl
from prunerl.deploy import build, native
from prunerl.deploy.bench import bench
from prunerl.deploy.interpret import run
from prunerl.deploy.kernels import choose, forward, steps, vector
from prunerl.deploy.kernels.layer import Machine
from prunerl.deploy.kernels.rounding import rounded
from prunerl.deploy.lower import lower
from prunerl.deploy.passes import permute_rows, simplify
from prunerl.deploy.program import OBSERVATION, Program
from prunerl.deploy.runtimes import RUNTIMES, Decide, Scene
from prunerl.errors import PruneError

NETS = {"S": (4, 64, 64, 2), "M": (24, 256, 256, 6), "L": (376, 400, 300, 17), "X": (64, 1024, 1024, 8)}
SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
CALLED = (0.0, 0.9)
"""Sparsities of which all runtimes are timed."""
BATCH = 32
PACKAGES = ("torch", "stable-baselines3", "onnxruntime", "openvino", "ai-edge-litert", "numpy")

THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Read by NumPy and others when they are loaded: their threads, waiting, would take the core from whose turn it is."""

LIMITS = r"""
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static volatile float sink;

/* Nanoseconds of reading so many bytes, the least of many rounds. */
double limit_read(const float *p, long bytes)
{
    const long step = 8 * W, n = bytes / 4 / step * step;
    double least = 1e30;
    for (int round = 0; round < 200; round++) {
        const long times = 4000000 / bytes + 1;
        const double start = now();
        for (long k = 0; k < times; k++) {
            vec a[8] = {{0}};
            for (long i = 0; i < n; i += step) {
                for (int v = 0; v < 8; v++) {
                    a[v] += load_any(p + i + v * W);
                }
            }
            for (int v = 0; v < 8; v++) {
                sink = a[v][0];
            }
            __asm__ volatile("" ::: "memory");
        }
        const double taken = (now() - start) / times;
        least = taken < least ? taken : least;
    }
    return least;
}

/* Products and sums in a nanosecond, from registers alone. */
double limit_multiply(float seed)
{
    double most = 0;
    for (int round = 0; round < 200; round++) {
        vec a[10], x = splat(seed), y = splat(seed * 0.5f);
        for (int v = 0; v < 10; v++) {
            a[v] = splat(seed + v);
        }
        const double start = now();
        for (int k = 0; k < 10000; k++) {
            for (int v = 0; v < 10; v++) {
                a[v] = a[v] * x + y;
            }
            __asm__ volatile("" : "+x"(x), "+x"(y));
        }
        const double rate = 10.0 * 10000 * W / (now() - start);
        for (int v = 0; v < 10; v++) {
            sink = a[v][0];
        }
        most = rate > most ? rate : most;
    }
    return most;
}
"""

COMPUTE = r"""
#include <time.h>

/* Nanoseconds of one decision, the quantiles of 5, 50 and 95 % being the caller's to take. */
void compute(const char *w, float *scratch, float *memory, const float *obs, float *action, int rounds, long times,
             double *taken)
{
    for (int round = 0; round < rounds; round++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (long k = 0; k < times; k++) {
            policy_forward_native(w, scratch, memory, obs, (const unsigned char *)0, action);
        }
        clock_gettime(CLOCK_MONOTONIC, &b);
        taken[round] = (1e9 * (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec)) / times;
    }
}
"""


class Random(gym.Env[np.ndarray, Any]):
    """Observations at random, for a network of given ends."""

    def __init__(self, observations: int, actions: int, discrete: bool) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (observations,), np.float32)
        box = gym.spaces.Box(-1, 1, (actions,), np.float32)
        self.action_space = gym.spaces.Discrete(actions) if discrete else box

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self._observation(), 0.0, False, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.standard_normal(self.observation_space.shape).astype(np.float32)


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="*", choices=tuple(NETS), default=list(NETS))
    parser.add_argument("--agents", type=Path, help="folder of folders of agents")
    parser.add_argument("--core", type=int, help="processor to stay on")
    parser.add_argument("--blocks", type=int, default=300, help="turns of each runtime")
    parser.add_argument("--out", type=Path, default=Path("runs/latency.jsonl"), help="file of finished measurements")
    given = parser.parse_args()
    if not THREADS.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **THREADS})
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    torch.set_num_threads(1)
    gym.register("Random-v0", Random)
    warnings.simplefilter("ignore")
    done = _done(given.out)
    for name, measure in _measurements(given):
        if name not in done:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            done[name] = measure()
            with given.out.open("a") as file:
                file.write(json.dumps({"name": name, "got": done[name]}) + "\n")
    print("\n".join(_tables(done)))


def _done(path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row["got"] for row in map(json.loads, lines)}


def _measurements(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is to be measured: a name and a function."""
    yield "machine", machine
    for net in given.nets:
        for sparsity in SPARSITIES:
            case = f"{net} {sparsity:.0%}"
            yield f"compute {case}", lambda n=net, s=sparsity: compute(_program(agent_of(n, s)))
            if sparsity in CALLED:
                yield f"call {case}", lambda n=net, s=sparsity: calls(agent_of(n, s), given.blocks)
            if sparsity in (0.0, 0.8):
                yield f"batch {case}", lambda n=net, s=sparsity: batches(_program(agent_of(n, s)), given.blocks)
        for sparsity in CALLED:
            case = f"{net} {sparsity:.0%} int8"
            yield f"compute {case}", lambda n=net, s=sparsity: compute(_int8(_program(agent_of(n, s))))
    for folder in sorted(given.agents.iterdir()) if given.agents else []:
        yield f"call {folder.name}", lambda f=folder: loaded(f, given.blocks)


def loaded(folder: Path, blocks: int) -> dict[str, Any]:
    """Time the decisions of an agent on disk, or say why there are none."""
    try:
        return calls(prunerl.load(folder), blocks)
    except PruneError as error:
        return {"refused": " ".join(str(error).split())}


def agent_of(net: str, sparsity: float) -> Any:
    """Return an agent with a network of random weights, a share of which is zero."""
    sizes, discrete = NETS[net], net == "S"
    env = {"observations": sizes[0], "actions": sizes[-1], "discrete": discrete}
    torch.manual_seed(0)
    function = torch.nn.Tanh if net in "SM" else torch.nn.ReLU
    hidden = {"net_arch": {"pi": list(sizes[1:-1]), "vf": [8]}, "activation_fn": function}
    model = PPO("MlpPolicy", gym.make("Random-v0", **env), policy_kwargs=hidden, device="cpu", n_steps=8, batch_size=8)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.policy.named_parameters():
            if weight.dim() == 2 and ("policy_net" in name or "action_net" in name):
                values = torch.randn(weight.shape, generator=draw) / weight.shape[1] ** 0.5
                weight.copy_(values * (torch.rand(weight.shape, generator=draw) >= sparsity))
    return prunerl.load(model, env=prunerl.EnvSpec("Random-v0", kwargs=env))


def _program(agent: Any) -> Program:
    program = simplify(lower(agent.policy, getattr(agent, "codings", {})))
    return permute_rows(program)


def _int8(program: Program) -> Program:
    return rounded(program, _observations(program, 256))


def _observations(program: Program, count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *program.observation_shape)).astype(np.float32)


def calls(agent: Any, blocks: int) -> dict[str, Any]:
    """Time one decision in every runtime."""
    extra = {"ONNX Runtime, IO binding": onnx_bound, "prunerl.compile, int8": compiled_int8}
    timed = bench(agent, blocks=blocks, runtimes={**RUNTIMES, **extra})
    return {t.name: {"µs": t.latency, "differs": float(t.differs), "why": t.why} for t in timed.timings}


def onnx_bound(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Run ONNX Runtime on arrays that stay where they are."""
    import onnxruntime

    from prunerl.deploy.onnx.write import onnx_bytes

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_bytes(scene.program), options, providers=["CPUExecutionProvider"])
    program, held = scene.program, np.zeros((1, *scene.program.observation_shape), scene.program.observation_dtype)
    made = np.zeros((1, *program.action_shape), program.action_dtype)
    binding = session.io_binding()
    binding.bind_ortvalue_input(OBSERVATION, onnxruntime.OrtValue.ortvalue_from_numpy(held))
    given = onnxruntime.OrtValue.ortvalue_from_numpy(held)
    taken = onnxruntime.OrtValue.ortvalue_from_numpy(made)
    binding.bind_ortvalue_input(OBSERVATION, given)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, taken)

    def decide(observation: Any) -> Any:
        given.update_inplace(observation[None])
        session.run_with_iobinding(binding)
        return taken.numpy()[0]

    return decide, scene.packed


def compiled_int8(scene: Scene) -> tuple[Decide, Sequence[Any]]:
    """Call the policy compiled with layers rounded to int8, which does not act quite as the others do."""
    return native.compile(scene.program, quantize=np.stack(scene.packed)), scene.packed


def batches(program: Program, blocks: int) -> dict[str, list[float]]:
    """Time a decision among 32 of a batch, compiled and in ONNX Runtime."""
    batch = _observations(program, BATCH)
    ready: dict[str, Callable[[], Any]] = {"NumPy interpreter": lambda: run(program, batch)}
    policy = native.compile(program)
    ready["prunerl.compile"] = lambda: policy(batch)
    try:
        import onnxruntime

        from prunerl.deploy.onnx.write import onnx_bytes

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(onnx_bytes(program), options, providers=["CPUExecutionProvider"])
        ready["ONNX Runtime"] = lambda: session.run(None, {OBSERVATION: batch})
    except ImportError:
        pass
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(blocks):
        for name, decide in ready.items():
            decide()  # brings its weights back into the caches
            start = time.perf_counter()
            decide()
            times[name].append((time.perf_counter() - start) / BATCH * 1e6)
    return {name: np.quantile(taken[blocks // 10 :], [0.05, 0.5, 0.95]).tolist() for name, taken in times.items()}


def _machine() -> tuple[Machine, build.Compiler]:
    compiler = build.find()
    if compiler is None:
        raise SystemExit("no C compiler")
    width = native._width(build.macros(compiler, "native"))
    wide = ("-mprefer-vector-width=512",) if width == 16 else ()
    return Machine("native", width, ("-march=native", *wide)), compiler


def _limits() -> ctypes.CDLL:
    this, compiler = _machine()
    text = f"#define _POSIX_C_SOURCE 199309L\n{vector.prelude(this.width, '')}\n{LIMITS}"
    path = build.library([build.Unit("limits", text, this.flags)], compiler, build.folder(None), name="limits")
    library = ctypes.CDLL(str(path))
    library.limit_read.restype = library.limit_multiply.restype = ctypes.c_double
    library.limit_read.argtypes = [ctypes.c_void_p, ctypes.c_long]
    library.limit_multiply.argtypes = [ctypes.c_float]
    return library


def machine() -> dict[str, Any]:
    """Name the machine, and measure what it can do."""
    library, (this, compiler) = _limits(), _machine()
    room = np.ones(1 << 26, np.uint8)
    sizes = {"16 KiB": 1 << 14, "256 KiB": 1 << 18, "4 MiB": 1 << 22, "64 MiB": 1 << 26}
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": f"{processor}, {this.width} floats a vector",
        "width": this.width,
        "GMAC/s": library.limit_multiply(1.0),
        "GB/s": {name: size / library.limit_read(room.ctypes.data, size) for name, size in sizes.items()},
        "compiler": compiler.version.splitlines()[0],
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "command": shlex.join(["python", *sys.argv]),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def compute(program: Program) -> dict[str, Any]:
    """Time the compiled function in C, beside the time that the machine needs to read as much."""
    (this, compiler), kept = _machine(), build.folder(None)
    made = steps.sequence(program, exact_tanh=False)
    choices = choose.measured([p.layer for p in made.products.values()], this, compiler, kept, "latency")
    chosen = {i: choice.chosen for i, choice in zip(made.products, choices, strict=True)}
    written = forward.forward(made, chosen, this.width, this.name)
    text = f"#define _POSIX_C_SOURCE 199309L\n{written.source}\n{COMPUTE}"
    library = ctypes.CDLL(str(build.library([build.Unit("compute", text, this.flags)], compiler, kept)))
    library.compute.argtypes = [*[ctypes.c_void_p] * 5, ctypes.c_int, ctypes.c_long, ctypes.c_void_p]
    weights = choose._room(len(written.weights))
    weights[:] = np.frombuffer(written.weights, np.uint8)
    scratch, action = choose._room(written.floats * 4), np.zeros(1024, np.float32)
    observation = _observations(program, 1)
    taken = np.zeros(300)
    arguments = [a.ctypes.data for a in (weights, scratch, scratch, observation, action)]
    library.compute(*arguments, 50, 20, taken.ctypes.data)
    times = max(1, int(100_000 / taken[:50].min()))
    library.compute(*arguments, 300, times, taken.ctypes.data)
    used = sum(sum(a.nbytes for a in c.chosen.one.arrays) for c in choices)
    macs = sum(p.layer.weight.size for p in made.products.values())
    return {
        "µs": (np.quantile(taken, [0.05, 0.5, 0.95]) / 1000).tolist(),
        "reading": _limits().limit_read(weights.ctypes.data, max(used, 4096)) / 1000 * used / max(used, 4096),
        "bytes": used,
        "macs": macs,
        "kernels": [c.chosen.one.kernel for c in choices],
    }


def _tables(done: Mapping[str, Any]) -> Iterator[str]:
    about = done["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    speeds = ", ".join(f"{value:.0f} GB/s in {name}" for name, value in about["GB/s"].items())
    yield f"`{about['command']}`\n"
    yield f"{about['processor']}; one core: {about['GMAC/s']:.0f} GMAC/s, {speeds}. {about['compiler']}."
    yield f"Python {about['python']}, {versions}.\n"
    everything = {name[5:]: got for name, got in done.items() if name.startswith("call ")}
    called = {name: got for name, got in everything.items() if "refused" not in got}
    if called:
        yield "## One decision from Python (µs: median, 5 to 95 %)\n"
        yield "| | " + " | ".join(called) + " |\n|---" * 1 + "|---" * len(called) + "|"
        for runtime in next(iter(called.values())):
            yield f"| {runtime} | " + " | ".join(_cell(got.get(runtime)) for got in called.values()) + " |"
        yield from _gains(called)
    yield from (f"- not measured: {name}: {got['refused']}" for name, got in everything.items() if "refused" in got)
    yield "\n## Pure compute in C (µs), and the machine's limit for a dense network\n"
    yield "| | median | 5 to 95 % | limit | share of it | kernels |\n|---|---|---|---|---|---|"
    for name, got in done.items():
        if name.startswith("compute "):
            yield _compute_row(name[8:], got, about["GMAC/s"])
    yield f"\n## A decision among {BATCH} (µs: median)\n"
    for name, got in done.items():
        if name.startswith("batch "):
            yield f"- {name[6:]}: " + ", ".join(f"{runtime} {t[1]:.3g}" for runtime, t in got.items())
    yield "\n## What is to be reached\n"
    yield from goals(done, about["GMAC/s"], about["width"])


def _cell(timing: Mapping[str, Any] | None) -> str:
    if timing is None or timing["µs"] is None:
        return "—" if timing is None else f"— ({timing['why'].splitlines()[0][:60]})"
    low, middle, high = timing["µs"]
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def _gains(called: Mapping[str, Any]) -> Iterator[str]:
    """Say how many times as fast the compiled policy is as what it is compared with."""
    yield "\n| times as fast as | " + " | ".join(called) + " |\n|---" + "|---" * len(called) + "|"
    for ours in ("prunerl.compile", "prunerl.compile, int8"):
        for other in ("Stable-Baselines3 predict", "ONNX Runtime", "ONNX Runtime, IO binding", "LiteRT"):
            yield f"| {other}: {ours} | " + " | ".join(_gain(got, ours, other) for got in called.values()) + " |"


def _gain(got: Mapping[str, Any], ours: str, other: str) -> str:
    pair = [got.get(name, {}).get("µs") for name in (ours, other)]
    return "—" if None in pair else f"{pair[1][1] / pair[0][1]:.1f}"


def _compute_row(name: str, got: Mapping[str, Any], peak: float) -> str:
    low, middle, high = got["µs"]
    limit = max(got["reading"], got["macs"] / peak / 1000) if name.endswith(" 0%") else got["reading"]
    kernels = "; ".join(got["kernels"])
    return f"| {name} | {middle:.3g} | {low:.3g}–{high:.3g} | {limit:.3g} | {limit / middle:.0%} | {kernels} |"


if __name__ == "__main__":
    main()
