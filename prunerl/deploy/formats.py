"""What a policy can be exported as: how each format is written, and how its file is played.

A format's libraries are imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prunerl.deploy.play import Player, program_player
from prunerl.deploy.program import Program


@dataclass(frozen=True)
class Ask:
    """What was asked for, beside the program; ``sparse`` and ``unroll`` are those of C."""

    name: str
    opset: int | None = None
    sparse: float | bool = True
    unroll: bool | None = None


@dataclass(frozen=True)
class Format:
    """How a format is written, and how its file is played; ``libraries`` are those whose versions matter."""

    write: Callable[[Program, Ask], bytes]
    player: Callable[[Path, Program, Ask], Player]
    libraries: tuple[str, ...] = ()


def _write_c(program: Program, ask: Ask) -> bytes:
    from prunerl.deploy.c_export import c_source

    return c_source(program, name=ask.name, sparse=ask.sparse, unroll=ask.unroll).encode()


def _write_h(program: Program, ask: Ask) -> bytes:
    from prunerl.deploy.c_export import c_header

    return c_header(program, name=ask.name, sparse=ask.sparse, unroll=ask.unroll).encode()


def _c_player(path: Path, program: Program, ask: Ask) -> Player:
    from prunerl.deploy.c_player import c_player

    act, reset = c_player(path, program, ask.name)
    return Player(act, reset)


def _write_onnx(program: Program, ask: Ask) -> bytes:
    from prunerl.deploy.onnx.write import OPSET, onnx_bytes

    return onnx_bytes(program, name=ask.name, opset=OPSET if ask.opset is None else ask.opset)


def _onnx_player(path: Path, program: Program, ask: Ask) -> Player:
    from prunerl.deploy.onnx.write import onnx_player

    return program_player(program, onnx_player(path))


def _write_pt2(program: Program, ask: Ask) -> bytes:
    from prunerl.deploy.torch.pt2 import pt2_bytes

    return pt2_bytes(program)


def _pt2_player(path: Path, program: Program, ask: Ask) -> Player:
    from prunerl.deploy.torch.pt2 import pt2_player

    return program_player(program, pt2_player(path))


def _write_tflite(program: Program, ask: Ask) -> bytes:
    from prunerl.deploy.tflite.write import tflite_bytes

    return tflite_bytes(program)


def _tflite_player(path: Path, program: Program, ask: Ask) -> Player:
    from prunerl.deploy.tflite.write import tflite_player

    return program_player(program, tflite_player(path))


def _write_safetensors(program: Program, ask: Ask) -> bytes:
    from prunerl.deploy.tensors import program_bytes

    return program_bytes(program)


def _safetensors_player(path: Path, program: Program, ask: Ask) -> Player:
    from prunerl.deploy.interpret import run
    from prunerl.deploy.tensors import load_program

    loaded = load_program(path)
    return program_player(loaded, lambda observations, memory, may: run(loaded, observations, memory, may))


FORMATS: Mapping[str, Format] = {
    "c": Format(_write_c, _c_player),
    "h": Format(_write_h, _c_player),
    "onnx": Format(_write_onnx, _onnx_player, ("onnx", "onnxruntime")),
    "pt2": Format(_write_pt2, _pt2_player),
    "tflite": Format(_write_tflite, _tflite_player, ("ai-edge-litert",)),
    "safetensors": Format(_write_safetensors, _safetensors_player, ("safetensors",)),
}
"""What a policy can be exported as, by its suffix."""
