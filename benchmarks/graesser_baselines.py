"""Policies that are made from a trained dense network; used by ``graesser.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from graesser_dqn import Evaluate, TheirDQN, greedy, linear, make, play
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from prunerl import masks
from prunerl.train import distributions

UPDATES, BATCH = 5000, 128
ROUNDS, EPISODES = 5, 20
FIRST_SEED = 5_000_000
"""Seeds of the episodes that a linear policy learns from are from here on."""


class Values(nn.Module):
    """A Q-network, called as Stable-Baselines3's is."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.q_net = layers


def keep(path: Path, model: TheirDQN, evaluate: Evaluate) -> None:
    """Write what the baselines need of a dense run: the last network, the best one early on, and what it had seen."""
    assert evaluate.best is not None  # the first evaluation is early
    step, early = evaluate.best
    seen = torch.from_numpy(model.replay_buffer.observations[:step, 0].copy())
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"last": weights(model.q_net), "early": weights(early), "step": step, "seen": seen}, path)


def stop_early(path: Path, sparsity: float, seed: int) -> tuple[Values, int]:
    """Return the network of the best early evaluation, pruned afterwards, and after how many steps it was.

    Magnitude pruning in one shot, ERK; then it is distilled from what it was, in the states that it had seen.
    """
    found = torch.load(path, weights_only=True)
    teacher, student = network(found["early"]), network(found["early"])
    generator = torch.Generator().manual_seed(seed)
    parameters = {n: p for n, p in student.named_parameters() if p.dim() == 2}
    counts = distributions.kept({n: tuple(p.shape) for n, p in parameters.items()}, sparsity, "erk")
    kept = distributions.best({n: p.detach().abs() for n, p in parameters.items()}, counts)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    masks.hold(optimizer, dict(student.named_parameters()), kept)
    for _ in range(UPDATES):
        batch = found["seen"][torch.randint(len(found["seen"]), (BATCH,), generator=generator)]
        with torch.no_grad():
            wanted = teacher.q_net(batch)
        optimizer.zero_grad()
        functional.mse_loss(student.q_net(batch), wanted).backward()
        optimizer.step()
    return student, int(found["step"])


def linear_policy(path: Path, env: str, seed: int) -> tuple[Values, int]:
    """Return a policy without hidden layers that imitates the last network, and the steps that were played for it.

    Its own states are labelled and added in each round (DAgger; Ross et al. 2011).
    """
    teacher = network(torch.load(path, weights_only=True)["last"])
    envs, actor = [make(env) for _ in range(EPISODES)], teacher
    states = np.empty((0, linear(teacher)[0].in_features), dtype=np.float32)
    for number in range(ROUNDS):
        states = np.concatenate([states, visited(actor, envs, FIRST_SEED + 1000 * seed + EPISODES * number)])
        actor = fitted(torch.from_numpy(states), torch.from_numpy(greedy(teacher, states)), linear(teacher)[-1])
    return actor, len(states)


def visited(actor: Values, envs: list[Any], first: int) -> NDArray[np.float32]:
    """Return the states of greedy episodes."""
    seen: list[Tensor] = []
    handle = actor.q_net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    play(actor, envs, first)
    handle.remove()
    found: NDArray[np.float32] = torch.cat(seen).numpy()
    return found


def fitted(states: Tensor, actions: Tensor, head: nn.Linear) -> Values:
    """Return a logistic regression of actions on states."""
    scale, mean = states.std(0) + 1e-6, states.mean(0)
    layer = nn.Linear(states.shape[1], head.out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(layer((states - mean) / scale), actions)
        value = value + 1e-5 * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        layer.weight /= scale
        layer.bias -= layer.weight @ mean
    return Values(nn.Sequential(layer))


def weights(of: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return matrix and bias of each layer."""
    return [(m.weight.detach(), m.bias.detach()) for m in linear(of)]


def network(layers: list[tuple[Tensor, Tensor]]) -> Values:
    """Return a network with ReLU of given matrices and biases."""
    made: list[nn.Module] = []
    for weight, bias in layers:
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        made += [layer, nn.ReLU()]
    return Values(nn.Sequential(*made[:-1]))
