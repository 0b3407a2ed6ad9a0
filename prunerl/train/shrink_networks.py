"""The networks of a live Stable-Baselines3 model that can change their widths, read as data and written back in place.

What is cut are the MLPs behind the features extractor: of the actor, of each critic, of their targets. Parameters stay
the same objects: whatever holds one of them, such as an optimizer or a list of polyak averaging, goes on holding it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunerl.errors import LearnError
from prunerl.types import Head, State, Tie

Role = Literal["actor", "critic"]
NOISE = ("exploration_mat", "exploration_matrices")
"""The noise of gSDE that is drawn now, shapes (latent, actions) and (environments, latent, actions)."""


@dataclass(frozen=True, eq=False)
class States:
    """Visited states as the policy takes them, and the actions that were taken there, scaled to −1 and 1."""

    observations: Any
    actions: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Network:
    """One MLP of a live model.

    Attributes:
        name: Such as ``pi``, ``vf`` or ``qf0``.
        role: Actor or critic.
        module: A copy on the CPU, to trace; its parameters have their names in the policy.
        stack: Name of the sequence that has the hidden layers.
        hidden: Names of the hidden linear layers in order.
        readers: Names of the linear layers that read the last hidden one.
        noise: Name of gSDE's matrix of deviations, which has a row for each unit of the last hidden layer.
        head: What its outputs mean, for distillation.
        inputs: From visited states to what the MLP reads, shape (samples, features).
    """

    name: str
    role: Role
    module: nn.Module
    stack: str
    hidden: tuple[str, ...]
    readers: tuple[str, ...]
    noise: str | None
    head: Head
    inputs: Callable[[States], Tensor]


class _Parts(nn.Module):
    """A stack of layers and what reads it, under the policy's names; outputs side by side."""

    def __init__(self, policy: nn.Module, stack: str, readers: Sequence[str]) -> None:
        super().__init__()
        self.stack, self.readers = stack, tuple(readers)
        for name in (stack, *readers):
            part = policy.get_submodule(name)
            if isinstance(part, nn.Sequential) and len(part) and isinstance(part[-1], nn.Tanh) and name == "actor.mu":
                part = part[:-1]  # the squashing: before it, what a saturated action hides is still seen
            *path, last = name.split(".")
            owner: nn.Module = self
            for key in path:
                if not hasattr(owner, key):
                    owner.add_module(key, nn.Module())
                owner = owner.get_submodule(key)
            owner.add_module(last, copy.deepcopy(part).cpu())

    def forward(self, inputs: Tensor) -> Tensor:
        latent = self.get_submodule(self.stack)(inputs)
        outputs = [self.get_submodule(name)(latent) for name in self.readers]
        result: Tensor = torch.cat(outputs, dim=1) if outputs else latent
        return result


def networks(model: Any) -> tuple[Network, ...]:
    """Return the networks of a live model whose widths can change.

    Raises:
        LearnError: It has no optimizer, or its policy is not made of plain MLPs behind a features extractor.
    """
    title, policy = type(model).__name__, model.policy
    if not list(optimizers(policy)):
        raise LearnError(
            f"{title} has no optimizer whose moments could follow. Shrink networks of PPO, A2C, DQN, SAC, TD3 or TQC."
        )
    if hasattr(policy, "lstm_actor"):
        raise LearnError(f"The LSTM of {title} cannot shrink while it learns. Train it, and prune it afterwards.")
    if hasattr(policy, "mlp_extractor") and hasattr(policy, "value_net"):
        found = _actor_critic(policy)
    elif hasattr(policy, "q_net") or hasattr(policy, "quantile_net"):
        found = _values(policy)
    elif hasattr(policy, "critic") and hasattr(policy.critic, "qf0"):
        found = _continuous(policy)
    else:
        raise LearnError(f"The layers of a {type(policy).__name__} are not known. Use a policy of Stable-Baselines3.")
    for network in found:
        _check_plain(title, network)
    if not any(network.hidden for network in found):
        raise LearnError(f"{title} has no hidden layer behind its features extractor, so there is nothing to shrink.")
    return tuple(network for network in found if network.hidden)


def widths(policy: nn.Module, network: Network) -> tuple[int, ...]:
    """Return the width of each hidden layer of the live network."""
    return tuple(policy.get_parameter(f"{name}.weight").shape[0] for name in network.hidden)


def read(policy: nn.Module, network: Network) -> State:
    """Return a network's tensors and moments on the CPU, with those of its target and of its noise."""
    live = dict(policy.named_parameters())
    names = [name for name, _ in network.module.named_parameters()]
    names += [target for name in names if (target := target_of(name)) in live]
    names += [network.noise] if network.noise else []
    tensors = {name: live[name].detach().cpu().clone() for name in names}
    for name, noise in _drawn(policy, network).items():
        tensors[name] = noise.detach().cpu().clone()
    moments: dict[str, Mapping[str, Tensor]] = {}
    for optimizer in optimizers(policy):
        for name in (n for n in names if live[n] in optimizer.state):
            entries = optimizer.state[live[name]].items()
            moments[name] = {k: v.detach().cpu().clone() for k, v in entries if isinstance(v, Tensor)}
    return State(tensors, moments)


def ties(network: Network, state: State) -> tuple[Tie, ...]:
    """Return what follows the network: its target, and its exploration noise."""
    found = []
    if network.noise:
        reads = (f"{network.readers[0]}.weight", 1)
        found = [Tie(*reads, network.noise, 0, copies=False)]
        found += [Tie(*reads, f"{network.noise}.{n}", i, copies=False) for i, n in enumerate(NOISE)]
        found = [tie for tie in found if tie.target in state.tensors]
    for name in state.tensors:
        if target_of(name) in state.tensors:
            found += [Tie(name, d, target_of(name), d) for d in range(state.tensors[name].dim())]
    return tuple(found)


@torch.no_grad()
def write(model: Any, network: Network, state: State) -> None:
    """Put a network's tensors and moments back into the live model, whatever widths they have now."""
    policy = model.policy
    live = dict(policy.named_parameters())
    for name in (n for n in state.tensors if n in live):
        _put(live[name], state.tensors[name])
    for optimizer in optimizers(policy):
        for name in (n for n in state.moments if live[n] in optimizer.state):
            kept = optimizer.state[live[name]]
            for key, moment in state.moments[name].items():
                if kept[key].shape != moment.shape:
                    kept[key] = moment.to(kept[key])
    distribution = _distribution(policy, network)
    for name in _drawn(policy, network):
        setattr(distribution, name.rpartition(".")[2], state.tensors[name].to(live[network.noise or ""]))
    if network.noise:
        distribution.latent_sde_dim = live[network.noise].shape[0]
    for part in policy.modules():
        if isinstance(part, nn.Linear):
            part.out_features, part.in_features = part.weight.shape


def say_widths(model: Any, found: Sequence[Network]) -> None:
    """Write the live widths to wherever the model says its own, so that it saves and loads."""
    policy = model.policy
    own = {network.name: list(widths(policy, network)) for network in found}
    if hasattr(policy, "mlp_extractor"):
        arch: Any = {"pi": own.get("pi", []), "vf": own.get("vf", [])}
        for part in ("pi", "vf"):
            if arch[part]:
                setattr(policy.mlp_extractor, f"latent_dim_{part}", arch[part][-1])
    elif "q" in own:
        arch = own["q"]
        policy.net_args = {**policy.net_args, "net_arch": arch}
    else:
        arch = {"pi": own.get("pi", []), "qf": own.get("qf0", [])}
        policy.actor_kwargs = {**policy.actor_kwargs, "net_arch": arch["pi"]}
        policy.critic_kwargs = {**policy.critic_kwargs, "net_arch": arch["qf"]}
    policy.net_arch = arch
    for part in policy.children():
        if hasattr(part, "net_arch"):
            part.net_arch = arch["pi"] if isinstance(arch, dict) else arch
    model.policy_kwargs = {**(model.policy_kwargs or {}), "net_arch": arch}


def parameters(policy: nn.Module) -> int:
    """Return how many parameters are trained, without those of targets."""
    return sum(p.numel() for name, p in policy.named_parameters() if not name.partition(".")[0].endswith("_target"))


def optimizers(policy: nn.Module) -> Iterator[Optimizer]:
    """Yield the optimizers that a policy's parts hold."""
    for part in policy.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Optimizer))


def _put(parameter: nn.Parameter, tensor: Tensor) -> None:
    if parameter.shape == tensor.shape:
        parameter.copy_(tensor)
        return
    # A graph that is still held, such as that of the last action's distribution, keeps a node that accumulates
    # gradients of the old shape. PyTorch lets go of it when the type changes, but not when the shape does.
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    smaller = tensor.to(parameter)
    parameter.data = smaller.to(other)
    parameter.data = smaller
    parameter.grad = None


def _actor_critic(policy: Any) -> list[Network]:
    def reads(which: str) -> Callable[[States], Tensor]:
        def inputs(states: States) -> Tensor:
            features: Tensor = policy.extract_features(states.observations, getattr(policy, which))
            return features

        return inputs

    log_std = getattr(policy, "log_std", None)
    noise = "log_std" if log_std is not None and log_std.dim() == 2 else None
    stack = "mlp_extractor.{}_net".format
    return [
        _network("pi", "actor", policy, stack("policy"), ["action_net"], reads("pi_features_extractor"), noise),
        _network("vf", "critic", policy, stack("value"), ["value_net"], reads("vf_features_extractor")),
    ]


def _values(policy: Any) -> list[Network]:
    root = "q_net" if hasattr(policy, "q_net") else "quantile_net"
    network = getattr(policy, root)

    def inputs(states: States) -> Tensor:
        features: Tensor = network.extract_features(states.observations, network.features_extractor)
        return features

    return [_network("q", "actor", policy, f"{root}.{root}", [], inputs)]


def _continuous(policy: Any) -> list[Network]:
    actor, critic = policy.actor, policy.critic

    def observed(states: States) -> Tensor:
        features: Tensor = actor.extract_features(states.observations, actor.features_extractor)
        return features

    def judged(states: States) -> Tensor:
        # A critic learns from the actions that were taken, and is asked for those that the actor would take.
        features = critic.extract_features(states.observations, critic.features_extractor)
        taken = [] if states.actions is None else [torch.cat([features, states.actions], dim=1)]
        return torch.cat([*taken, torch.cat([features, actor(states.observations)], dim=1)])

    count = sum(name.startswith("qf") for name, _ in critic.named_children())
    critics = [_network(f"qf{i}", "critic", policy, f"critic.qf{i}", [], judged) for i in range(count)]
    if not hasattr(actor, "latent_pi"):
        return [_network("pi", "actor", policy, "actor.mu", [], observed), *critics]
    noise = None if isinstance(actor.log_std, nn.Module) else "actor.log_std"
    readers = ["actor.mu"] if noise else ["actor.mu", "actor.log_std"]
    return [_network("pi", "actor", policy, "actor.latent_pi", readers, observed, noise), *critics]


def _network(
    name: str,
    role: Role,
    policy: Any,
    stack: str,
    readers: list[str],
    inputs: Callable[[States], Tensor],
    noise: str | None = None,
) -> Network:
    module = _Parts(policy, stack, readers)
    module.requires_grad_(False)
    linear = [n for n, part in module.named_modules() if isinstance(part, nn.Linear)]
    hidden = [n for n in linear if n.startswith(f"{stack}.")]
    last = [n for n in linear if n not in hidden] if readers else hidden[-1:]
    hidden = hidden if readers else hidden[:-1]
    head = _head(policy) if name == "pi" and stack.startswith("mlp_extractor") else Head("gaussian")
    return Network(name, role, module, stack, tuple(hidden), tuple(last), noise, head, inputs)


def _head(policy: Any) -> Head:
    space = policy.action_space
    if hasattr(space, "nvec"):
        return Head("categorical", sizes=tuple(int(n) for n in space.nvec.reshape(-1)))
    if type(space).__name__ == "MultiBinary":
        return Head("bernoulli")
    return Head("categorical", sizes=(int(space.n),)) if hasattr(space, "n") else Head("gaussian")


def _check_plain(title: str, network: Network) -> None:
    for name, part in network.module.named_modules():
        own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if own and type(part) is not nn.Linear:
            raise LearnError(
                f"{title}: layer {name!r} of {network.name!r} is a {type(part).__name__}, whose width cannot change "
                "while it learns. Use linear layers, or prune the agent after training."
            )


def target_of(name: str) -> str:
    """Return the name that a parameter or layer has in the target network."""
    root, _, rest = name.partition(".")
    return f"{root}_target.{rest}"


def _distribution(policy: Any, network: Network) -> Any:
    owner = policy.actor if network.noise is not None and network.noise.startswith("actor.") else policy
    return getattr(owner, "action_dist", None)


def _drawn(policy: Any, network: Network) -> dict[str, Tensor]:
    if network.noise is None:
        return {}
    held = vars(_distribution(policy, network))
    return {f"{network.noise}.{name}": held[name] for name in NOISE if name in held}
