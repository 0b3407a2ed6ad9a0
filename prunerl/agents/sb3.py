"""Stable-Baselines3 PPO, A2C and DQN with ``MlpPolicy``."""

from __future__ import annotations

import io
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor, nn

from prunerl import environments
from prunerl.agents import sb3_zip
from prunerl.errors import EnvironmentFailure, LoadError, PruneError, SpaceError
from prunerl.types import Critic, EnvSpec, Head, Normalizer, Policy, State, Tie

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "a2c": A2C, "dqn": DQN}

_CONSTRUCTOR = (
    "gamma gae_lambda ent_coef vf_coef max_grad_norm n_steps batch_size n_epochs clip_range_vf normalize_advantage "
    "target_kl use_sde sde_sample_freq buffer_size learning_starts tau gradient_steps target_update_interval "
    "exploration_fraction exploration_initial_eps exploration_final_eps optimize_memory_usage verbose seed"
).split()
_COUNTERS = (
    "num_timesteps _total_timesteps _num_timesteps_at_start _n_updates _n_calls _episode_num exploration_rate "
    "_current_progress_remaining"
).split()
_STACKS = {
    "on_policy": ("mlp_extractor.policy_net", "mlp_extractor.value_net"),
    "dqn": ("q_net.q_net", "q_net_target.q_net"),
}
_CLIP_RANGE = 0.2


@dataclass(frozen=True, eq=False)
class Settings:
    """What a model is built from, besides its tensors.

    Attributes:
        arguments: Keyword arguments of the algorithm's constructor.
        policy: Keyword arguments of the policy, without its widths.
        counters: Attributes that training goes on from.
        optimizer: Options of the optimizer's parameter group.
        normalization: Settings and statistics of ``VecNormalize``, or None.
        n_envs: Number of environments in training.
    """

    arguments: Mapping[str, Any]
    policy: Mapping[str, Any]
    counters: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    normalization: Mapping[str, Any] | None
    n_envs: int


@dataclass(frozen=True, eq=False)
class SB3Agent:
    """A Stable-Baselines3 agent as data; the live model is built from it when it is needed."""

    algorithm: str
    env: EnvSpec
    spaces: tuple[gym.Space[Any], gym.Space[Any]]
    settings: Settings
    state: State
    notes: tuple[str, ...] = ()

    @cached_property
    def policy(self) -> Policy:
        """What is deployed."""
        built = _build_policy(self)
        observation_space, action_space = self.spaces
        actor = (_QNetwork if self.algorithm == "dqn" else _Actor)(built, observation_space)
        actor.requires_grad_(False).eval()
        head = _head(self.algorithm, action_space, built, self.state)
        normalizer = _normalizer(self.settings.normalization)
        return Policy(actor, head, tuple(observation_space.shape or ()), normalizer)

    @property
    def ties(self) -> tuple[Tie, ...]:
        """Target networks follow the online network, gSDE's noise the last hidden layer."""
        if self.algorithm == "dqn":
            online = [(n, t.dim()) for n, t in self.state.tensors.items() if n.startswith("q_net.")]
            return tuple(
                Tie(n, d, n.replace("q_net.", "q_net_target.", 1), d) for n, dims in online for d in range(dims)
            )
        log_std = self.state.tensors.get("log_std")
        if log_std is not None and log_std.dim() == 2:
            return (Tie("action_net.weight", 1, "log_std", 0),)
        return ()

    @property
    def critics(self) -> tuple[Critic, ...]:
        """None yet."""
        return ()

    @property
    def stacks(self) -> tuple[str, ...]:
        """The MLPs."""
        return _STACKS["dqn" if self.algorithm == "dqn" else "on_policy"]

    def with_state(self, state: State) -> SB3Agent:
        """Return the same agent with other tensors; the layers left are numbered anew."""
        prefixes = _STACKS["dqn" if self.algorithm == "dqn" else "on_policy"]
        names = _renumbered(list(state.tensors), prefixes)
        renamed = State(
            {names[n]: t for n, t in state.tensors.items()},
            {names[n]: m for n, m in state.moments.items()},
            {names[n]: m for n, m in state.masks.items()},
        )
        return replace(self, state=renamed)

    def model(self, env: VecEnv | None = None) -> BaseAlgorithm:
        """Build the live Stable-Baselines3 model, optimizer state included."""
        model = _skeleton(self, env)
        model.policy.load_state_dict(dict(self.state.tensors), strict=True)
        _load_optimizer(self, model)
        for name, value in self.settings.counters.items():
            setattr(model, name, value)
        return model

    def learn(self, steps: int, *, seed: int) -> SB3Agent:
        """Return the agent after ``steps`` more steps of its own algorithm; masks hold after every update.

        Raises:
            EnvironmentFailure: The environment failed while it was being stepped.
        """
        from prunerl.masks import hold

        env = _training_env(self)
        if isinstance(env, VecNormalize):
            env.training = False  # the agent is judged, and saved, with the statistics that it came with
        try:
            with _own_random_streams():
                model = self.model(env)
                model.set_random_seed(seed)
                parameters = dict(model.policy.named_parameters())
                masks = {n: m for n, m in self.state.masks.items() if n in parameters}
                handle = hold(model.policy.optimizer, parameters, masks)
                model.learn(steps, reset_num_timesteps=False)
                handle.remove()
                return _from_model(self, model, masks)
        except Exception as error:  # a third party's environment can raise anything
            raise EnvironmentFailure(
                f"Training in {self.env.id!r} failed: {type(error).__name__}: {error}. Mend the environment."
            ) from error
        finally:
            env.close()

    def save(self, path: str | Path) -> None:
        """Write a zip that ``PPO.load`` (or ``A2C``, ``DQN``) reads, and observation statistics beside it.

        The statistics go to ``<name>_vecnormalize.pkl``, as ``VecNormalize.load`` reads them.
        """
        from prunerl.files import write_atomically

        target = Path(path)
        buffer = io.BytesIO()
        self.model().save(buffer)
        if self.settings.normalization is not None:
            env = _training_env(self)
            statistics = io.BytesIO()
            _dump_vec_normalize(env, statistics)
            write_atomically(target.with_name(f"{target.stem}_vecnormalize.pkl"), statistics.getvalue())
            env.close()
        write_atomically(target, buffer.getvalue())


class _Actor(nn.Module):
    """The part of an actor–critic policy that acts, under the policy's own parameter names."""

    def __init__(self, policy: Any, space: gym.Space[Any]) -> None:
        super().__init__()
        self.space = space
        self.pi_features_extractor = policy.pi_features_extractor
        self.mlp_extractor = nn.ModuleDict({"policy_net": policy.mlp_extractor.policy_net})
        self.action_net = policy.action_net

    def forward(self, observations: Tensor) -> Tensor:
        features = self.pi_features_extractor(preprocess_obs(observations, self.space, normalize_images=True))
        result: Tensor = self.action_net(self.mlp_extractor["policy_net"](features))
        return result


class _QNetwork(nn.Module):
    """The online Q-network of a DQN policy, under the policy's own parameter names."""

    q_net: Any  # Stable-Baselines3's QNetwork, whose own attributes a Module does not declare

    def __init__(self, policy: Any, space: gym.Space[Any]) -> None:
        super().__init__()
        self.space = space
        self.q_net = policy.q_net

    def forward(self, observations: Tensor) -> Tensor:
        features = self.q_net.features_extractor(preprocess_obs(observations, self.space, normalize_images=True))
        result: Tensor = self.q_net.q_net(features)
        return result


def load(
    path: str | Path,
    *,
    env: EnvSpec,
    algorithm: str | None = None,
    vec_normalize: str | Path | None = None,
    trust: bool = False,
) -> SB3Agent:
    """Load a Stable-Baselines3 zip, of today or of the ``gym`` era.

    Args:
        path: The zip.
        env: The environment to act in; gives the spaces, which must fit the zip's tensors.
        algorithm: ``ppo``, ``a2c`` or ``dqn``; read off the zip by default.
        vec_normalize: File of ``VecNormalize`` statistics; by default looked for beside the zip.
        trust: Also run the zip's pickles, for schedules and custom arguments that are not plain data.

    Raises:
        LoadError: The file is not such an agent.
        TrustError: It can only be read by running code from it, and ``trust`` is False.
        SpaceError: The environment's spaces do not fit the agent.
    """
    path = Path(path)
    if algorithm is not None and algorithm.lower() not in ALGORITHMS:
        raise LoadError(f"Algorithm {algorithm!r} is not supported; PPO, A2C and DQN are so far.")
    contents = sb3_zip.read_zip(path, algorithm.lower() if algorithm else None)
    made = environments.make(env)
    pair = (made.observation_space, made.action_space)
    made.close()
    _check_spaces(contents, env, pair)
    statistics = Path(vec_normalize) if vec_normalize is not None else find_statistics(path)
    try:
        settings, notes = _settings(contents, statistics, trust=trust)
        _check_statistics(settings.normalization, statistics, pair[0])
        tensors = {n: t.clone() for n, t in contents.tensors.items()}
        agent = SB3Agent(contents.algorithm, env, pair, settings, State(tensors), notes)
        _check_keys(contents, agent)
        return _with_moments(agent, contents)
    except PruneError:
        raise
    except Exception as error:  # settings of any kind may stand in a file
        raise LoadError(
            f"{path}: its settings are not those of an agent ({type(error).__name__}: {error}). Save the agent again."
        ) from error


def from_model(model: BaseAlgorithm, *, env: EnvSpec | None = None) -> SB3Agent:
    """Take over a live Stable-Baselines3 model, which is left as it is.

    Raises:
        LoadError: Its algorithm or policy is not supported.
    """
    from tempfile import TemporaryDirectory

    if env is None:
        spec = None if model.env is None else model.env.get_attr("spec")[0]
        if spec is None:
            raise LoadError("The model's environment has no id. Give it: prunerl.load(model, env=...).")
        if any(wrapper.name != "Monitor" for wrapper in spec.additional_wrappers):
            raise LoadError("The model's environment has wrappers. Name them: prunerl.load(model, env=EnvSpec(...)).")
        env = EnvSpec(spec.id, dict(spec.kwargs))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "agent.zip"
        model.save(file)
        wrapper = model.get_vec_normalize_env()
        statistics = None
        if wrapper is not None:
            statistics = Path(folder) / "statistics.pkl"
            wrapper.save(str(statistics))
        return load(file, env=env, vec_normalize=statistics)


def find_statistics(path: Path) -> Path | None:
    """Return the ``VecNormalize`` file that belongs to a zip: ours, the RL Zoo's, or one beside it."""
    candidates = (
        path.with_name(f"{path.stem}_vecnormalize.pkl"),
        path.with_suffix("") / "vecnormalize.pkl",
        path.with_name("vecnormalize.pkl"),
    )
    return next((c for c in candidates if c.is_file()), None)


def _settings(contents: sb3_zip.Contents, statistics: Path | None, *, trust: bool) -> tuple[Settings, tuple[str, ...]]:
    data = contents.data
    plain = {k: v for k, v in data.items() if not (isinstance(v, dict) and sb3_zip.SERIALIZED in v)}
    arguments = {k: plain[k] for k in _CONSTRUCTOR if k in plain}
    arguments |= {"seed": None, "verbose": 0}
    notes: list[str] = []
    arguments["learning_rate"] = _learning_rate(contents, notes)
    if contents.algorithm == "ppo":
        found = sb3_zip.schedule(data.get("clip_range"))
        arguments["clip_range"] = _CLIP_RANGE if found is None else found
        if found is None:
            notes.append(f"The clip range is a pickled function; {_CLIP_RANGE} is used if the agent trains on.")
    if contents.algorithm == "dqn":
        arguments = {k: v for k, v in arguments.items() if k not in ("use_sde", "sde_sample_freq")}
        arguments["train_freq"] = _train_freq(data.get("train_freq"), notes)
        arguments["buffer_size"] = int(arguments.get("buffer_size", 1_000_000))
    policy = _trusted_policy_kwargs(contents) if trust else sb3_zip.policy_kwargs(contents)
    counters = {k: plain[k] for k in _COUNTERS if k in plain}
    options = dict((contents.optimizer or {}).get("param_groups", [{}])[0])
    options.pop("params", None)
    normalization = None if statistics is None else sb3_zip.vec_normalize(statistics)
    n_envs = int(plain.get("n_envs") or 1)
    return Settings(arguments, policy, counters, options, normalization, n_envs), tuple(notes)


def _learning_rate(contents: sb3_zip.Contents, notes: list[str]) -> float:
    found = sb3_zip.schedule(contents.data.get("learning_rate"))
    if found is None:
        found = sb3_zip.schedule(contents.data.get("lr_schedule"))
    if found:  # some of the RL Zoo's zips say 0 beside the pickled function that was in force
        return found
    groups = (contents.optimizer or {}).get("param_groups") or [{}]
    rate = float(groups[0].get("lr", 0.0))
    rate = rate if rate > 0 else 3e-4
    notes.append(f"The learning rate is a pickled function; {rate:g} is used if the agent trains on.")
    return rate


def _train_freq(value: Any, notes: list[str]) -> Any:
    found = sb3_zip.train_frequency(value)
    if found is None:
        notes.append("The training frequency is pickled; 4 steps are used if the agent trains on.")
    return 4 if found is None else found


def _trusted_policy_kwargs(contents: sb3_zip.Contents) -> dict[str, Any]:
    import json

    from stable_baselines3.common.save_util import json_to_data

    only = {"policy_kwargs": contents.data.get("policy_kwargs") or {}}
    loaded = json_to_data(json.dumps(only)).get("policy_kwargs", {})
    return {k: v for k, v in loaded.items() if k not in sb3_zip.INFERRED}


def _check_spaces(contents: sb3_zip.Contents, env: EnvSpec, pair: tuple[gym.Space[Any], gym.Space[Any]]) -> None:
    first, last = ("q_net.q_net", "q_net.q_net") if contents.algorithm == "dqn" else ("mlp_extractor.policy_net", None)
    weights = _stack(contents.tensors, first)
    head = contents.tensors.get("action_net.weight") if last is None else (weights[-1] if weights else None)
    inner = weights[0] if weights else head
    if head is None or inner is None or head.dim() != 2 or inner.dim() != 2:
        raise LoadError(
            f"{contents.path}: no tensors {first}.* of an MlpPolicy. Policies with convolutions, dicts or shared "
            "layers are not supported so far."
        )
    observation_space, action_space = pair
    if not isinstance(observation_space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise SpaceError(f"Observations of {env.id!r} are {observation_space}; MlpPolicy takes flat ones.")
    wanted, got = spaces.flatdim(observation_space), inner.shape[1]
    if wanted != got:
        raise SpaceError(
            f"{contents.path} takes {got} inputs, but {env.id!r} observes {wanted}. Give the env it was trained in."
        )
    outputs = _outputs(action_space)
    if outputs is None or (contents.algorithm == "dqn" and not isinstance(action_space, spaces.Discrete)):
        raise SpaceError(f"{contents.algorithm.upper()} cannot act in {env.id!r}: its actions are {action_space}.")
    if outputs != head.shape[0]:
        raise SpaceError(
            f"{contents.path} has {head.shape[0]} outputs, but {env.id!r} takes {action_space}. "
            "Give the env it was trained in."
        )


def _check_statistics(normalization: Mapping[str, Any] | None, statistics: Path | None, space: gym.Space[Any]) -> None:
    shape = np.shape((normalization or {}).get("obs_rms", {}).get("mean", np.empty(space.shape or ())))
    if shape != (space.shape or ()):
        raise SpaceError(
            f"{statistics} holds statistics of observations of shape {shape}, the environment's have {space.shape}. "
            "Give the statistics that were saved with this agent (vec_normalize=...), or move them away."
        )


def _outputs(action_space: gym.Space[Any]) -> int | None:
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(action_space.nvec.sum())
    if isinstance(action_space, spaces.MultiBinary | spaces.Box):
        return int(np.prod(action_space.shape))
    return None


def _check_keys(contents: sb3_zip.Contents, agent: SB3Agent) -> None:
    try:
        expected = _build_policy(agent, load=False).state_dict()
    except (ValueError, TypeError, RuntimeError) as error:
        raise LoadError(f"{contents.path}: its policy cannot be rebuilt: {error}.") from error
    wrong = [
        n
        for n in sorted(set(expected) | set(contents.tensors))
        if n not in expected or n not in contents.tensors or expected[n].shape != contents.tensors[n].shape
    ]
    if wrong:
        raise LoadError(
            f"{contents.path}: tensor {wrong[0]!r} does not fit an MlpPolicy of {agent.algorithm.upper()} "
            f"({len(wrong)} such). Policies with shared or custom layers are not supported so far."
        )


def _with_moments(agent: SB3Agent, contents: sb3_zip.Contents) -> SB3Agent:
    saved = (contents.optimizer or {}).get("state") or {}
    names = _optimized(agent, [n for n, _ in _build_policy(agent).named_parameters()])
    moments = {}
    for index, entries in saved.items():
        if not isinstance(index, int) or not 0 <= index < len(names):
            return replace(agent, notes=(*agent.notes, "The optimizer's state does not fit and starts anew."))
        shape = agent.state.tensors[names[index]].shape
        kept = {k: torch.as_tensor(v) for k, v in entries.items() if v is not None}
        if any(v.dim() > 0 and v.shape != shape for v in kept.values()):
            return replace(agent, notes=(*agent.notes, "The optimizer's state does not fit and starts anew."))
        moments[names[index]] = kept
    return replace(agent, state=replace(agent.state, moments=moments))


def _stack(tensors: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """Return the weights of a Sequential, in order."""
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(re.escape(prefix) + r"\.(\d+)\.weight", name)
        if match:
            found[int(match.group(1))] = tensor
    return [found[i] for i in sorted(found)]


def _renumbered(names: Sequence[str], prefixes: Sequence[str]) -> dict[str, str]:
    result = {n: n for n in names}
    for prefix in prefixes:
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.(\w+)")
        matches = [m for m in (pattern.fullmatch(n) for n in names) if m]
        order = {old: 2 * new for new, old in enumerate(sorted({int(m.group(1)) for m in matches}))}
        result |= {m.group(0): f"{prefix}.{order[int(m.group(1))]}.{m.group(2)}" for m in matches}
    return result


def _net_arch(agent: SB3Agent) -> Any:
    tensors = agent.state.tensors
    if agent.algorithm == "dqn":
        return [w.shape[0] for w in _stack(tensors, "q_net.q_net")[:-1]]
    pi, vf = (_stack(tensors, prefix) for prefix in _STACKS["on_policy"])
    return {"pi": [w.shape[0] for w in pi], "vf": [w.shape[0] for w in vf]}


def _policy_kwargs(agent: SB3Agent) -> dict[str, Any]:
    return {**agent.settings.policy, "net_arch": _net_arch(agent)}


def _build_policy(agent: SB3Agent, *, load: bool = True) -> BasePolicy:
    from stable_baselines3.common.utils import ConstantSchedule

    cls: Any = ALGORITHMS[agent.algorithm].policy_aliases["MlpPolicy"]
    kwargs = _policy_kwargs(agent)
    if agent.algorithm != "dqn":
        kwargs.setdefault("use_sde", bool(agent.settings.arguments.get("use_sde", False)))
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten; the user's stream stays as it is
        policy: BasePolicy = cls(*agent.spaces, ConstantSchedule(3e-4), **kwargs)
    if load:
        policy.load_state_dict(dict(agent.state.tensors), strict=True)
    policy.set_training_mode(False)
    return policy


def _skeleton(agent: SB3Agent, env: VecEnv | None) -> BaseAlgorithm:
    cls: Any = ALGORITHMS[agent.algorithm]
    arguments = {**agent.settings.arguments, "policy_kwargs": _policy_kwargs(agent), "device": "cpu"}
    arguments["policy_kwargs"].pop("use_sde", None)
    with torch.random.fork_rng(devices=[]):
        model: BaseAlgorithm = cls("MlpPolicy", env, _init_setup_model=False, **arguments)
        if env is None:
            model.observation_space, model.action_space = agent.spaces
            model.n_envs = agent.settings.n_envs
        model._setup_model()
    return model


def _optimized(agent: SB3Agent, names: Sequence[str]) -> list[str]:
    return [n for n in names if agent.algorithm != "dqn" or n.startswith("q_net.")]


def _load_optimizer(agent: SB3Agent, model: BaseAlgorithm) -> None:
    optimizer = model.policy.optimizer
    names = _optimized(agent, [n for n, _ in model.policy.named_parameters()])
    moments = agent.state.moments
    fresh = optimizer.state_dict()
    groups = [{**g, **_known(agent.settings.optimizer, g), "params": g["params"]} for g in fresh["param_groups"]]
    # Interned, since a pickle writes equal keys once only when they are one object: equal agents give equal files.
    state = {i: {sys.intern(k): v.clone() for k, v in moments[n].items()} for i, n in enumerate(names) if n in moments}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _known(options: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k in group and k not in ("params", "lr")}


def _from_model(agent: SB3Agent, model: BaseAlgorithm, masks: Mapping[str, Tensor]) -> SB3Agent:
    tensors = {n: t.detach().clone() for n, t in model.policy.state_dict().items()}
    names = _optimized(agent, [n for n, _ in model.policy.named_parameters()])
    saved = model.policy.optimizer.state_dict()["state"]
    moments = {names[i]: {k: torch.as_tensor(v).clone() for k, v in s.items()} for i, s in saved.items()}
    counters = {k: getattr(model, k) for k in _COUNTERS if hasattr(model, k)}
    normalization = agent.settings.normalization
    wrapper = model.get_vec_normalize_env()
    if normalization is not None and wrapper is not None:
        kept = [k for k in ("obs_rms", "ret_rms") if hasattr(wrapper, k)]  # rewards alone may be normalised
        rms = {k: {f: getattr(getattr(wrapper, k), f) for f in ("mean", "var", "count")} for k in kept}
        normalization = {**normalization, **rms}
    settings = replace(agent.settings, counters=counters, normalization=normalization)
    return replace(agent, settings=settings, state=State(tensors, moments, {**agent.state.masks, **masks}))


def _head(algorithm: str, space: gym.Space[Any], policy: BasePolicy, state: State) -> Head:
    shape = tuple(space.shape or ())
    if isinstance(space, spaces.Discrete):
        kind: Any = "q_values" if algorithm == "dqn" else "categorical"
        return Head(
            kind, sizes=(int(space.n),), shape=shape
        )  # Stable-Baselines3 counts from 0, wherever the space starts
    if isinstance(space, spaces.MultiDiscrete):
        return Head("categorical", sizes=tuple(int(n) for n in space.nvec.reshape(-1)), shape=shape)
    if isinstance(space, spaces.MultiBinary):
        return Head("bernoulli", shape=shape)
    assert isinstance(space, spaces.Box)  # _check_spaces lets nothing else in
    log_std = state.tensors["log_std"]
    std = log_std.exp().numpy() if log_std.dim() == 1 else None
    return Head("gaussian", low=space.low, high=space.high, std=std, squashed=bool(policy.squash_output), shape=shape)


def _normalizer(normalization: Mapping[str, Any] | None) -> Normalizer | None:
    if normalization is None or not normalization.get("norm_obs", True):
        return None
    rms = normalization["obs_rms"]
    clip, epsilon = float(normalization.get("clip_obs", 10.0)), float(normalization.get("epsilon", 1e-8))
    return Normalizer(np.asarray(rms["mean"]), np.asarray(rms["var"]), epsilon, clip)


@contextmanager
def _own_random_streams() -> Iterator[None]:
    """Put the user's random streams back: Stable-Baselines3 seeds the global ones."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _training_env(agent: SB3Agent) -> VecEnv:
    from stable_baselines3.common.monitor import Monitor

    env: VecEnv = DummyVecEnv([lambda: Monitor(environments.make(agent.env))] * agent.settings.n_envs)
    saved = agent.settings.normalization
    if saved is None:
        return env
    options = {
        k: saved[k] for k in ("clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs", "norm_reward") if k in saved
    }
    wrapped = VecNormalize(env, **options)
    for name in ("obs_rms", "ret_rms"):
        if saved.get(name):
            rms = RunningMeanStd(shape=np.shape(saved[name]["mean"]))
            rms.mean, rms.var, rms.count = (saved[name][k] for k in ("mean", "var", "count"))
            setattr(wrapped, name, rms)
    return wrapped


def _dump_vec_normalize(env: VecEnv, file: io.BytesIO) -> None:
    import pickle

    pickle.dump(env, file)
