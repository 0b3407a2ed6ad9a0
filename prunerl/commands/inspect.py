"""``prunerl inspect``: print an agent's networks, layers and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunerl.commands.source import Source, load
from prunerl.commands.table import aligned

if TYPE_CHECKING:
    from prunerl.types import Agent


@dataclass(frozen=True, kw_only=True)
class Arguments(Source):
    """What ``prunerl inspect`` takes."""


def run(args: Arguments) -> None:
    """Print an agent's networks, layers and groups."""
    import numpy as np

    from prunerl import cost, environments, heads
    from prunerl.trace import layer_groups, matrix, unit_groups
    from prunerl.visits import trace_policy

    agent = load(args)
    env = environments.make(agent.env)
    env.observation_space.seed(0)
    space = env.observation_space
    observations = np.stack([environments.pack(space, space.sample()) for _ in range(3)])
    env.close()
    tensors = agent.state.tensors
    prepared = heads.prepare(agent.policy, observations)
    traced = trace_policy(
        agent.policy, prepared.unsqueeze(1).expand(3, 2, *prepared.shape[1:]) if agent.policy.memory else prepared
    )
    own = cost.size(traced, tensors)
    print(f"{agent.algorithm} on {agent.env.id}: {own.parameters:,} parameters act, {own.macs:,} multiply–accumulates")
    networks = [("the policy, which acts", f"{own.parameters:,}"), *_others(agent, traced.parameters)]
    print(aligned(("network", "parameters"), networks))
    layers = [
        (
            e.name,
            f"{w.shape[1]:,} → {w.shape[0]:,}",
            f"{w.numel() * e.positions:,}",
            ", ".join(e.reads) or "observation",
            ", ".join(e.makes) or ("actions" if e.name == traced.output else "kept whole"),
        )
        for e in traced.layers
        for w in (matrix(e, tensors),)
    ]
    print(aligned(("layer", "shape", "multiply–accumulates", "reads", "makes"), layers))
    whole = {group.name for group in layer_groups(traced, agent.stacks)}
    groups = [
        (
            g.name,
            f"{g.units:,}",
            "yes" if g.name in whole else "no",
            ", ".join(f"{s.tensor}[{s.dim}]" for s in g.slices),
        )
        for g in unit_groups(traced, tensors)
    ]
    print(aligned(("group", "units", "layer can go", "a unit owns (tensor[dimension])"), groups))
    kept = list(traced.kept_whole.items())
    print(aligned(("kept whole", "because"), kept))
    for note in agent.notes:
        print(f"Note: {note}")


def _others(agent: Agent, acting: Sequence[str]) -> list[tuple[str, str]]:
    """Return what else the agent holds, by the networks' names, with its number of parameters."""
    sizes: dict[str, int] = {}
    for name, tensor in agent.state.tensors.items():
        if name not in acting:
            network = ".".join(part for part in name.split(".")[:-1] if not part.isdigit()) or name
            sizes[network] = sizes.get(network, 0) + tensor.numel()
    return [(name, f"{size:,}") for name, size in sizes.items()]
