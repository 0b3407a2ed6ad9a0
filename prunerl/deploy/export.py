"""Write a policy as a file for another runtime, read it back there, and check it before it gets its name."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np

from prunerl import environments, files
from prunerl.deploy.formats import FORMATS, Ask
from prunerl.deploy.lower import DTYPES, lower
from prunerl.deploy.passes import simplify
from prunerl.deploy.program import Program
from prunerl.deploy.proof import Proof, prove
from prunerl.deploy.verify import fault
from prunerl.errors import ExportError
from prunerl.types import VERSION, EnvSpec, Policy

EPISODES, TOLERANCE = 20, 0.05


class Deployable(Protocol):
    """An agent, or anything else with a policy and an environment, such as a compressed agent."""

    @property
    def policy(self) -> Policy:
        """What acts."""

    @property
    def env(self) -> EnvSpec:
        """Where."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm that trained it."""


@dataclass(frozen=True)
class Exported:
    """A file that was checked.

    Attributes:
        path: The file; beside it lies ``<name>.json`` with these figures.
        format: Such as ``onnx``.
        bytes: Its size.
        sha256: Its digest.
        proof: How it compares with the agent.
        env, algorithm, seed: What the agent is, where it was checked, and on which master seed.
        opset: Of ONNX's operators, where the format has that.
        versions: Of the libraries that wrote and checked it.
        notes: What was changed on the way, for a reader.
    """

    path: Path
    format: str
    bytes: int
    sha256: str
    proof: Proof
    env: str
    algorithm: str
    seed: int
    opset: int | None
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        opset = f", opset {self.opset}" if self.opset is not None else ""
        told = [f"{self.path}: {self.format}{opset}, {self.bytes:,} bytes, sha256 {self.sha256[:12]}…", str(self.proof)]
        return "\n".join([*told, *(f"Note: {note}" for note in self.notes)])


def export(
    agent: Deployable,
    path: str | Path,
    *,
    format: str | None = None,
    name: str = "policy",
    check_episodes: int = EPISODES,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    opset: int | None = None,
    sparse: float | bool = True,
    unroll: bool | None = None,
    force: bool = False,
) -> Exported:
    """Write an agent's policy, raw observation to environment action, and prove that the file acts as the agent.

    The file is read back by its own runtime. Its actions must be the agent's in at least 1,000 states that the agent
    visits, up to ties in float32, and its return on the same seeds must not be worse. Only then it gets its name, and
    the figures are written beside it as ``<path>.json``. A compressed agent is compared as it acts when deployed.

    Args:
        agent: An agent, or a compressed one.
        path: Where to; the suffix says the format: ``.c``, ``.h``, ``.onnx``, ``.pt2``, ``.tflite`` or
            ``.safetensors``.
        format: The format, where the suffix does not say it.
        name: Of the function in C and of the graph in ONNX.
        check_episodes: Episodes to play with each; more are played where those cannot tell.
        tolerance: Largest loss of return that passes; 1 is the agent's gain over the random policy.
        seed: Master seed of the check.
        opset: Version of ONNX's operators; 21 by default.
        sparse, unroll: How C stores matrices, see :func:`prunerl.deploy.c_export.c_source`.
        force: Write over a file that is there.

    Returns:
        The file and the figures.

    Raises:
        ExportError: The format or what it needs is missing, it has no form of an operation, or the file does not agree
            with the agent. Then nothing is written.
        LowerError: The network cannot be lowered to a program.
        EnvironmentFailure: The environment failed.
        RunError: The file cannot be written.
    """
    target = Path(path)
    kind = _kind(target, format, opset, check_episodes)
    if target.exists() and not force:
        raise ExportError(f"There is something at {str(target)!r} already. Choose another path, or give force=True.")
    if not target.parent.is_dir():
        raise ExportError(f"There is no folder {str(target.parent)!r}. Create it first.")
    program = program_of(agent)
    how, ask = FORMATS[kind], Ask(name, _opset(kind, opset), sparse, unroll)
    data = how.write(program, ask)
    with tempfile.TemporaryDirectory(prefix="prunerl-") as folder:
        copy = Path(folder) / f"policy.{kind}"
        copy.write_bytes(data)
        proof = prove(
            how.player(copy, program, ask),
            program,
            getattr(agent, "deployed", agent.policy),
            agent.env,
            episodes=check_episodes,
            seed=seed,
            tolerance=tolerance,
        )
    if not proof.holds:
        raise ExportError(f"The {kind} file does not act as the agent, and was not written: {proof}. Report this.")
    exported = Exported(
        target, kind, len(data), files.digest(data), proof, agent.env.id, agent.algorithm, seed, ask.opset,
        _versions(how.libraries), program.notes,
    )  # fmt: skip
    files.write_atomically(target, data)
    files.write_atomically(target.with_name(f"{target.name}.json"), figures(exported))
    return exported


def program_of(agent: Deployable) -> Program:
    """Lower an agent's policy, for observations of the type that its environment gives.

    Raises:
        ExportError: The program is not whole, for instance because a weight is not finite.
        LowerError: The network cannot be lowered.
    """
    made = environments.make(agent.env)
    space = made.observation_space
    made.close()
    dtype = str(np.dtype(space.dtype)) if space.dtype is not None else "float32"
    lowered = lower(agent.policy, getattr(agent, "codings", {}), dtype=dtype if dtype in DTYPES else None)
    program = simplify(lowered)
    program = replace(program, notes=(*program.notes, *environments.described(agent.env)))
    wrong = fault(program)
    if wrong is not None:
        raise ExportError(f"This policy cannot be exported: {wrong}.")
    return program


def figures(exported: Exported) -> str:
    """Return the JSON that lies beside an exported file."""
    told = asdict(exported)
    told["path"] = exported.path.name
    told["python"] = sys.version.split()[0]
    return json.dumps(told, indent=2) + "\n"


def _kind(target: Path, format: str | None, opset: int | None, check_episodes: int) -> str:
    kind = format if format is not None else target.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ExportError(
            f"{str(target)!r}: there is no format {kind!r}. Give the path one of the suffixes "
            f"{', '.join('.' + known for known in FORMATS)}, or name the format."
        )
    if opset is not None and kind != "onnx":
        raise ExportError(f"opset={opset} is for ONNX files; {kind} has none. Leave it out.")
    if check_episodes < 2:
        raise ExportError(f"check_episodes={check_episodes} are too few for an interval. Give 2 or more.")
    return kind


def _opset(kind: str, opset: int | None) -> int | None:
    from prunerl.deploy.onnx.write import OPSET

    return (OPSET if opset is None else opset) if kind == "onnx" else None


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    return {"prunerl": VERSION, **{name: metadata.version(name) for name in ("numpy", "torch", *libraries)}}
