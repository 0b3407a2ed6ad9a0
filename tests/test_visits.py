"""Played episodes become inputs of the network, those of a recurrent one in stretches of one episode each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from prunerl.rollout import Rollout
from prunerl.types import Head, Policy
from prunerl.visits import WINDOW, inputs, steps_of, trace_policy


class Memory(nn.Module):
    """An LSTM and a linear layer, over sequences or step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.lstm(x)[0])
        return result


def policy(*, recurrent: bool) -> Policy:
    network = Memory() if recurrent else nn.Linear(1, 2)
    memory = ((1, 4), (1, 4)) if recurrent else ()
    return Policy(network.eval(), Head("categorical", sizes=(2,)), (1,), memory=memory)


def played(*lengths: int) -> Rollout:
    """Episodes whose observations are 0, 1, 2 … through all of them."""
    observations = np.arange(sum(lengths), dtype=np.float32).reshape(-1, 1)
    return Rollout((0.0,) * len(lengths), sum(lengths), observations, lengths)


def test_states_come_one_by_one() -> None:
    assert torch.equal(inputs(policy(recurrent=False), played(2, 3)).flatten(), torch.arange(5.0))
    assert steps_of(policy(recurrent=False)) == 1


def test_a_stretch_belongs_to_one_episode_and_its_end_is_filled_from_its_start() -> None:
    found = inputs(policy(recurrent=True), played(WINDOW + 2, 3)).squeeze(-1)
    assert found.shape == (3, WINDOW)
    assert torch.equal(found[0], torch.arange(float(WINDOW)))
    assert torch.equal(found[1][:4], torch.tensor([WINDOW, WINDOW + 1, 0.0, 1.0]))
    second = torch.arange(WINDOW + 2.0, WINDOW + 5)
    assert torch.equal(found[2], second.repeat(WINDOW)[:WINDOW])
    assert steps_of(policy(recurrent=True)) == WINDOW


def test_a_recurrent_policy_is_traced_for_any_number_of_steps() -> None:
    own = policy(recurrent=True)
    traced = trace_policy(own, inputs(own, played(WINDOW, WINDOW, WINDOW)))
    assert [layer.positions for layer in traced.layers] == [1] * len(traced.layers)  # of one decision, not of a stretch
