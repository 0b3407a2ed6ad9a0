"""Compile policies as C99 for a Cortex-M4F and a Cortex-M0, test them in emulation, and count what they take.

    python benchmarks/cortex.py --agent lander.zip

Needs ``arm-none-eabi-gcc``, its newlib and ``qemu-system-arm`` (Debian: ``gcc-arm-none-eabi``,
``libnewlib-arm-none-eabi``, ``qemu-system-arm``). Each policy runs its self-test on both emulated processors: 20
observations with the actions of the interpreter. Flash is the policy's object file, code and constants; RAM is its
scratch memory, and the stack of the deepest call is beside it. Instructions are those of one decision, counted by the
emulator's clock, which advances by one tick an instruction; they are not cycles. The exit status is 1 where a self-test
fails.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy import interpret
from prunerl.deploy.c_export import c_source
from prunerl.deploy.program import Activation, Affine, Clip, Floats, Function, Matrix, Operation, Program

DECISIONS = 20
NEEDED = ("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
NETS = {"S": (4, 64, 64, 2), "M": (24, 256, 256, 6)}
SHRUNK = {"S": (4, 18, 18, 2), "M": (24, 72, 72, 6)}
"""Widths at which a dense net has about a tenth of the weights."""

REFERENCE = {
    "S f32 dense": "19.4K / 512 / 15.1k",
    "S int8 dense": "6.1K / 576 / 17.8k",
    "S f32 CSR 90 %": "3.3K / 512 / 5.6k",
    "S int8 CSR 90 %": "2.7K / 576 / 10.2k",
    "S f32 shrunk 90 %": "2.7K",
    "S int8 shrunk 90 %": "1.3K",
    "M f32 dense": "298K / 2K / 226k",
    "M int8 dense": "78K / 2.3K / 211k",
    "M f32 CSR 90 %": "40K / 2K / 62k",
    "M int8 CSR 90 %": "20K / 2.3K / 75k",
    "M f32 shrunk 90 %": "31K",
    "M int8 shrunk 90 %": "9K",
}
"""Flash, RAM and instructions that were measured on an earlier set of kernels."""


@dataclass(frozen=True)
class Board:
    """An emulated board: its processor's flags, and where its memories lie."""

    machine: str
    flags: tuple[str, ...]
    flash: int
    ram: int


BOARDS = {
    "M4F": Board(
        "mps2-an386", ("-mcpu=cortex-m4", "-mthumb", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"), 4 << 20, 1 << 20
    ),
    "M0": Board("microbit", ("-mcpu=cortex-m0", "-mthumb", "-mfloat-abi=soft"), 256 << 10, 16 << 10),
}
COMMON = ("arm-none-eabi-gcc", "-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")

LINKER = """
MEMORY {{ FLASH (rx) : ORIGIN = 0, LENGTH = {flash}
  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = {ram} }}
SECTIONS {{
  .text : {{ KEEP(*(.vectors)) *(.text*) *(.rodata*) }} > FLASH
  .ARM.exidx : {{ *(.ARM.exidx*) }} > FLASH
  .data : {{ *(.data*) }} > RAM AT > FLASH
  .bss : {{ first = .; *(.bss* COMMON) . = ALIGN(4); last = .; }} > RAM
  top = ORIGIN(RAM) + LENGTH(RAM);
}}
"""

START = """
#include <stdint.h>
extern uint32_t first, last, top;
int selftest(void);
void policy(const float *obs, float *action);
static const float observation[] = { %(observation)s };
static float action[%(actions)d];

static uint32_t host(uint32_t call, const void *argument)
{
    register uint32_t r0 __asm__("r0") = call;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void say(uint32_t number)
{
    char text[12];
    int at = 11;
    text[at] = 0;
    text[--at] = ' ';
    do { text[--at] = (char)('0' + number %% 10); number /= 10; } while (number);
    host(4, text + at);
}

#define TIMER ((volatile uint32_t *)0xE000E010)

static uint32_t ticks(void) { return TIMER[2]; }

/* 2 instructions a turn, to learn how many instructions a tick of the timer is. */
static void turns(uint32_t n)
{
    __asm__ volatile("1: subs %%0, %%0, #1\\n bne 1b" : "+l"(n) : : "cc");
}

void start(void)
{
    for (uint32_t *at = &first; at < &last; at++) *at = 0;
#ifdef __ARM_FP
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20;
    __asm__ volatile("dsb\\n isb");
#endif
    say((uint32_t)selftest());
    TIMER[1] = 0xFFFFFF;
    TIMER[2] = 0;
    TIMER[0] = 5;
    uint32_t before = ticks();
    turns(500000);
    say((before - ticks()) & 0xFFFFFF);
    TIMER[2] = 0;
    before = ticks();
    for (int i = 0; i < %(repeats)d; i++) policy(observation, action);
    say((before - ticks()) & 0xFFFFFF);
    host(0x18, (const void *)0x20026);
    for (;;) { }
}

__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = { (void (*)(void))&top, start };
"""
REPEATS = 50
HEADER = (
    "policy", "flash", "RAM", "stack", "instructions", "with ReLU: flash", "instructions",
    "reference: flash / RAM / instructions", "M0 flash", "M0 instructions", "wrong",
)  # fmt: skip


@dataclass(frozen=True)
class Count:
    """What was found on one board; ``wrong`` of the self-test's decisions differ."""

    flash: int
    ram: int
    stack: int
    instructions: float
    wrong: int


def main() -> int:
    """Print the table, and return 1 where a self-test fails or a tool is absent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agent", type=Path, action="append", default=[], help="a trained agent to count as well")
    parser.add_argument("--only", default="", help="count policies whose name contains this")
    given = parser.parse_args()
    absent = [tool for tool in NEEDED if shutil.which(tool) is None]
    if absent:
        print(f"{', '.join(absent)} not found; see the top of this file", file=sys.stderr)
        return 1
    for tool in NEEDED[::2]:
        print(subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0])
    print(f"\nFlags: {' '.join(COMMON[1:3])} {' '.join(BOARDS['M4F'].flags)}; {' '.join(BOARDS['M0'].flags)}\n")
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    failed = False
    for name, program, other in policies(given.agent):
        if given.only in name:
            failed |= row(name, program, other)
    return int(failed)


def row(name: str, program: Program, other: Program | None) -> bool:
    """Print what a policy takes, and return whether a self-test failed."""
    big, relu = count(program, BOARDS["M4F"]), count(other, BOARDS["M4F"]) if other else None
    small = count(program, BOARDS["M0"]) if big.flash < BOARDS["M0"].flash * 0.9 else None
    wrong = [c.wrong for c in (big, relu, small) if c]
    cells = (
        name, f"{big.flash:,}", f"{big.ram:,}", f"{big.stack:,}", f"{big.instructions:,.0f}",
        f"{relu.flash:,}" if relu else "—", f"{relu.instructions:,.0f}" if relu else "—", REFERENCE.get(name, "—"),
        f"{small.flash:,}" if small else "—", f"{small.instructions:,.0f}" if small else "—", str(sum(wrong)),
    )  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)
    return any(wrong)


def policies(agents: Sequence[Path]) -> Iterator[tuple[str, Program, Program | None]]:
    """Yield each policy: a name, the program, and the same with ReLU where it has random weights."""
    for net in NETS:
        for kind in ("f32", "int8"):
            for form in ("dense", "CSR 90 %", "shrunk 90 %"):
                widths = (SHRUNK if form.startswith("shrunk") else NETS)[net]
                share = 0.9 if form.startswith("CSR") else 0.0
                yield (
                    f"{net} {kind} {form}",
                    random_net(widths, kind=kind, share=share, function="tanh"),  # type: ignore[arg-type]
                    random_net(widths, kind=kind, share=share, function="relu"),  # type: ignore[arg-type]
                )
    for path in agents:
        import prunerl
        from prunerl.deploy.lower import lower

        yield path.stem, lower(prunerl.load(path).policy), None


def random_net(
    widths: Sequence[int], *, kind: Literal["f32", "int8"], share: float, function: Function, seed: int = 0
) -> Program:
    """Return a net with random weights, ``share`` of them zero; of int8 weights and inputs where so."""
    rng = np.random.default_rng(seed)
    operations: list[Operation] = []
    shapes: dict[str, tuple[int, ...]] = {"observation": (widths[0],)}
    source, last = "observation", len(widths) - 2
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        weight = random_matrix(rng, outputs, inputs, share)
        scale = None
        if kind == "int8":
            weight, scale = quantized(weight), (4.0 if i == 0 or function == "relu" else 1.0) / 127
        bias = rng.normal(0, 0.1, outputs).astype(np.float32)
        operations.append(Affine(source, f"l{i}", weight, bias, scale))
        shapes[f"l{i}"] = (outputs,)
        source = f"l{i}"
        if i != last:
            operations.append(Activation(source, f"a{i}", function))
            shapes[f"a{i}"] = (outputs,)
            source = f"a{i}"
    one = np.ones(widths[-1], np.float32)
    operations.append(Clip(source, "action", -one, one))
    shapes["action"] = (widths[-1],)
    return Program(tuple(operations), shapes, "action", "float32", (widths[-1],), "float32")


def random_matrix(rng: np.random.Generator, outputs: int, inputs: int, share: float) -> Matrix:
    """Return a matrix of which exactly that share is zero."""
    values = rng.normal(0, (2.0 / inputs / (1 - share)) ** 0.5 / 2, (outputs, inputs)).astype(np.float32)
    values.reshape(-1)[rng.permutation(values.size)[: round(values.size * share)]] = 0.0
    return Matrix(values)


def quantized(matrix: Matrix) -> Matrix:
    """Round a matrix to int8, with a scale for each output."""
    scale: Floats = np.maximum(np.abs(matrix.values).max(axis=1) / 127, 1e-8).astype(np.float32)
    codes = np.rint(matrix.values / scale[:, None]).astype(np.int8)
    return replace(matrix, values=codes * scale[:, None], codes=codes, scale=scale, bits=8)


def count(program: Program, board: Board) -> Count:
    """Compile a policy for a board, run it there, and count."""
    observations = examples(program)
    return counted(program, board, observations, interpret.run(program, observations)[0])


def examples(program: Program) -> Floats:
    """Return random observations for a self-test."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((DECISIONS, *program.observation_shape)).astype(np.float32)


def counted(program: Program, board: Board, observations: Floats, actions: NDArray[Any]) -> Count:
    """Do the same with these observations and actions in the self-test."""
    source = c_source(program, selftest=(observations, actions))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "policy.c").write_text(source)
        (folder / "board.ld").write_text(LINKER.format(flash=board.flash, ram=board.ram))
        words = ", ".join(f"{float(v)!r}f" for v in observations[0].reshape(-1))
        size = int(np.prod(program.shapes[program.action]))
        (folder / "start.c").write_text(START % {"observation": words, "actions": size, "repeats": REPEATS})
        flags = (*COMMON, *board.flags)
        do(folder, *flags, "-fstack-usage", "-c", "policy.c", "-o", "policy.o")
        do(folder, *flags, "-DPOLICY_SELFTEST", "-Dmain=selftest", "-c", "policy.c", "-o", "tested.o")
        do(folder, *COMMON[:3], "-masm-syntax-unified", *board.flags, "-c", "start.c", "-o", "start.o")
        do(folder, *flags, "-nostartfiles", "-Tboard.ld", "start.o", "tested.o", "-lm", "-o", "all.elf")
        text, data, bss = do(folder, "arm-none-eabi-size", "policy.o").splitlines()[1].split()[:3]
        depths = [int(line.split("\t")[1]) for line in (folder / "policy.su").read_text().splitlines()]
        wrong, calibration, ticks = (int(word) for word in emulate(folder, board).split())
    own = depths[-1]
    return Count(
        flash=int(text) + int(data),
        ram=int(data) + int(bss),
        stack=own + max(depths[:-1], default=0),
        instructions=ticks * 1e6 / calibration / REPEATS,
        wrong=wrong,
    )


def emulate(folder: Path, board: Board) -> str:
    """Run the program on the board, and return what it says."""
    semihosting = ("-semihosting-config", "enable=on,target=native", "-display", "none", "-monitor", "none")
    clock = ("-icount", "shift=0", "-serial", "null")
    return do(folder, "qemu-system-arm", "-M", board.machine, *semihosting, *clock, "-kernel", "all.elf")


def do(folder: Path, *command: str) -> str:
    """Run a command and return what it prints; raise with what it says where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
