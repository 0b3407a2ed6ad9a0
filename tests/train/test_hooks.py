"""Two lines in a script that is not Stable-Baselines3's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunerl import train
from prunerl.errors import BudgetError, LearnError
from prunerl.train.course import sparsity


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))


class Plain(nn.Module):
    """Layers that are attributes, as many scripts have them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


CASES = [(m, network) for m in train.METHODS if m != "RLx2"] + [("Gradual", Plain), ("ReDo", Plain)]


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_a_plain_loop_learns_sparse(method: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    online, target = kind(), kind()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-2)
    often = {} if method == "Lottery" else {"every": 10}
    if method == "ReDo" and kind is Plain:
        often["sparsity"] = 0.5
    callback = getattr(train, method)(**{"sparsity": 0.7, "end": 0.7, **often})
    course = train.hook(optimizer, online, callback, updates=300, targets=[target])
    inputs = torch.rand(256, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = inputs[:, :1] - inputs[:, 1:2].abs()
    for _ in range(300):
        loss = ((online(inputs) - wanted) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for a, b in zip(target.parameters(), online.parameters(), strict=True):
                a.lerp_(b, 0.05)
        for name, mask in course.masks.items():
            assert not bool((online.get_parameter(name)[~mask] != 0).any())
            assert not bool((target.get_parameter(name)[~mask] != 0).any())
    assert float(loss) < 0.15 * float(wanted.var())
    assert sparsity(course.masks.values()) == pytest.approx(0.5 if "sparsity" in often else 0.7, abs=0.005)
    assert len(course.masks) == 2
    course.end()
    assert not optimizer._optimizer_step_pre_hooks or method


def test_what_cannot_be_is_refused() -> None:
    online = network()
    optimizer = torch.optim.SGD(online.parameters(), lr=0.1)
    with pytest.raises(LearnError, match="Use RigL"):
        train.hook(optimizer, online, train.RLx2(), updates=100)
    with pytest.raises(BudgetError, match="updates=0"):
        train.hook(optimizer, online, train.SET(), updates=0)
    with pytest.raises(BudgetError, match="ends before it starts: both are at update 1"):
        train.hook(optimizer, online, train.Gradual(start=0.6, end=0.9), updates=1)
    with pytest.raises(BudgetError, match=r"'0\.weight' would keep 0 of 128 weights"):
        train.hook(optimizer, online, train.SET(sparsity=0.9999, distribution="uniform"), updates=100)
    with pytest.raises(BudgetError, match="no weight matrix"):
        train.hook(optimizer, nn.ReLU(), train.SET(), updates=100)
    with pytest.raises(LearnError, match="not trained by any optimizer"):
        train.hook(torch.optim.SGD(network().parameters(), lr=0.1), online, train.SET(sparsity=0.5), updates=100)
