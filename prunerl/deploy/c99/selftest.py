"""A test that travels with the C file: observations with the actions that are expected for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prunerl.deploy.c99.text import Table, define, number
from prunerl.deploy.program import Program
from prunerl.errors import ExportError

MOST = 125
"""Largest exit status: those above have other meanings in a shell."""


class Selftest(NamedTuple):
    """What is expected of a policy; of one with memory it is one sequence, from an empty memory.

    Attributes:
        observations: Shape (decisions, *observation).
        actions: Shape (decisions, *action), such as from :func:`prunerl.deploy.interpret.run`.
        allowed: Shape (decisions, choices), for a policy that takes a mask of allowed actions.
        tolerance: Largest difference of a continuous action, relative where it is above 1.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    allowed: NDArray[np.bool_] | None = None
    tolerance: float = 1e-4


def text(program: Program, test: Selftest, name: str) -> str:
    """Write the test as a ``main`` that returns the number of actions that are not as expected, at most 125.

    Raises:
        ExportError: The arrays do not fit each other or the program.
    """
    n = len(test.observations)
    entries = int(np.prod(program.shapes[program.action]))
    _check(n, test.observations, int(np.prod(program.observation_shape)), "observations")
    _check(n, test.actions, entries, "actions")
    tables = [
        Table(f"{name}_test_observations", test.observations.astype(np.float32)),
        Table(f"{name}_test_actions", test.actions.astype(np.float32)),
    ]
    arguments = f"{name}_test_observations + i * {test.observations.size // n}, action"
    if program.allowed:
        if test.allowed is None:
            raise ExportError("The self-test of a policy with action masks needs them. Give allowed= as well.")
        _check(n, test.allowed, program.allowed, "allowed")
        tables.append(Table(f"{name}_test_allowed", test.allowed.astype(np.uint8)))
        arguments += f", {name}_test_allowed + i * {program.allowed}"
    reset = f"    {name}_reset();\n" if program.memory else ""
    tolerance = 0.0 if program.action_dtype != "float32" else test.tolerance
    return f"""
#ifdef {name.upper()}_SELFTEST
{chr(10).join(define(table) for table in tables)}

int main(void)
{{
    int32_t wrong = 0;
{reset}    for (int32_t i = 0; i < {n}; i++) {{
        float action[{entries}];
        int32_t differs = 0;
        {name}({arguments});
        for (int32_t k = 0; k < {entries}; k++) {{
            const float expected = {name}_test_actions[i * {entries} + k];
            const float most = {number(tolerance)} * (fabsf(expected) > 1.0f ? fabsf(expected) : 1.0f);
            const int32_t both = isnan(expected) && isnan(action[k]);
            differs |= !(fabsf(action[k] - expected) <= most) && !both;
        }}
        wrong += differs;
    }}
    return wrong < {MOST} ? (int)wrong : {MOST};
}}
#endif
"""


def _check(n: int, array: NDArray[Any], entries: int, what: str) -> None:
    if not n or len(array) != n or array.size != n * entries:
        raise ExportError(
            f"The self-test's {what} have shape {array.shape}, but {max(n, 1)} × {entries} entries are needed. "
            "Give as many actions (and masks) as observations."
        )
