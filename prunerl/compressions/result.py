"""What a compression gives: the agent, how each step was judged, and the table that compares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunerl.deploy.lower import lower
from prunerl.deploy.program import Coding
from prunerl.deploy.tensors import program_bytes
from prunerl.files import write_atomically
from prunerl.types import EnvSpec, Policy, Stage, Verdict


@dataclass(frozen=True, eq=False)
class Compressed:
    """An agent whose weights are stored in fewer bytes.

    Attributes:
        policy: What is lowered: its network has the compressed values, and two layers where one was factorised.
        deployed: How it acts when deployed: where a coding has an ``input_scale``, that layer's inputs are rounded.
        codings: How weights are stored, by the name of the parameter of ``policy``'s network.
        env: The environment that it acts in.
        algorithm: Name of the algorithm that trained it.
        notes: What was left as it was, and why.
    """

    policy: Policy
    deployed: Policy
    codings: Mapping[str, Coding]
    env: EnvSpec
    algorithm: str
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path, *, dtype: str | None = None) -> None:
        """Write the lowered policy as a safetensors file with packed codes.

        :func:`prunerl.deploy.tensors.load_program` reads it, and :func:`prunerl.deploy.interpret.run` runs it; both
        need NumPy alone.

        Args:
            path: The file.
            dtype: NumPy name of the raw observation's type; see :func:`prunerl.deploy.lower.lower`.

        Raises:
            LowerError: The network uses what a program does not have.
            ExportError: The program is not whole, for instance because a weight is not finite.
            RunError: The file cannot be written.
        """
        write_atomically(path, program_bytes(lower(self.policy, self.codings, dtype=dtype)))


@dataclass(frozen=True)
class Step:
    """One compression that was tried.

    Attributes:
        name: Such as ``int8``.
        stages: How it was judged on the selection seeds: as made, and distilled where that was needed.
        kept: Whether it is in the result.
        parameters, bytes, macs: Numbers of the network, what they are stored in, and MACs of one decision, with it.
        refused: The verdict on fresh seeds by which it was taken back, if so.
    """

    name: str
    stages: tuple[Stage, ...]
    kept: bool
    parameters: int
    bytes: int
    macs: int
    refused: Verdict | None = None

    def __str__(self) -> str:
        judged = "; ".join(f"{s.name}: {s.verdict.normalized:.3f} of the return" for s in self.stages)
        reason = " by the confirmation" if self.refused is not None else ""
        return f"{self.name}: {self.bytes:,} bytes, {judged} → {'kept' if self.kept else 'taken back' + reason}"


@dataclass(frozen=True)
class Row:
    """One agent of the table.

    Attributes:
        name: ``reference``, ``given``, ``compressed``, or ``not compressed`` where nothing passed.
        parameters: Numbers of the network that acts.
        bytes: What they are stored in.
        macs: Multiply–accumulates of one decision.
        verdict: On the confirmation seeds.
    """

    name: str
    parameters: int
    bytes: int
    macs: int
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class CompressResult:
    """What :func:`prunerl.compress.compress` returns.

    Attributes:
        agent: The compressed agent; the given one's network where no compression passed.
        stages: The compressions that were tried, in order.
        rows: The reference, the given agent where it is another, and the result, on fresh seeds.
        seconds: What it took.
    """

    agent: Compressed
    stages: tuple[Step, ...]
    rows: tuple[Row, ...]
    seconds: float

    @property
    def satisfied(self) -> bool:
        """Whether the result was confirmed to be not worse than the reference."""
        return self.rows[-1].verdict.satisfied

    def __str__(self) -> str:
        head = f"{'':<15}{'parameters':>11}{'bytes':>11}{'MACs':>11}{'return':>10}  difference"
        lines = [str(step) for step in self.stages]
        for row in self.rows:
            low, high = row.verdict.interval
            said = "" if row is self.rows[0] else f"[{low:+.3f}, {high:+.3f}] {_said(row.verdict)}"
            mean = float(np.mean(row.verdict.pruned))
            head += f"\n{row.name:<15}{row.parameters:>11,}{row.bytes:>11,}{row.macs:>11,}{mean:>10.4g}  {said}"
        return "\n".join([*lines, "", head, *self.agent.notes])


def _said(verdict: Verdict) -> str:
    return f"{'not worse' if verdict.satisfied else 'NOT shown to be as good'} (tolerance {verdict.tolerance:g})"
