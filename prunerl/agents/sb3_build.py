"""Build live Stable-Baselines3 policies and models from an agent's tensors, whose shapes say the widths."""

from __future__ import annotations

import sys
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

from prunerl.agents.sb3_algorithms import ALGORITHMS, algorithm_class, critics, layers, widths
from prunerl.agents.sb3_env import seen_space
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
    """Return the class and arguments of the features extractor; widths of the known ones are read off the tensors."""
    own = extractor_tensors(agent.algorithm, agent.state.tensors)
    given = dict(agent.settings.policy.get("features_extractor_kwargs") or {})
    base = agent.settings.policy.get("features_extractor_class")
    if base is None:
        base = CombinedExtractor if isinstance(agent.spaces[0], spaces.Dict) else NatureCNN if own else FlattenExtractor
    if base is NatureCNN and "linear.0.weight" in own:
        given["features_dim"] = own["linear.0.weight"].shape[0]
    if base is CombinedExtractor:
        outputs = [t.shape[0] for name, t in own.items() if name.endswith(".linear.0.weight")]
        if outputs:
            given["cnn_output_dim"] = outputs[0]
    return {"features_extractor_class": base, "features_extractor_kwargs": given} if given or own else {}


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


def build_policy(agent: Described, *, load: bool = True) -> Any:
    """Build the policy alone, in evaluation mode."""
    from stable_baselines3.common.utils import ConstantSchedule

    cls: Any = algorithm_class(agent.algorithm).policy_aliases[alias(agent)]
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
    for name, optimizer in optimizers(model).items():
        _load_optimizer(agent, name, optimizer, parameter_names(model, optimizer))
    _load_entropy(agent.settings.entropy, model)
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
    return model


def optimizers(model: Any) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of a live model's networks, by the names that its zip gives them."""
    found = {
        "policy.optimizer": getattr(model.policy, "optimizer", None),
        "actor.optimizer": getattr(getattr(model.policy, "actor", None), "optimizer", None),
        "critic.optimizer": getattr(getattr(model.policy, "critic", None), "optimizer", None),
    }
    return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


def parameter_names(model: Any, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of an optimizer's parameters, in its order."""
    names = {id(p): n for n, p in model.policy.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _load_optimizer(agent: Described, name: str, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
    moments = agent.state.moments
    options = agent.settings.optimizers.get(name, {})
    fresh = optimizer.state_dict()
    groups = [{**g, **_known(options, g), "params": g["params"]} for g in fresh["param_groups"]]
    # Interned, since a pickle writes equal keys once only when they are one object: equal agents give equal files.
    state = {i: {sys.intern(k): v.clone() for k, v in moments[n].items()} for i, n in enumerate(names) if n in moments}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _known(options: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in group and k not in ("params", "lr")}


def _load_entropy(entropy: Mapping[str, Any], model: Any) -> None:
    if "log_ent_coef" in entropy and getattr(model, "log_ent_coef", None) is not None:
        model.log_ent_coef.data.copy_(entropy["log_ent_coef"])
        if "moments" in entropy:
            fresh = model.ent_coef_optimizer.state_dict()
            kept = {sys.intern(k): torch.as_tensor(v).clone() for k, v in entropy["moments"].items()}
            model.ent_coef_optimizer.load_state_dict({"state": {0: kept}, "param_groups": fresh["param_groups"]})
    elif "ent_coef_tensor" in entropy and hasattr(model, "ent_coef_tensor"):
        model.ent_coef_tensor = entropy["ent_coef_tensor"].clone()


def state_of(model: Any, masks: Mapping[str, Tensor]) -> State:
    """Return the tensors and moments of a live model."""
    second = aliases(model.policy)
    tensors = {n: t.detach().clone() for n, t in model.policy.state_dict().items() if n not in second}
    moments: dict[str, dict[str, Tensor]] = {}
    for optimizer in optimizers(model).values():
        names = parameter_names(model, optimizer)
        for i, entries in optimizer.state_dict()["state"].items():
            moments[names[i]] = {k: torch.as_tensor(v).clone() for k, v in entries.items() if v is not None}
    return State(tensors, moments, dict(masks))


def entropy_of(model: Any) -> dict[str, Any]:
    """Return the entropy coefficient of a live model, and its optimizer's state."""
    if getattr(model, "log_ent_coef", None) is not None:
        result: dict[str, Any] = {"log_ent_coef": model.log_ent_coef.detach().clone()}
        moments = model.ent_coef_optimizer.state_dict()["state"].get(0)
        if moments is not None:
            result["moments"] = {k: torch.as_tensor(v).clone() for k, v in moments.items() if v is not None}
        return result
    fixed = getattr(model, "ent_coef_tensor", None)
    return {} if fixed is None else {"ent_coef_tensor": fixed.detach().clone()}


class Networks:
    """A policy without its algorithm, for those functions above that only look at a model's networks."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
