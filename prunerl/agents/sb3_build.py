"""Build live Stable-Baselines3 policies and models from an agent's tensors, whose shapes say the widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from prunerl.agents.sb3_algorithms import ALGORITHMS, algorithm_class, critics, first_layer, layers, widths
from prunerl.agents.sb3_env import seen_space
from prunerl.agents.sb3_extractors import STANDARD, Narrowed
from prunerl.agents.sb3_optimizers import load_entropy, load_moments, moments_of
from prunerl.agents.sb3_settings import Settings
from prunerl.types import State

EXTRACTOR = "features_extractor."


class Described(Protocol):
    """What a model can be built from."""

    @property
    def algorithm(self) -> str:
        """Name of the algorithm."""

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """The environment's observations and actions."""

    @property
    def settings(self) -> Settings:
        """What the tensors do not say."""

    @property
    def state(self) -> State:
        """The tensors, each one under its first name in the policy."""


def model_spaces(agent: Described) -> tuple[gym.Space[Any], gym.Space[Any]]:
    """Return the spaces as the model has them."""
    return seen_space(agent.spaces[0], agent.settings.normalization), agent.spaces[1]


def policy_kwargs(agent: Described) -> dict[str, Any]:
    """Return the policy's keyword arguments: those that were given, and the widths of the tensors."""
    tensors, family = agent.state.tensors, ALGORITHMS[agent.algorithm].family
    result = {**agent.settings.policy, **_WIDTHS[family](agent.algorithm, tensors, agent.spaces[1])}
    if family != "search":
        result |= extractor_kwargs(agent)
    return result


def _actor_critic(algorithm: str, tensors: Mapping[str, Tensor], space: gym.Space[Any]) -> dict[str, Any]:
    pi, vf = (widths(tensors, f"mlp_extractor.{part}_net") for part in ("policy", "value"))
    return {"net_arch": {"pi": pi, "vf": vf}}


def _recurrent(algorithm: str, tensors: Mapping[str, Tensor], space: gym.Space[Any]) -> dict[str, Any]:
    separate = "lstm_critic.weight_hh_l0" in tensors
    return {
        **_actor_critic(algorithm, tensors, space),
        "lstm_hidden_size": tensors["lstm_actor.weight_hh_l0"].shape[1],
        "n_lstm_layers": sum(name.startswith("lstm_actor.weight_hh_l") for name in tensors),
        "enable_critic_lstm": separate,
        "shared_lstm": not separate and "critic.weight" not in tensors,
    }


def _q_network(algorithm: str, tensors: Mapping[str, Tensor], space: gym.Space[Any]) -> dict[str, Any]:
    if algorithm == "dqn":
        return {"net_arch": widths(tensors, "q_net.q_net")[:-1]}
    rows = widths(tensors, "quantile_net.quantile_net")
    assert isinstance(space, spaces.Discrete)
    return {"net_arch": rows[:-1], "n_quantiles": rows[-1] // int(space.n)}


def _stochastic(algorithm: str, tensors: Mapping[str, Tensor], space: gym.Space[Any]) -> dict[str, Any]:
    rows = widths(tensors, "critic.qf0")
    result: dict[str, Any] = {
        "net_arch": {"pi": widths(tensors, "actor.latent_pi"), "qf": rows[:-1]},
        "n_critics": critics(tensors),
        "use_sde": "actor.log_std" in tensors,
    }
    if algorithm == "tqc":
        result["n_quantiles"] = rows[-1]
    if algorithm == "crossq":
        result["batch_norm"] = any(name.endswith(".ra_mean") for name in tensors)
    return result


def _deterministic(algorithm: str, tensors: Mapping[str, Tensor], space: gym.Space[Any]) -> dict[str, Any]:
    pi, qf = (widths(tensors, prefix)[:-1] for prefix in ("actor.mu", "critic.qf0"))
    return {"net_arch": {"pi": pi, "qf": qf}, "n_critics": critics(tensors)}


def _search(algorithm: str, tensors: Mapping[str, Tensor], space: gym.Space[Any]) -> dict[str, Any]:
    biased = any(f"{layer}.bias" in tensors for layer in layers(tensors, "action_net"))
    return {"net_arch": widths(tensors, "action_net")[:-1], "with_bias": biased}


_WIDTHS = {
    "actor_critic": _actor_critic,
    "recurrent": _recurrent,
    "q_network": _q_network,
    "stochastic": _stochastic,
    "deterministic": _deterministic,
    "search": _search,
}


def extractor_tensors(algorithm: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the acting network's features extractor, by their names within it."""
    prefix = f"{ALGORITHMS[algorithm].actor}{EXTRACTOR}"
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def extractor_kwargs(agent: Described) -> dict[str, Any]:
    """Return the class and arguments of the features extractor.

    As far as its class can say the widths of the tensors it is the class that the agent came with, else
    :class:`~prunerl.agents.sb3_extractors.Narrowed`.
    """
    own = extractor_tensors(agent.algorithm, agent.state.tensors)
    base, given = _base(agent, own)
    if not own:
        return {"features_extractor_class": base, "features_extractor_kwargs": given} if given else {}
    with torch.random.fork_rng(devices=[]):
        made = base(model_spaces(agent)[0], **given).state_dict()
    shapes = {name: list(t.shape) for name, t in own.items()}
    if made.keys() != own.keys() or all(list(made[name].shape) == shape for name, shape in shapes.items()):
        return {"features_extractor_class": base, "features_extractor_kwargs": given}
    narrow = {
        "features_dim": agent.state.tensors[_reader(agent)].shape[1],
        "base": next((name for name, known in STANDARD.items() if known is base), base),
        "base_kwargs": given,
        "shapes": shapes,
    }
    return {"features_extractor_class": Narrowed, "features_extractor_kwargs": narrow}


def _base(agent: Described, own: Mapping[str, Tensor]) -> tuple[Any, dict[str, Any]]:
    """Return the extractor's own class and its arguments, with the widths that it can say."""
    given = dict(agent.settings.policy.get("features_extractor_kwargs") or {})
    base = agent.settings.policy.get("features_extractor_class")
    if base is None:
        base = CombinedExtractor if isinstance(agent.spaces[0], spaces.Dict) else NatureCNN if own else FlattenExtractor
    if base in (NatureCNN, CombinedExtractor) and not agent.settings.policy.get("normalize_images", True):
        given["normalized_image"] = True
    if base is NatureCNN and "linear.0.weight" in own:
        given["features_dim"] = own["linear.0.weight"].shape[0]
    if base is CombinedExtractor:
        made = [t.shape[0] for name, t in own.items() if name.endswith(".linear.0.weight")]
        if made:
            given["cnn_output_dim"] = made[0]
    return base, given


def _reader(agent: Described) -> str:
    """Return the name of the weight that reads the features."""
    if ALGORITHMS[agent.algorithm].family == "recurrent":
        return "lstm_actor.weight_ih_l0"
    return f"{first_layer(agent.algorithm, agent.state.tensors)}.weight"


def alias(agent: Described) -> str:
    """Return the name by which the algorithm knows its policy class."""
    if isinstance(agent.spaces[0], spaces.Dict):
        name = "MultiInputPolicy"
    else:
        base = agent.settings.policy.get("features_extractor_class")
        seen = model_spaces(agent)[0]
        convolves = bool(extractor_tensors(agent.algorithm, agent.state.tensors)) and base in (None, NatureCNN)
        name = "CnnPolicy" if convolves and is_image_space(seen) else "MlpPolicy"
    if ALGORITHMS[agent.algorithm].family == "recurrent":
        name = name.replace("Policy", "LstmPolicy")
    return name if name in algorithm_class(agent.algorithm).policy_aliases else "MlpPolicy"


def build_policy(agent: Described, *, load: bool = True, cls: Any = None) -> Any:
    """Build the policy alone, in evaluation mode; of the algorithm's own class, or another one."""
    from stable_baselines3.common.utils import ConstantSchedule

    cls = cls or algorithm_class(agent.algorithm).policy_aliases[alias(agent)]
    kwargs = policy_kwargs(agent)
    family = ALGORITHMS[agent.algorithm].family
    if family in ("actor_critic", "recurrent") and "use_sde" in agent.settings.arguments:
        kwargs.setdefault("use_sde", bool(agent.settings.arguments["use_sde"]))
    schedule = () if family == "search" else (ConstantSchedule(3e-4),)
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten; the user's stream stays as it is
        policy: BasePolicy = cls(*model_spaces(agent), *schedule, **kwargs)
    if load:
        policy.load_state_dict(with_aliases(policy, agent.state.tensors), strict=True)
    policy.set_training_mode(False)
    return policy


def aliases(policy: Any) -> dict[str, str]:
    """Return second names of tensors, such as those of a shared features extractor, → their first names."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(t), name) for name, t in policy.state_dict(keep_vars=True).items()}
    return {name: original for name, original in names.items() if name != original}


def with_aliases(policy: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a whole state dict of the policy."""
    return {**tensors, **{name: tensors[first] for name, first in aliases(policy).items() if first in tensors}}


def build_model(agent: Described, env: VecEnv | None) -> BaseAlgorithm:
    """Build the live model with its weights, optimizers and entropy coefficient."""
    model: Any = _skeleton(agent, env)
    model.policy.load_state_dict(with_aliases(model.policy, agent.state.tensors), strict=True)
    if ALGORITHMS[agent.algorithm].family == "search":
        model.weights = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()
    load_moments(model.policy, agent.state.moments, agent.settings.optimizers)
    load_entropy(agent.settings.entropy, model)
    for name, value in agent.settings.counters.items():
        setattr(model, name, value)
    state = agent.settings.live.action_space_random
    if state is not None:
        model.action_space.np_random.bit_generator.state = state
    return model  # type: ignore[no-any-return]


def _skeleton(agent: Described, env: VecEnv | None) -> Any:
    cls = algorithm_class(agent.algorithm)
    kwargs = policy_kwargs(agent)
    kwargs.pop("use_sde", None)
    arguments = {**agent.settings.arguments, "policy_kwargs": kwargs, "device": "cpu"}
    with torch.random.fork_rng(devices=[]):
        model = cls(alias(agent), env, _init_setup_model=False, **arguments)
        if env is None:
            model.observation_space, model.action_space = model_spaces(agent)
            model.n_envs = agent.settings.n_envs
        has_buffer = hasattr(model, "replay_buffer")
        if has_buffer:
            # To act and to save, no buffer is needed; one of the size for training can take all memory.
            model.replay_buffer = agent.settings.live.replay_buffer or (object() if env is None else None)
        model._setup_model()
        if has_buffer and env is None:
            model.replay_buffer = agent.settings.live.replay_buffer
        elif has_buffer and getattr(model.replay_buffer, "env", env) is None:
            model.replay_buffer.set_env(model.env)  # hindsight asks it for rewards; copies are made without it
    return model


def state_of(model: Any, masks: Mapping[str, Tensor]) -> State:
    """Return the tensors and moments of a live model."""
    second = aliases(model.policy)
    tensors = {n: t.detach().clone() for n, t in model.policy.state_dict().items() if n not in second}
    return State(tensors, moments_of(model.policy), dict(masks))
