"""Two lines in a script that is not Stable-Baselines3's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunerl import masks, train
from prunerl.errors import BudgetError, LearnError, NameUnknownError
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


CASES = [(m, network) for m in train.METHODS if m != "RLx2"] + [("Gradual", Plain)]


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_a_plain_loop_learns_sparse(method: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    online, target = kind(), kind()
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-2)
    often = {} if method == "Lottery" else {"every": 10}
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
    assert sparsity(course.masks.values()) == pytest.approx(0.7, abs=0.005)
    assert len(course.masks) == 2
    course.end()
    assert hooks(optimizer) == 0


def hooks(optimizer: torch.optim.Optimizer) -> int:
    """Return how many hooks there are on an optimizer's steps."""
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def step(optimizer: torch.optim.Optimizer, *networks: nn.Module) -> None:
    """Make one update on random inputs."""
    optimizer.zero_grad()
    sum((network(torch.rand(16, 4)) - 1.0).square().mean() for network in networks).backward()  # type: ignore[union-attr]
    optimizer.step()


def smooth() -> nn.Sequential:
    """Return a network none of whose units can die."""
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))


def zeros(found: nn.Module, name: str = "2.weight") -> float:
    """Return the share of a matrix that is zero."""
    return float((found.get_parameter(name) == 0).float().mean())


def test_a_course_that_is_ended_changes_nothing_any_more() -> None:
    online = smooth()
    optimizer = torch.optim.Adam(online.parameters())
    course = train.hook(optimizer, online, train.Gradual(sparsity=0.9, every=5), updates=60)
    for _ in range(30):
        step(optimizer, online)
    held = dict(course.masks)
    assert 0.3 < zeros(online) < 0.9
    course.end()
    course.end()
    for _ in range(40):
        step(optimizer, online)
    assert zeros(online) == 0.0
    assert course.masks == held


def test_a_second_hook_takes_over_what_it_masks_and_leaves_other_networks_alone() -> None:
    actor, critic = smooth(), smooth()
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()])
    kept = train.hook(optimizer, critic, train.Static(sparsity=0.8), updates=50)
    train.hook(optimizer, actor, train.Static(sparsity=0.9), updates=50)
    train.hook(optimizer, actor, train.Static(sparsity=0.5, seed=1), updates=50)
    before = hooks(optimizer)
    for _ in range(10):
        step(optimizer, actor, critic)
    both = [sum(zeros(n, m) * n.get_parameter(m).numel() for m in ("0.weight", "2.weight")) for n in (actor, critic)]
    total = 4 * 32 + 32 * 32
    assert both[0] / total == pytest.approx(0.5, abs=0.005)
    assert both[1] / total == pytest.approx(0.8, abs=0.005)
    kept.end()
    assert hooks(optimizer) == before // 2


def test_a_hook_that_is_refused_leaves_all_as_it_was() -> None:
    online, other = smooth(), smooth()
    optimizer = torch.optim.Adam(online.parameters())
    course = train.hook(optimizer, online, train.Static(sparsity=0.5), updates=50)
    before = hooks(optimizer)
    with pytest.raises(LearnError, match="not trained by any optimizer"):
        train.hook(optimizer, nn.ModuleDict({"a": online, "b": other}), train.SET(), updates=50)
    assert hooks(optimizer) == before
    assert masks.is_held(optimizer)
    step(optimizer, online)
    for name, mask in course.masks.items():
        assert torch.equal(online.get_parameter(name) != 0, mask)


def test_what_cannot_be_is_refused() -> None:
    online = network()
    optimizer = torch.optim.SGD(online.parameters(), lr=0.1)
    with pytest.raises(LearnError, match="Use RigL"):
        train.hook(optimizer, online, train.RLx2(), updates=100)
    with pytest.raises(LearnError, match="A hook takes what masks weights"):
        train.hook(optimizer, online, train.Shrink(), updates=100)  # type: ignore[arg-type]
    for target, found in ((Plain(), "no such parameter"), (nn.Sequential(nn.Linear(4, 9)), r"\(9, 4\)")):
        with pytest.raises(LearnError, match=rf"has to have '0\.weight' of shape \(32, 4\), and has {found}"):
            train.hook(optimizer, online, train.SET(sparsity=0.5), updates=100, targets=[target])
    assert not masks.is_held(optimizer)
    train.hook(optimizer, online, train.SET(sparsity=0.5), updates=100, targets=nn.ModuleList([network()])).end()
    with pytest.raises(BudgetError, match="updates=0"):
        train.hook(optimizer, online, train.SET(), updates=0)
    with pytest.raises(BudgetError, match="ends before it starts: both are at update 1"):
        train.hook(optimizer, online, train.Gradual(start=0.6, end=0.9), updates=1)
    with pytest.raises(BudgetError, match=r"'0\.weight' would keep 0 of 128 weights"):
        train.hook(optimizer, online, train.SET(sparsity=0.9999, distribution="uniform"), updates=100)
    with pytest.raises(BudgetError, match="no weight matrix"):
        train.hook(optimizer, nn.ReLU(), train.SET(), updates=100)
    with pytest.raises(NameUnknownError, match=r"Unknown layer 'fc3'.*Choose from: 0, 2, 4"):
        train.hook(optimizer, online, train.SET(), updates=100, last=("fc3",))
    with pytest.raises(BudgetError, match=r"critic_sparsity=0\.5.*there are actor only"):
        train.hook(optimizer, online, train.SET(critic_sparsity=0.5), updates=100)
    plain = Plain()
    with pytest.raises(BudgetError, match="ReDo looks at hidden units, and none are found"):
        train.hook(torch.optim.SGD(plain.parameters(), lr=0.1), plain, train.ReDo(), updates=100)
    with pytest.raises(LearnError, match="not trained by any optimizer"):
        train.hook(torch.optim.SGD(network().parameters(), lr=0.1), online, train.SET(sparsity=0.5), updates=100)
