"""The policy as a type of Python in C: calling it is calling the function, with nothing of Python in between."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunerl.deploy.kernels.calling import CALL
from prunerl.deploy.kernels.forward import CHUNK
from prunerl.deploy.kernels.type import TYPE
from prunerl.deploy.program import Program

NAME = "prunerl_policy"
"""Of the module."""

ARGUMENTS = "const char *, float *, float *, const float *, const unsigned char *, float *"

SUPPORTED = {
    "vnni": "avx512f avx512bw avx512dq avx512vl avx512vnni",
    "v4": "avx512f avx512bw avx512dq avx512vl",
    "v3": "avx2 fma",
}
"""What a processor must have for a level, in the words of ``__builtin_cpu_supports``."""


def source(program: Program, levels: Sequence[str], floats: int, memory: int) -> str:
    """Write the module.

    Args:
        program: The policy.
        levels: Names of its forward functions, the best first; the last one runs anywhere that the module does.
        floats: Of scratch memory.
        memory: Floats that the memory of one observation takes.
    """
    shape, action = program.observation_shape, program.action_shape
    kinds = {"int64": "NPY_INT64", "int8": "NPY_INT8", "float32": "NPY_FLOAT32"}
    defines = {
        "OBS_DIMS": len(shape),
        "OBS_SIZE": math.prod(shape),
        "OBS_SHAPE": _numbers(shape),
        "OBS_WORDS": f'"{shape}"',
        "OBS_FLOATING": int(program.observation_dtype.startswith("float")),
        "ACTION_DIMS": len(action),
        "ACTION_SIZE": math.prod(program.shapes[program.action]),
        "ACTION_SHAPE": _numbers(action),
        "ACTION_TYPE": kinds[program.action_dtype],
        "ACTION_FLOATS": int(program.action_dtype == "float32"),
        "ACTION_INTEGER": int(program.action_dtype == "int64" and not action),
        "ALLOWED": program.allowed,
        "MEMORY": memory,
        "SCRATCH": floats,
        "CHUNK": CHUNK,
        "LEVELS": len(levels),
    }
    head = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    declared = "".join(
        f"int policy_forward_{name}({ARGUMENTS});\nint policy_many_{name}({ARGUMENTS}, long);\n" for name in levels
    )
    tables = "".join(
        f"static const {kind} {table}[] = {{{', '.join(f'policy_{word}_{name}' for name in levels)}}};\n"
        for kind, table, word in (("one", "ONES", "forward"), ("many", "MANY", "many"))
    )
    tests = "".join(f"    if ({_test(name)}) {{\n        return {i};\n    }}\n" for i, name in enumerate(levels[:-1]))
    init = "    __builtin_cpu_init();\n" if tests else ""
    choice = f"static int best(void)\n{{\n{init}{tests}    return {len(levels) - 1};\n}}\n"
    only = f"#define ONE policy_forward_{levels[0]}\n" if len(levels) == 1 else "#define ONE ONES[p->level]\n"
    return HEAD + head + declared + TYPEDEFS + tables + choice + only + CALL + TYPE


def _numbers(shape: Sequence[int]) -> str:
    return "{" + ", ".join(map(str, shape or (0,))) + "}"


def _test(name: str) -> str:
    return " && ".join(f'__builtin_cpu_supports("{word}")' for word in SUPPORTED[name].split())


HEAD = """#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>
#include <stdlib.h>
#include <string.h>

"""

TYPEDEFS = """
typedef int (*one)(const char *, float *, float *, const float *, const unsigned char *, float *);
typedef int (*many)(const char *, float *, float *, const float *, const unsigned char *, float *, long);
"""
