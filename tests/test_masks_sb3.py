"""Masks held in a live Stable-Baselines3 model are exact after every update, in its target networks too."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn.utils import prune

from prunerl import masks
from prunerl.errors import LearnError, RemovalError

SMALL = {"net_arch": [16, 16]}
OFF_POLICY = {"learning_starts": 4, "buffer_size": 200, "batch_size": 8, "train_freq": 1, "gradient_steps": 1}
MODELS: dict[str, Callable[[], BaseAlgorithm]] = {
    "ppo": lambda: PPO(
        "MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=8, n_epochs=2, policy_kwargs={**SMALL}, seed=0
    ),
    "dqn": lambda: DQN(
        "MlpPolicy", "CartPole-v1", tau=0.3, target_update_interval=2, policy_kwargs={**SMALL}, seed=0, **OFF_POLICY
    ),
    "sac": lambda: SAC("MlpPolicy", "Pendulum-v1", tau=0.3, policy_kwargs={**SMALL}, seed=0, **OFF_POLICY),
    "td3": lambda: TD3("MlpPolicy", "Pendulum-v1", tau=0.3, policy_kwargs={**SMALL}, seed=0, **OFF_POLICY),
    "tqc": lambda: TQC("MlpPolicy", "Pendulum-v1", tau=0.3, policy_kwargs={**SMALL}, seed=0, **OFF_POLICY),
    "qrdqn": lambda: QRDQN(
        "MlpPolicy", "CartPole-v1", tau=0.3, target_update_interval=2, policy_kwargs={**SMALL}, seed=0, **OFF_POLICY
    ),
}
TARGETED = [name for name in MODELS if name != "ppo"]
STEPS = 32


@pytest.fixture(autouse=True)
def _small_moments_are_raised_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "RAISED", 1)


def built(name: str) -> BaseAlgorithm:
    """Return a model that has trained a little, so that it has momentum and targets of their own."""
    return MODELS[name]().learn(STEPS)


def drawn(model: BaseAlgorithm) -> dict[str, Tensor]:
    """Draw a mask of sparsity about 0.8 for each weight matrix of the online networks."""
    generator = torch.Generator().manual_seed(1)
    named = [(n, p) for n, p in model.policy.named_parameters() if p.dim() == 2 and "_target." not in n]
    return {n: torch.rand(p.shape, generator=generator) > 0.8 for n, p in named}


def optimizers_of(model: BaseAlgorithm) -> list[torch.optim.Optimizer]:
    parts = (model.policy, getattr(model, "actor", None), getattr(model, "critic", None))
    found = [getattr(part, "optimizer", None) for part in parts]
    return [optimizer for optimizer in found if optimizer is not None]


def target_of(name: str) -> str:
    network, _, rest = name.partition(".")
    return f"{network}_target.{rest}"


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    state = optimizer.state.get(parameter, {})
    return [m for k, m in state.items() if k != "step" and isinstance(m, Tensor) and m.shape == parameter.shape]


def multiply_after(optimizer: torch.optim.Optimizer, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """The plain way, which :func:`masks.hold` must equal by value: multiply all there is after every step."""

    @torch.no_grad()
    def enforce(*_: Any) -> None:
        for parameter, mask in pairs:
            for tensor in (parameter, *moments_of(optimizer, parameter)):
                tensor.mul_(mask)

    enforce()
    optimizer.register_step_post_hook(enforce)


@dataclass
class Watch:
    """Look at a model after each update of its optimizers and of its targets, and write down what is wrong."""

    model: BaseAlgorithm
    held: dict[str, Tensor]
    wrong: list[str] = field(default_factory=list)
    updates: int = 0
    averages: int = 0

    def __post_init__(self) -> None:
        self.names = [n for n, _ in self.model.policy.named_parameters()]
        self.parameters = dict(self.model.policy.named_parameters())
        self.trained = {id(p) for o in optimizers_of(self.model) for g in o.param_groups for p in g["params"]}

    def after_update(self, *_: Any) -> None:
        """After one step of one optimizer."""
        self.updates += 1
        self.note("names", [n for n, _ in self.model.policy.named_parameters()] == self.names)
        self.note("parametrization", not any(hasattr(m, "parametrizations") for m in self.model.policy.modules()))
        for name, mask in self.held.items():
            parameter = self.parameters[name]
            self.note("weights", bool((parameter[~mask] == 0).all()))
            for optimizer in optimizers_of(self.model):
                moments = moments_of(optimizer, parameter)
                self.note("moments", all(bool((m[~mask] == 0).all()) for m in moments))
            if target_of(name) in self.parameters:
                self.note("targets", bool((self.parameters[target_of(name)][~mask] == 0).all()))

    def around_average(self, average: Callable[..., None]) -> Callable[..., None]:
        """Around Stable-Baselines3's average of online and target parameters, which pairs them by their order."""

        def averaged(online: Any, targets: Any, tau: float) -> None:
            online, targets = list(online), list(targets)
            old = {n: p.detach().clone() for n, p in self.parameters.items()}
            average(online, targets, tau)
            given = {id(t) for t in targets}
            for name in self.names:
                target = self.parameters.get(target_of(name))
                if target is not None and id(target) in given:
                    self.averages += 1
                    expected = tau * old[name] + (1 - tau) * old[target_of(name)]
                    self.note("average", torch.allclose(target, expected, rtol=1e-5, atol=1e-7))

        return averaged

    def note(self, what: str, good: bool) -> None:
        if not good and what not in self.wrong:
            self.wrong.append(what)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseAlgorithm, dict[str, Tensor]], Watch]:
    """Train a model on under a watch."""

    def run(model: BaseAlgorithm, held: dict[str, Tensor]) -> Watch:
        watch = Watch(model, held)
        for optimizer in optimizers_of(model):
            optimizer.register_step_post_hook(watch.after_update)
        module = sys.modules[type(model).__module__]
        if hasattr(module, "polyak_update"):
            monkeypatch.setattr(module, "polyak_update", watch.around_average(module.polyak_update))
        try:
            model.learn(STEPS, reset_num_timesteps=False)
        except (RuntimeError, ValueError) as error:
            watch.wrong.append(f"crash: {error}")
        return watch

    return run


Watched = Callable[[BaseAlgorithm, dict[str, Tensor]], Watch]


@pytest.mark.parametrize("name", MODELS)
def test_masks_are_exact_after_every_update(name: str, watched: Watched) -> None:
    model = built(name)
    decided = drawn(model)
    start = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    held = masks.attach(model.policy, decided)
    for other, parameter in model.policy.named_parameters():
        mask = decided.get(other, decided.get(other.replace("_target.", ".", 1)))
        assert torch.equal(parameter, start[other] if mask is None else start[other] * mask)  # nothing else changed
    watch = watched(model, decided)
    assert watch.wrong == []
    assert watch.updates >= 8
    assert watch.averages > 0 or name == "ppo"
    for other, mask in decided.items():
        after = model.policy.get_parameter(other)
        assert int((after == 0).sum()) == int((~mask).sum())  # the sparsity that was set, no more and no less
        assert not torch.equal(after, start[other] * mask)
    held.remove()
    model.learn(STEPS, reset_num_timesteps=False)
    assert any(bool((model.policy.get_parameter(n)[~m] != 0).any()) for n, m in decided.items())


@pytest.mark.parametrize("name", MODELS)
def test_training_under_masks_equals_multiplying_everything_after_each_update(name: str) -> None:
    models = [built(name) for _ in range(3)]
    decided = drawn(models[0])
    masks.attach(models[0].policy, decided)
    parameters = dict(models[1].policy.named_parameters())
    for optimizer in optimizers_of(models[1]):
        trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
        multiply_after(optimizer, [(parameters[n], m) for n, m in decided.items() if id(parameters[n]) in trained])
    with torch.no_grad():
        for other, mask in decided.items():
            if target_of(other) in parameters:
                parameters[target_of(other)].mul_(mask)
    for model in models:
        model.set_random_seed(0)
        model.learn(STEPS, reset_num_timesteps=False)
    ours, plain, dense = (dict(model.policy.named_parameters()) for model in models)
    assert all(torch.equal(ours[n], plain[n]) for n in plain)
    assert not any(torch.equal(ours[n], dense[n]) for n in decided)
    for first, second in zip(optimizers_of(models[0]), optimizers_of(models[1]), strict=True):
        for a, b in zip(first.state.values(), second.state.values(), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in b)


def zero_once(model: BaseAlgorithm, decided: dict[str, Tensor]) -> None:
    for part, leaf, mask in leaves(model, decided):
        prune.custom_from_mask(part, leaf, mask)
        prune.remove(part, leaf)


def leave_prune_on(model: BaseAlgorithm, decided: dict[str, Tensor]) -> None:
    for part, leaf, mask in leaves(model, decided):
        prune.custom_from_mask(part, leaf, mask)


def mask_gradients_only(model: BaseAlgorithm, decided: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, mask in decided.items():
            parameter = model.policy.get_parameter(name)
            parameter.mul_(mask)
            parameter.register_hook(lambda gradient, mask=mask: gradient * mask)


def leaves(model: BaseAlgorithm, decided: dict[str, Tensor]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for name, mask in decided.items():
        part, _, leaf = name.rpartition(".")
        yield model.policy.get_submodule(part), leaf, mask


@pytest.mark.parametrize("name", [n for n in MODELS if n != "qrdqn"])
@pytest.mark.parametrize(
    ("wrongly", "expected"),
    [
        (zero_once, {"weights", "moments"}),
        (mask_gradients_only, {"weights", "moments"}),
        (leave_prune_on, {"names", "weights", "moments"}),
    ],
)
def test_the_watch_sees_what_is_wrong_with_other_ways(
    name: str,
    wrongly: Callable[[BaseAlgorithm, dict[str, Tensor]], None],
    expected: set[str],
    watched: Watched,
) -> None:
    model = built(name)
    decided = drawn(model)
    watch = Watch(model, decided)  # made before, so that it knows the parameters' names
    wrongly(model, decided)
    run = watched(model, decided) if wrongly is not leave_prune_on else rewatched(watch)
    assert expected <= set(run.wrong)
    if name != "ppo":
        assert "targets" in run.wrong
    if name != "ppo" and wrongly is leave_prune_on:
        assert any(what.startswith("crash") for what in run.wrong)  # online and target parameters in unlike order


def rewatched(watch: Watch) -> Watch:
    """Train under a watch that was made earlier."""
    for optimizer in optimizers_of(watch.model):
        optimizer.register_step_post_hook(watch.after_update)
    try:
        watch.model.learn(STEPS, reset_num_timesteps=False)
    except (RuntimeError, ValueError) as error:
        watch.wrong.append(f"crash: {error}")
    return watch


class OneLayer(BaseFeaturesExtractor):
    """A features extractor with a weight of its own."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, 8)
        self.layer = nn.Linear(3, 8)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.relu(self.layer(observations))


def test_an_extractor_that_actor_and_critic_share_is_held_in_the_target_as_well(watched: Watched) -> None:
    kwargs = {**SMALL, "features_extractor_class": OneLayer, "share_features_extractor": True}
    model = SAC("MlpPolicy", "Pendulum-v1", tau=0.3, policy_kwargs=kwargs, seed=0, **OFF_POLICY).learn(STEPS)
    name = "actor.features_extractor.layer.weight"
    assert model.policy.get_parameter(name) is model.critic.features_extractor.layer.weight
    mask = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    masks.attach(model.policy, {name: mask})
    assert watched(model, {name: mask}).wrong == []
    target = model.critic_target.features_extractor.layer.weight
    assert bool((target[~mask] == 0).all())
    assert bool((target[mask] != 0).all())


def test_parameters_set_during_training_are_masked_after_the_next_update() -> None:
    model = built("dqn")
    dense = model.get_parameters()
    dense = {k: {n: t.clone() if isinstance(t, Tensor) else t for n, t in v.items()} for k, v in dense.items()}
    decided = drawn(model)
    masks.attach(model.policy, decided)
    model.set_parameters(dense)
    assert any(bool((model.policy.get_parameter(n)[~m] != 0).any()) for n, m in decided.items())
    model.learn(STEPS, reset_num_timesteps=False)
    for name, mask in decided.items():
        for parameter in (model.policy.get_parameter(name), model.policy.get_parameter(target_of(name))):
            assert bool((parameter[~mask] == 0).all())


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_a_model_is_saved_as_ever_while_masks_are_held(name: str) -> None:
    model = built(name)
    decided = drawn(model)
    masks.attach(model.policy, decided)
    model.learn(STEPS, reset_num_timesteps=False)
    buffer = io.BytesIO()
    model.save(buffer)
    loaded = type(model).load(buffer)
    for other, parameter in model.policy.named_parameters():
        assert torch.equal(parameter, loaded.policy.get_parameter(other))
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in optimizers_of(loaded))


def test_masks_that_cannot_be_held_are_refused() -> None:
    model = built("dqn")
    weight = "q_net.q_net.0.weight"
    mask = drawn(model)[weight]
    start = model.policy.get_parameter(weight).detach().clone()
    with pytest.raises(RemovalError, match=r"'q_net.9.weight', which is no parameter"):
        masks.attach(model.policy, {"q_net.9.weight": mask})
    with pytest.raises(RemovalError, match=r"needs a bool mask of shape \(16, 4\), got torch.bool of shape \(4, 16\)"):
        masks.attach(model.policy, {weight: mask.T})
    with pytest.raises(RemovalError, match=r"got torch\.float32"):
        masks.attach(model.policy, {weight: mask.float()})
    with pytest.raises(RemovalError, match="differs from that of"):
        masks.attach(model.policy, {weight: mask, target_of(weight): ~mask})
    with pytest.raises(LearnError, match=r"\['q_net.q_net.0.weight'\] are not trained by any optimizer"):
        masks.attach(model.policy, {weight: mask}, optimizers=[torch.optim.Adam(nn.Linear(1, 1).parameters())])
    with pytest.raises(LearnError, match="are not trained by this optimizer"):
        masks.hold(
            torch.optim.Adam(nn.Linear(1, 1).parameters()), dict(model.policy.named_parameters()), {weight: mask}
        )
    assert torch.equal(model.policy.get_parameter(weight), start)


@pytest.mark.parametrize("name", MODELS)
def test_replaced_masks_are_exact_after_every_update_and_what_grows_starts_at_zero(name: str, watched: Watched) -> None:
    model = built(name)
    decided = drawn(model)
    held = masks.attach(model.policy, decided)
    model.learn(STEPS, reset_num_timesteps=False)
    others = {n: ~m for n, m in decided.items()}
    start = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    held.replace(others)
    for other, parameter in model.policy.named_parameters():
        mask = others.get(other, others.get(other.replace("_target.", ".", 1)))
        assert torch.equal(parameter, start[other] if mask is None else start[other] * mask)
    assert watched(model, others).wrong == []
    for other, mask in others.items():
        grown = model.policy.get_parameter(other)[mask & ~decided[other]]
        assert bool((grown != 0).any())  # where a unit never fires a weight has no gradient


def test_masks_that_cannot_replace_others_are_refused_and_change_nothing() -> None:
    model = built("dqn")
    decided = drawn(model)
    held = masks.attach(model.policy, decided)
    start = {n: p.detach().clone() for n, p in model.policy.named_parameters()}
    first, *rest = decided
    with pytest.raises(RemovalError, match=f"no mask for .*{first}"):
        held.replace({n: decided[n] for n in rest})
    with pytest.raises(RemovalError, match="needs a bool mask"):
        held.replace({**{n: ~m for n, m in decided.items()}, rest[-1]: decided[first]})
    assert all(torch.equal(p, start[n]) for n, p in model.policy.named_parameters())
