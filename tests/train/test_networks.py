"""Which hidden units are found, and which layers read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor
from toy import ARCH, OFF, Follow, Pictures

from prunerl import train
from prunerl.train import networks


@pytest.mark.parametrize(
    ("kind", "continuous", "options", "readers"),
    [
        (DQN, False, {}, {"q_net.features_extractor": ["q_net.q_net.0.weight"]}),
        (PPO, False, {}, {"features_extractor": ["action_net.weight", "value_net.weight"]}),
        (
            PPO,
            False,
            {"net_arch": [8], "share_features_extractor": False},
            {
                "features_extractor": ["mlp_extractor.policy_net.0.weight"],
                "vf_features_extractor": ["mlp_extractor.value_net.0.weight"],
            },
        ),
        (
            SAC,
            True,
            {"net_arch": [8], "share_features_extractor": True},
            {"actor.features_extractor": ["actor.latent_pi.0.weight", "critic.qf0.0.weight", "critic.qf1.0.weight"]},
        ),
        (
            SAC,
            True,
            {"net_arch": [8]},
            {
                "actor.features_extractor": ["actor.latent_pi.0.weight"],
                "critic.features_extractor": ["critic.qf0.0.weight", "critic.qf1.0.weight"],
            },
        ),
        (TD3, True, {"net_arch": []}, {"actor.features_extractor": ["actor.mu.0.weight"]}),
    ],
)
def test_units_of_convolutional_features_are_found(
    kind: Any, continuous: bool, options: dict[str, Any], readers: dict[str, list[str]]
) -> None:
    buffer = {} if kind is PPO else {"buffer_size": 10}
    model = kind("CnnPolicy", Pictures(continuous), policy_kwargs=options, device="cpu", **buffer)
    hidden = {layer.weight: list(layer.readers) for layer in networks.of_model(model).hidden}
    for extractor, names in readers.items():
        assert hidden[f"{extractor}.linear.0.weight"] == names


class Headed(BaseFeaturesExtractor):
    """Has a layer called ``linear`` that another one reads."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, features_dim=16)
        self.linear = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.ReLU())
        self.head = torch.nn.Linear(64, 16)

    def forward(self, observations: Tensor) -> Tensor:
        return self.head(self.linear(observations))


def test_layers_behind_other_extractors_are_not_guessed() -> None:
    policy = {**ARCH, "features_extractor_class": Headed}
    model = DQN("MlpPolicy", Follow(), policy_kwargs=policy, **OFF)
    model.learn(100, callback=train.Static(sparsity=0.5))
    assert all("linear" not in layer.weight for layer in networks.of_model(model).hidden)
    recurrent = RecurrentPPO("CnnLstmPolicy", Pictures(), n_steps=16, batch_size=8, policy_kwargs={"net_arch": [8]})
    assert all("linear" not in layer.weight for layer in networks.of_model(recurrent).hidden)
    recurrent.learn(32, callback=train.Static(sparsity=0.5))
