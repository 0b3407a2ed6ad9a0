"""Changes of widths in live models: exact, complete, and felt by nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shrinking import CASES, STEPS, WIDE, again, made, observations, optimized, outputs
from torch import Tensor

from prunerl.errors import BudgetError
from prunerl.train.shrink_cut import Cut
from prunerl.train.shrink_live import Live, everywhere

NARROW = (9, 7)


def learnt(name: str, cut: Cut | None = None) -> Live:
    """Return a live model after some training, with the states that it visited last."""
    from stable_baselines3.common.callbacks import BaseCallback

    model = made(name)
    live = Live(model, cut or Cut(refit=False), states=256, seed=0)

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            live.keep_rollout()

    model.learn(STEPS, callback=Keep())
    return live


def shrunk(live: Live) -> Any:
    return live.shrink(everywhere(live, NARROW, NARROW))


def stacks(state: dict[str, Tensor]) -> list[list[str]]:
    """Return the hidden layers of each MLP, and last the layers that read the last hidden one."""
    ordered: dict[str, list[str]] = {}
    for name, tensor in state.items():
        path = name.split(".")
        if path[-1] == "weight" and path[-2].isdigit() and tensor.dim() == 2:
            ordered.setdefault(".".join(path[:-2]), []).append(name.removesuffix(".weight"))
    readers = {
        "mlp_extractor.policy_net": ["action_net"],
        "mlp_extractor.value_net": ["value_net"],
        "actor.latent_pi": ["actor.mu", "actor.log_std", "actor.mu.0"],
    }
    whole = [s for s in ordered if not (s == "actor.mu" and "actor.latent_pi" in ordered)]
    return [[*ordered[s], *(r for r in readers.get(s, []) if f"{r}.weight" in state)] for s in whole]


def kept(old: Tensor, new: Tensor) -> Tensor:
    """Return which rows of a bias were kept; its entries differ from each other."""
    return torch.isin(old, new)


def silenced(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of before, in which nothing reads the units that are gone."""
    result = {name: tensor.clone() for name, tensor in before.items()}
    for layers in stacks(before):
        hidden = [n for n in layers if before[f"{n}.bias"].shape != after[f"{n}.bias"].shape]
        assert len(hidden) == 2
        for name, reader in zip(hidden, layers[1:], strict=False):
            keep = kept(before[f"{name}.bias"], after[f"{name}.bias"])
            assert keep.sum() == len(after[f"{name}.bias"])
            readers = [reader] if reader in hidden else layers[2:]
            for one in readers:
                result[f"{one}.weight"][:, ~keep] = 0.0
    return result


@pytest.mark.parametrize("name", CASES)
def test_shrinking_takes_away_what_the_removed_units_did_and_no_more(name: str) -> None:
    live = learnt(name)
    before = copy.deepcopy(live.model.policy.state_dict())
    shrunk(live)
    reference = made(name)
    reference.policy.load_state_dict(silenced(before, live.model.policy.state_dict()), strict=True)
    wanted, got = outputs(reference), outputs(live.model)
    assert wanted.keys() == got.keys()
    for key in wanted:
        assert torch.allclose(wanted[key], got[key], atol=1e-5, rtol=1e-4), key


@pytest.mark.parametrize("name", CASES)
def test_moments_are_those_of_the_units_that_are_left(name: str) -> None:
    live = learnt(name)
    policy = live.model.policy
    before = {n: p.detach().clone() for n, p in policy.named_parameters()}
    names = {id(p): n for n, p in policy.named_parameters()}
    old = {
        (names[id(p)], key): m.clone()
        for optimizer in optimized(live.model)
        for p, entries in optimizer.state.items()
        for key, m in entries.items()
    }
    shrunk(live)
    assert {id(p): n for n, p in policy.named_parameters()} == names  # the same objects under the same names
    checked = 0
    for optimizer in optimized(live.model):
        assert set(optimizer.state) <= {p for group in optimizer.param_groups for p in group["params"]}
        for parameter, entries in optimizer.state.items():
            own = names[id(parameter)]
            for key, moment in entries.items():
                if moment.dim() == 0:
                    assert torch.equal(moment, old[own, key])
                    continue
                assert moment.shape == parameter.shape
                if own.endswith("bias"):
                    rows = kept(before[own], parameter)
                    assert torch.equal(moment, old[own, key][rows])
                    checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", CASES)
def test_everything_goes_on_learning(name: str) -> None:
    live = learnt(name, Cut())
    held = live.model.policy.parameters  # a graph of before the change is held by what it computed
    live.model.policy.set_training_mode(True)
    stale = live.model.policy(observations(live.model, 4))
    shrunk(live)
    before = {n: p.detach().clone() for n, p in live.model.policy.named_parameters()}
    # An actor whose initial outputs are small moves its first layers little, but it moves them.
    live.model.learn(STEPS, reset_num_timesteps=False)
    del stale
    moved = {n for n, p in live.model.policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved == before.keys()
    owned = {id(p) for o in optimized(live.model) for group in o.param_groups for p in group["params"]}
    assert owned <= {id(p) for p in held()}


@pytest.mark.parametrize("name", CASES)
def test_plain_stable_baselines_loads_what_is_saved_and_trains_on(name: str, tmp_path: Path) -> None:
    live = learnt(name, Cut())
    shrunk(live)
    live.model.save(tmp_path / "model.zip")
    loaded = again(name, tmp_path / "model.zip")
    seen = observations(live.model).numpy()
    assert np.array_equal(loaded.predict(seen, deterministic=True)[0], live.model.predict(seen, deterministic=True)[0])
    wanted, got = outputs(live.model), outputs(loaded)
    assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    loaded.learn(STEPS, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 2 * STEPS
    live.model.policy.save(tmp_path / "policy.pkl")
    assert outputs(live.model).keys() == wanted.keys()
    policy = type(live.model.policy).load(tmp_path / "policy.pkl")
    assert {n: p.shape for n, p in policy.named_parameters()} == {
        n: p.shape for n, p in live.model.policy.named_parameters()
    }


@pytest.mark.parametrize("name", ["ppo", "sac", "dqn"])
def test_the_run_does_not_feel_it(name: str) -> None:
    live = learnt(name, Cut(distill=2))
    model = live.model
    np.random.seed(3)
    torch.manual_seed(3)
    arrays, numbers = np.random.get_state()[1].copy(), torch.get_rng_state().clone()
    action = copy.deepcopy(model.action_space.np_random.bit_generator.state)
    buffer = model.replay_buffer.observations.copy() if hasattr(model, "replay_buffer") else None
    entropy = model.log_ent_coef.detach().clone() if name == "sac" else None
    given = model.policy_kwargs
    modes = [part.training for part in model.policy.modules()]
    shrunk(live)
    assert np.array_equal(np.random.get_state()[1], arrays)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert model.action_space.np_random.bit_generator.state == action
    assert [part.training for part in model.policy.modules()] == modes
    assert given["net_arch"] == WIDE  # the user's own dict
    if buffer is not None:
        assert np.array_equal(buffer, model.replay_buffer.observations)
    if entropy is not None:
        assert torch.equal(entropy, model.log_ent_coef)


def test_what_a_unit_repeats_of_another_one_passes_to_that_one() -> None:
    model = made("dqn", [2])
    live = Live(model, Cut(), states=256, seed=0)
    model.learn(STEPS)
    hidden, reader = model.policy.q_net.q_net[0], model.policy.q_net.q_net[2]
    with torch.no_grad():
        hidden.weight[:] = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])  # the second is half the first
        hidden.bias[:] = torch.tensor([4.0, 2.0])
        reader.weight[:] = torch.tensor([[2.0, 1.0], [-1.0, 1.0]])
    wanted = outputs(model)["q"]
    live.shrink({"q": (1,)})
    assert hidden.bias.tolist() == [4.0]
    assert torch.allclose(reader.weight, torch.tensor([[2.5], [-0.5]]), atol=1e-3)  # w₁ + ½ w₂
    assert torch.allclose(outputs(model)["q"], wanted, atol=1e-2)


@pytest.mark.parametrize("name", ["ppo", "dqn", "sac", "td3"])
def test_refitting_loses_less_than_cutting_and_distilling_less_than_refitting(name: str) -> None:
    found = []
    for cut in (Cut(refit=False), Cut(), Cut(distill=300)):
        found.append(sum(shrunk(learnt(name, cut)).differences.values()))
    assert found[1] < 0.7 * found[0]
    assert found[2] < found[1]


def test_a_network_that_keeps_its_widths_is_left_bit_for_bit() -> None:
    live = learnt("sac", Cut())
    before = copy.deepcopy(live.model.policy.critic.state_dict())
    change = live.shrink(everywhere(live, NARROW, WIDE))
    after = live.model.policy.critic.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert change.widths == {"pi": NARROW, "qf0": tuple(WIDE), "qf1": tuple(WIDE)}
    assert change.differences["qf0"] == 0.0 < change.differences["pi"]
    assert live.model.policy_kwargs["net_arch"] == {"pi": list(NARROW), "qf": WIDE}


def test_a_change_that_fails_leaves_the_model_as_it_is() -> None:
    live = learnt("sac", Cut())
    before = copy.deepcopy(live.model.policy.state_dict())
    with pytest.raises(BudgetError, match="24 units and cannot shrink to 25"):
        live.shrink({"pi": NARROW, "qf0": NARROW, "qf1": (25, 7)})
    after = live.model.policy.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("name", CASES)
def test_growing_changes_no_output_and_what_grew_learns(name: str) -> None:
    live = learnt(name, Cut())
    shrunk(live)
    before, old = outputs(live.model), copy.deepcopy(live.model.policy.state_dict())
    change = live.grow(everywhere(live, WIDE, WIDE))
    after, new = outputs(live.model), live.model.policy.state_dict()
    assert set(change.widths.values()) == {tuple(WIDE)}
    for key in before:  # equal but for rounding: wider matrices are summed in another order
        assert torch.allclose(before[key], after[key], atol=1e-5, rtol=1e-5), key
    for key, tensor in old.items():
        assert torch.equal(new[key][tuple(slice(0, length) for length in tensor.shape)], tensor), key
        if tensor.dim() == 2:  # what was there reads the new units by zeros
            assert not new[key][: len(tensor), tensor.shape[1] :].any(), key
    for optimizer in optimized(live.model):
        for parameter, entries in optimizer.state.items():
            for moment in (m for m in entries.values() if m.dim() == parameter.dim() > 0):
                assert moment.shape == parameter.shape
                if parameter.dim() == 1 and len(parameter) == WIDE[0]:
                    assert not moment[NARROW[0] :].any()
    first = {id(p): p.detach().clone() for p in live.model.policy.parameters()}
    live.model.learn(STEPS, reset_num_timesteps=False)
    for name_, parameter in live.model.policy.named_parameters():
        assert not torch.equal(parameter, first[id(parameter)]), name_
