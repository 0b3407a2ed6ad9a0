"""Removing equals zeroing, in every tensor at once or in none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunerl import remove
from prunerl.agents.sb3 import SB3Agent
from prunerl.errors import BudgetError, RemovalError
from prunerl.trace import Trace, forward, layer_groups, trace, unit_groups, weight_groups
from prunerl.types import Decision, Group, State, Tie

LEARNERS = ("ppo/CartPole-v1", "a2c/CartPole-v1", "dqn/CartPole-v1", "ppo/Hopper-v3")


def half(groups: Iterable[Group], seed: int = 0) -> Decision:
    """Return a random decision that gives up half of each group."""
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.units, generator=generator) < (g.units + 1) // 2 for g in groups}


def traced_units(agent: SB3Agent, observations: Tensor) -> tuple[Trace, tuple[Group, ...]]:
    traced = trace(agent.policy.network, observations[:3])
    return traced, unit_groups(traced, agent.state.tensors)


def halved(agent: SB3Agent, observations: Tensor) -> tuple[SB3Agent, Decision, Trace]:
    """Return the agent with half of its actor's units."""
    traced, groups = traced_units(agent, observations)
    decision = half(groups)
    state = remove.remove(traced, agent.state, groups, decision, ties=agent.ties, observations=observations)
    return agent.with_state(state), decision, traced


def copied(state: State) -> State:
    return State(
        {n: t.clone() for n, t in state.tensors.items()},
        {n: {k: m.clone() for k, m in entries.items()} for n, entries in state.moments.items()},
        {n: m.clone() for n, m in state.masks.items()},
    )


def flat(state: State) -> dict[str, Tensor]:
    moments = {f"{n}/{k}": m for n, entries in state.moments.items() for k, m in entries.items()}
    return {**state.tensors, **moments, **{f"mask of {n}": m for n, m in state.masks.items()}}


def assert_identical(first: State, second: State) -> None:
    a, b = flat(first), flat(second)
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


def state_of(network: nn.Module) -> State:
    return State({n: t.detach().clone() for n, t in network.state_dict().items()})


def test_removing_equals_zeroing(real: SB3Agent, inputs: Callable[..., Tensor]) -> None:
    observations = inputs(real)
    smaller, decision, traced = halved(real, observations)
    groups = unit_groups(traced, real.state.tensors)
    masked = forward(traced, remove.zeroed(real.state, groups, decision), observations)
    torch.testing.assert_close(smaller.policy.network(observations), masked, rtol=1e-4, atol=1e-4)
    assert [g.units for g in unit_groups(traced, smaller.state.tensors)] == [(g.units + 1) // 2 for g in groups]


def test_keeping_everything_changes_nothing(real: SB3Agent, inputs: Callable[..., Tensor]) -> None:
    observations = inputs(real, 8)
    traced, groups = traced_units(real, observations)
    everything = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
    same = remove.remove(traced, real.state, groups, everything, ties=real.ties, observations=observations)
    assert_identical(same, real.state)


def test_groups_that_are_not_decided_on_stay_whole(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("ppo/CartPole-v1")
    traced, groups = traced_units(agent, inputs(agent, 8))
    decision = half(groups[:1])
    state = remove.remove(traced, agent.state, groups, decision, ties=agent.ties, observations=inputs(agent, 8))
    assert [g.units for g in unit_groups(traced, state.tensors)] == [32, 64]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d, name: {**d, "nobody": d[name]}, RemovalError, "Group 'nobody' is not among"),
        (lambda d, name: {**d, name: d[name][:-1]}, RemovalError, "Group '{name}' needs a bool mask of shape"),
        (lambda d, name: {**d, name: d[name].float()}, RemovalError, "Group '{name}' needs a bool mask of shape"),
        (lambda d, name: {**d, name: torch.zeros_like(d[name])}, BudgetError, "Group '{name}' would keep 0 of"),
    ],
    ids=["unknown group", "wrong shape", "wrong type", "emptied"],
)
@pytest.mark.parametrize("agent_name", ["ppo/CartPole-v1", "dqn/CartPole-v1"])
def test_a_wrong_decision_changes_nothing_and_names_the_group(
    load_agent: Callable[[str], SB3Agent],
    inputs: Callable[..., Tensor],
    agent_name: str,
    spoil: Callable[[Decision, str], Decision],
    error: type[Exception],
    message: str,
) -> None:
    agent = load_agent(agent_name)
    traced, groups = traced_units(agent, inputs(agent, 8))
    before = copied(agent.state)
    decision = spoil(half(groups), groups[-1].name)
    with pytest.raises(error, match=message.format(name=groups[-1].name.replace(".", r"\."))):
        remove.remove(traced, agent.state, groups, decision, ties=agent.ties, observations=inputs(agent, 8))
    assert_identical(agent.state, before)


@pytest.mark.parametrize("units", [True, False])
def test_a_group_of_a_tensor_that_is_not_there_is_refused(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor], units: bool
) -> None:
    agent = load_agent("ppo/CartPole-v1")
    traced, groups = traced_units(agent, inputs(agent, 8))
    groups = groups if units else weight_groups(traced, agent.state)
    without = State({n: t for n, t in agent.state.tensors.items() if n != "action_net.weight"})
    decision = half(groups)
    with pytest.raises(RemovalError, match=r"owns tensor 'action_net.weight'"):
        remove.remove(traced, without, groups, decision, ties=(), observations=inputs(agent, 8))


def test_a_result_that_differs_from_the_masked_original_is_refused(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, honest = load_agent("ppo/CartPole-v1"), remove.cut
    traced, groups = traced_units(agent, inputs(agent))

    def shifted(state: State, groups: Sequence[Group], decision: Decision, ties: Sequence[Tie]) -> State:
        return honest(state, groups, {n: keep.roll(1) for n, keep in decision.items()}, ties)

    monkeypatch.setattr(remove, "cut", shifted)
    before = copied(agent.state)
    with pytest.raises(RemovalError, match="differs from the masked original"):
        remove.remove(traced, agent.state, groups, half(groups), ties=agent.ties, observations=inputs(agent))
    assert_identical(agent.state, before)


def expected(tensor: Tensor, name: str, groups: Sequence[Group], decision: Decision) -> Tensor:
    """Select by boolean masks what ``index_select`` should."""
    for group in groups:
        for part in group.slices:
            if part.tensor == name:
                tensor = tensor[decision[group.name]] if part.dim == 0 else tensor[:, decision[group.name]]
    return tensor


def test_moments_are_sliced_along_with_their_parameters(real: SB3Agent, inputs: Callable[..., Tensor]) -> None:
    smaller, decision, traced = halved(real, inputs(real, 8))
    groups = unit_groups(traced, real.state.tensors)
    matched = 0
    for name, moments in real.state.moments.items():
        for key, moment in moments.items():
            got = smaller.state.moments[name][key]
            if moment.dim() > 0 and "log_std" not in name:
                assert torch.equal(got, expected(moment, name, groups, decision))
                assert got.shape == smaller.state.tensors[name].shape
                matched += got.shape != moment.shape
    if not any("starts anew" in note for note in real.notes):
        assert matched > 0


@pytest.mark.parametrize("name", LEARNERS)
def test_the_optimizer_holds_the_networks_parameters_and_fitting_moments(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor], name: str
) -> None:
    agent = load_agent(name)
    model = halved(agent, inputs(agent, 8))[0].model()
    trained = model.policy.q_net if name.startswith("dqn") else model.policy
    held = [p for group in model.policy.optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in trained.parameters()}
    for parameter, moments in model.policy.optimizer.state.items():
        assert all(m.shape == parameter.shape for m in moments.values() if isinstance(m, Tensor) and m.dim() > 0)


@pytest.mark.parametrize("name", ["dqn/CartPole-v1", "dqn/LunarLander-v2"])
def test_a_target_network_keeps_the_same_units(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor], name: str
) -> None:
    agent = load_agent(name)
    smaller, decision, traced = halved(agent, inputs(agent, 8))
    groups = unit_groups(traced, agent.state.tensors)
    for source in traced.parameters:
        target = source.replace("q_net.", "q_net_target.", 1)
        assert torch.equal(
            smaller.state.tensors[target], expected(agent.state.tensors[target], source, groups, decision)
        )


def test_gsde_noise_follows_the_last_hidden_layer(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("ppo/Pendulum-v1")
    smaller, decision, _ = halved(agent, inputs(agent, 8))
    keep = decision["mlp_extractor.policy_net.2"]
    assert torch.equal(smaller.state.tensors["log_std"], agent.state.tensors["log_std"][keep])
    for key, moment in agent.state.moments["log_std"].items():
        assert torch.equal(smaller.state.moments["log_std"][key], moment[keep] if moment.dim() else moment)


@pytest.mark.parametrize("name", [*LEARNERS, "ppo/Pendulum-v1"])
def test_after_surgery_training_changes_every_parameter(
    load_agent: Callable[[str], SB3Agent],
    inputs: Callable[..., Tensor],
    quick: Callable[[SB3Agent], SB3Agent],
    name: str,
) -> None:
    agent = quick(load_agent(name))
    smaller, _, _ = halved(agent, inputs(agent, 8))
    trained = smaller.learn(16, seed=0)
    assert {n: t.shape for n, t in trained.state.tensors.items()} == {
        n: t.shape for n, t in smaller.state.tensors.items()
    }
    followers = "q_net_target."  # they change by copying, now and then
    learning = [n for n in smaller.state.tensors if not n.startswith(followers)]
    assert [n for n in learning if torch.equal(trained.state.tensors[n], smaller.state.tensors[n])] == []


def hidden_weights(groups: Sequence[Group], seed: int) -> Decision:
    """Return a random decision on the weights between the hidden layers, by which no unit dies."""
    generator = torch.Generator().manual_seed(seed)
    kept = {g.name: torch.ones(g.units, dtype=torch.bool) for g in groups}
    return {**kept, groups[1].name: torch.rand(groups[1].units, generator=generator) > 0.5}


def drop_some_weights(agent: SB3Agent, observations: Tensor) -> tuple[State, Mapping[str, Tensor], Trace]:
    traced = trace(agent.policy.network, observations[:3])
    groups = weight_groups(traced, agent.state)
    decision = hidden_weights(groups, seed=0)
    return (
        remove.remove(traced, agent.state, groups, decision, ties=agent.ties, observations=observations),
        {name: keep.view(agent.state.tensors[name].shape) for name, keep in decision.items()},
        traced,
    )


def test_single_weights_are_exactly_zero_and_the_rest_untouched(real: SB3Agent, inputs: Callable[..., Tensor]) -> None:
    state, keep, traced = drop_some_weights(real, inputs(real, 8))
    copies = remove.replicas(real.state, real.ties)[-1]
    for name, mask in keep.items():
        for held in (name, *([copies[name]] if name in copies else [])):
            assert torch.equal(state.masks[held], mask)
            assert torch.equal(state.tensors[held], torch.where(mask, real.state.tensors[held], 0.0))
        for key, moment in state.moments.get(name, {}).items():
            before = real.state.moments[name][key]
            assert torch.equal(moment, torch.where(mask, before, 0.0) if before.dim() else before)
    untouched = set(real.state.tensors) - set(keep) - {copies.get(name) for name in keep}
    assert [n for n in untouched if not torch.equal(state.tensors[n], real.state.tensors[n])] == []
    assert len(traced.layers) == len(keep)


def test_weights_once_given_up_stay_so_in_later_decisions(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("dqn/CartPole-v1")
    state, keep, traced = drop_some_weights(agent, inputs(agent, 8))
    groups = weight_groups(traced, state)
    others = hidden_weights(groups, seed=1)
    again = remove.remove(traced, state, groups, others, ties=agent.ties, observations=inputs(agent, 8))
    for name, mask in keep.items():
        assert torch.equal(again.masks[name], mask & others[name].view(mask.shape))
        assert bool((again.tensors[name][~again.masks[name]] == 0).all())


def test_units_cut_from_a_masked_network_take_their_masks_along(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("dqn/CartPole-v1")
    state, _, _ = drop_some_weights(agent, inputs(agent, 8))
    smaller, _, _ = halved(agent.with_state(state), inputs(agent, 8))
    assert set(smaller.state.masks) == set(state.masks)
    for name, mask in smaller.state.masks.items():
        assert mask.shape == smaller.state.tensors[name].shape
        assert bool((smaller.state.tensors[name][~mask] == 0).all())


def hand_made() -> nn.Sequential:
    """Unit 1 of the first layer is the constant tanh(0.5), unit 2 is read by no one."""
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight[1] = 0.0
        network[0].bias[1] = 0.5
        network[2].weight[:, 2] = 0.0
    return network


def test_dead_units_are_folded_away_exactly() -> None:
    network, x = hand_made(), torch.randn(20, 2)
    traced, state = trace(network, x[:2]), state_of(network)
    folded = remove.fold_dead(traced, state, ties=(), observations=x)
    assert [g.units for g in unit_groups(traced, folded.tensors)] == [1, 2]
    assert torch.equal(folded.tensors["0.weight"], state.tensors["0.weight"][:1])
    wanted = state.tensors["2.bias"] + state.tensors["2.weight"][:, 1] * torch.tensor(0.5).tanh()
    torch.testing.assert_close(folded.tensors["2.bias"], wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(forward(traced, folded.tensors, x), network(x).detach(), rtol=1e-6, atol=1e-7)


def test_a_layer_that_dies_whole_keeps_one_unit_and_its_function() -> None:
    network, x = hand_made(), torch.randn(20, 2)
    with torch.no_grad():
        network[2].weight.zero_()
    traced = trace(network, x[:2])
    folded = remove.fold_dead(traced, state_of(network), ties=(), observations=x)
    assert [g.units for g in unit_groups(traced, folded.tensors)] == [1, 1]
    torch.testing.assert_close(forward(traced, folded.tensors, x), network(x).detach(), rtol=1e-6, atol=1e-7)


def test_without_a_bias_to_take_it_a_constant_unit_stays() -> None:
    network, x = hand_made(), torch.randn(20, 2)
    network[2] = nn.Linear(3, 2, bias=False)
    traced = trace(network, x[:2])
    folded = remove.fold_dead(traced, state_of(network), ties=(), observations=x)
    assert torch.equal(folded.tensors["0.weight"], network[0].weight)


def test_dropping_a_layer_of_a_linear_network_is_exact() -> None:
    network, x = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2)), torch.randn(50, 3)
    traced, state = trace(network, x[:2]), state_of(network)
    decision = {"0": torch.tensor([False])}
    left = remove.remove(traced, state, layer_groups(traced), decision, ties=(), observations=x)
    assert set(left.tensors) == {"2.weight", "2.bias"}
    found = nn.functional.linear(x, left.tensors["2.weight"], left.tensors["2.bias"])
    torch.testing.assert_close(found, network(x).detach(), rtol=1e-4, atol=1e-4)


def test_dropping_a_layer_worked_out() -> None:
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
    values = {"0.weight": [[1.0]], "0.bias": [0.0], "2.weight": [[4.0]], "2.bias": [1.0]}
    state = State({n: torch.tensor(v) for n, v in values.items()})
    x = torch.tensor([[-1.0], [1.0]])  # the activation is 0 and 1 there: the line 0.5 z + 0.5
    left = remove.compose(trace(network, x), state, "0", ties=(), observations=x)
    assert {n: t.tolist() for n, t in left.tensors.items()} == {"2.weight": [[2.0]], "2.bias": [3.0]}


def test_a_layer_is_dropped_from_target_and_moments_too(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor]
) -> None:
    agent = load_agent("dqn/CartPole-v1")
    traced = trace(agent.policy.network, inputs(agent, 3))
    groups, decision = layer_groups(traced), {"q_net.q_net.2": torch.tensor([False])}
    state = remove.remove(traced, agent.state, groups, decision, ties=agent.ties, observations=inputs(agent))
    left = agent.with_state(state)
    assert {n.split(".")[2] for n in left.state.tensors} == {"0", "2"}
    for name, tensor in left.state.tensors.items():
        online = name.replace("q_net_target.", "q_net.", 1)
        assert left.state.tensors[online].shape == tensor.shape
        assert all(m.shape == tensor.shape for m in left.state.moments.get(name, {}).values() if m.dim())
    assert left.policy.network(inputs(agent)).shape == (64, 2)


def test_gsde_noise_follows_when_the_last_hidden_layer_is_dropped(
    load_agent: Callable[[str], SB3Agent], inputs: Callable[..., Tensor], quick: Callable[[SB3Agent], SB3Agent]
) -> None:
    agent = quick(load_agent("ppo/Pendulum-v1"))
    smaller, _, traced = halved(agent, inputs(agent, 8))
    groups, decision = layer_groups(traced), {"mlp_extractor.policy_net.2": torch.tensor([False])}
    observations = inputs(agent)
    state = remove.remove(traced, smaller.state, groups, decision, ties=agent.ties, observations=observations)
    left = smaller.with_state(state)
    wanted = smaller.state.tensors["log_std"].mean(dim=0).expand(32, 1)
    torch.testing.assert_close(left.state.tensors["log_std"], wanted)
    assert left.learn(16, seed=0).state.tensors["log_std"].shape == (32, 1)


def test_only_one_layer_is_dropped_at_a_time() -> None:
    network, x = hand_made(), torch.randn(20, 2)
    traced, state = trace(network, x[:2]), state_of(network)
    decision = {"0": torch.tensor([False]), "2": torch.tensor([False])}
    with pytest.raises(RemovalError, match="one layer"):
        remove.remove(traced, state, layer_groups(traced), decision, ties=(), observations=x)


def test_what_a_line_explains() -> None:
    x = torch.randn(200, 3)
    straight = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2))
    curved = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        curved[0].weight *= 10.0
    shares = [remove.unexplained(trace(n, x[:2]), state_of(n).tensors, "0", x) for n in (straight, curved)]
    assert shares[0] < 1e-8
    assert 0.01 < shares[1] < 1.0


def test_a_copy_of_the_network_is_told_from_what_merely_follows(load_agent: Callable[[str], SB3Agent]) -> None:
    dqn, gsde = load_agent("dqn/CartPole-v1"), load_agent("ppo/Pendulum-v1")
    names: Any = remove.replicas(dqn.state, dqn.ties)
    assert names[1]["q_net.q_net.0.bias"] == "q_net_target.q_net.0.bias"
    assert remove.replicas(gsde.state, gsde.ties) == [{}]
    synced = remove.follow(dqn.state, dqn.ties)
    assert all(torch.equal(synced.tensors[a], synced.tensors[b]) for a, b in names[1].items())


def test_a_layer_after_a_memory_is_dropped_as_one_of_single_states_is() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.GRU(3, 4, batch_first=True)
            self.hidden, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(2.0 * self.hidden(self.memory(x)[0]))

    torch.manual_seed(0)  # for the layers' initial weights, which take no generator
    network = Recurrent().requires_grad_(False)
    x = torch.randn(6, 7, 3)
    traced = trace(network, x, recurrent=True)
    state = State({n: t.detach() for n, t in network.state_dict().items()})
    left = remove.compose(traced, state, "hidden", ties=(), observations=x)
    assert remove.unexplained(traced, state.tensors, "hidden", x) < 1e-10
    hidden = network.memory(x)[0]
    got = hidden @ left.tensors["out.weight"].T + left.tensors["out.bias"]
    torch.testing.assert_close(got, network(x))
