"""Small models of every algorithm."""

from __future__ import annotations

import pytest
from stable_baselines3.common.base_class import BaseAlgorithm
from toy import MODELS


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> BaseAlgorithm:
    """Each algorithm in turn."""
    return MODELS[request.param]()
