"""What follows in the rest of a Stable-Baselines3 agent when the network that acts, or a critic, is cut."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunerl.agents.sb3_algorithms import ALGORITHMS, critics, first_layer, last_layer, layers
from prunerl.types import Tie

Tensors = Mapping[str, Tensor]


def ties(algorithm: str, tensors: Tensors) -> tuple[Tie, ...]:
    """Return the ties; what follows comes before what follows it in turn.

    - Exploration noise follows the last hidden layer.
    - Stable-Baselines3 has one class and one set of arguments for the features extractors of all networks, and one
      size for the LSTMs: those of critics follow the actor's, unit by unit.
    - Target networks are copies of the online ones.
    """
    family = ALGORITHMS[algorithm].family
    found = _noise(algorithm, tensors)
    if family in ("actor_critic", "recurrent"):
        found += _value_side(algorithm, tensors)
    elif family in ("stochastic", "deterministic"):
        found += _critic_side(algorithm, tensors)
    return (*found, *_targets(tensors))


def _noise(algorithm: str, tensors: Tensors) -> list[Tie]:
    mean = f"{last_layer(algorithm, tensors)}.weight"
    if "actor.log_std.weight" in tensors:
        return [Tie(mean, 1, "actor.log_std.weight", 1, copies=False)]
    for name in ("actor.log_std", "log_std"):  # a matrix in gSDE
        if name in tensors and tensors[name].dim() == 2:
            return [Tie(mean, 1, name, 0, copies=False)]
    return []


def _value_side(algorithm: str, tensors: Tensors) -> list[Tie]:
    """Let the value network follow the features extractor and the LSTM that it shares, or has alike."""
    found = _alike(tensors, "features_extractor.", "vf_features_extractor.")
    found += _alike(tensors, "lstm_actor.", "lstm_critic.")
    reader = f"{first_layer(algorithm, tensors)}.weight"
    hidden = layers(tensors, "mlp_extractor.value_net")
    value = f"{hidden[0] if hidden else 'value_net'}.weight"
    recurrent = ALGORITHMS[algorithm].family == "recurrent"
    if recurrent or _has(tensors, "features_extractor."):
        found.append(Tie(reader, 1, value, 1, copies=False))
    if recurrent and "critic.weight" in tensors:  # a linear layer in the place of the critic's LSTM
        found += [Tie(reader, 1, f"critic.{part}", 0, copies=False) for part in ("weight", "bias")]
        found.append(Tie("lstm_actor.weight_ih_l0", 1, "critic.weight", 1, copies=False))
    return found


def _critic_side(algorithm: str, tensors: Tensors) -> list[Tie]:
    """Let the Q critics follow the features extractor that they share, or have alike."""
    if not _has(tensors, "actor.features_extractor."):
        return []
    reader = f"{first_layer(algorithm, tensors)}.weight"
    heads = [layers(tensors, f"critic.qf{i}")[0] for i in range(critics(tensors))]
    normalised = [
        f"critic.qf{i}.0.{part}" for i in range(critics(tensors)) for part in ("ra_mean", "ra_var", "scale", "bias")
    ]
    return [
        *_alike(tensors, "actor.features_extractor.", "critic.features_extractor."),
        *(Tie(reader, 1, f"{head}.weight", 1, copies=False) for head in heads),
        *(Tie(reader, 1, name, 0, copies=False) for name in normalised if _normalises(tensors, name)),
    ]


def _normalises(tensors: Tensors, name: str) -> bool:
    return name in tensors and f"{name.rpartition('.')[0]}.ra_mean" in tensors


def _targets(tensors: Tensors) -> list[Tie]:
    found = []
    for target in tensors:
        network, _, rest = target.partition(".")
        if not network.endswith("_target"):
            continue
        source = f"{network.removesuffix('_target')}.{rest}"
        if source not in tensors:  # the critic's extractor is the actor's own
            source = f"actor.{rest}"
        found += [Tie(source, d, target, d) for d in range(tensors[target].dim())]
    return found


def _alike(tensors: Tensors, actor: str, critic: str) -> list[Tie]:
    pairs = [(actor + name.removeprefix(critic), name) for name in tensors if name.startswith(critic)]
    return [Tie(s, d, t, d, copies=False) for s, t in pairs if s in tensors for d in range(tensors[t].dim())]


def _has(tensors: Tensors, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)
