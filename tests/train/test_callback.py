"""Every method within ``learn()`` of every algorithm: exact masks, a schedule that ends, a task that is learnt."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sb3_contrib import ARS
from stable_baselines3 import DQN, PPO, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor
from toy import ARCH, MODELS, OFF, OFF_POLICY, Follow, Pictures, score

from prunerl import masks, train
from prunerl.errors import BudgetError, LearnError, LearnWarning
from prunerl.train import course
from prunerl.train.buffer import DynamicReplayBuffer
from prunerl.train.course import sparsity

METHODS = ("Gradual", "Lottery", "Movement", "ReDo", "RigL", "RLx2", "SET", "Static", "Surgery")
STEPS = 160


def made(method: str, **settings: Any) -> train.Sparse:
    """Return a callback whose masks change often."""
    often = {} if method == "Lottery" else {"every": 20}
    return getattr(train, method)(**{"sparsity": 0.8, "end": 0.7, **often, **settings})


def wrong(model: BaseAlgorithm, held: masks.Masks) -> Iterator[str]:
    """Yield what is not zero though it is masked: weights, moments and targets."""
    parameters = dict(model.policy.named_parameters())
    optimizers = list(masks.optimizers_of(model.policy))
    for name, mask in held.items():
        network, _, rest = name.partition(".")
        for other in (name, f"{network}_target.{rest}"):
            if other in parameters and bool((parameters[other][~mask] != 0).any()):
                yield other
        for optimizer in optimizers:
            for key, moment in optimizer.state.get(parameters[name], {}).items():
                if key != "step" and isinstance(moment, Tensor) and bool((moment[~mask] != 0).any()):
                    yield f"{key} of {name}"


# Each method with one optimizer and with several, and the method that writes into weights with every algorithm.
EXACT = [(method, name) for method in METHODS for name in MODELS if name in ("ppo", "sac") or method == "Surgery"]


@pytest.mark.parametrize(("method", "name"), EXACT)
def test_masks_are_exact_after_every_update(method: str, name: str) -> None:
    model = MODELS[name]()
    if method == "RLx2" and name == "ppo":
        with pytest.raises(LearnError, match="RLx2 needs an off-policy algorithm"):
            model.learn(STEPS, callback=made(method))
        return
    callback, seen, updates = made(method), [], 0

    class Look(train.Sparse):
        """Looks after each update, once the masks are held."""

        def _on_training_start(self) -> None:
            for optimizer in masks.optimizers_of(self.model.policy):
                optimizer.register_step_post_hook(self.look)

        def _on_rollout_start(self) -> None:
            seen.extend(wrong(self.model, callback.masks))

        def _on_training_end(self) -> None:
            seen.extend(wrong(self.model, callback.masks))

        def look(self, *_: Any) -> None:
            nonlocal updates
            updates += 1
            seen.extend(wrong(self.model, callback.masks))

    model.learn(400 if name == "a2c" else STEPS, callback=[callback, Look(callback.method)])
    assert seen == []
    assert updates > 20
    assert sparsity(callback.masks.values()) == pytest.approx(0.8, abs=0.003)
    for part, names in callback.course.parts.items() if callback.course else ():
        assert sparsity(callback.masks[n] for n in names) == pytest.approx(0.8, abs=0.003), part
    zeros = sum(int((model.policy.get_parameter(n) == 0).sum()) for n in callback.masks)
    total = sum(m.numel() for m in callback.masks.values())
    assert zeros >= round(0.797 * total)


@pytest.mark.parametrize("method", ["dense", "probability", *METHODS])
def test_a_sparse_network_learns(method: str) -> None:
    model = MODELS["dqn"]()
    before = score(model)
    callback = None
    if method == "probability":
        callback = made("Gradual", rule="probability")
    elif method != "dense":
        callback = made(method, sparsity=0.5 if method == "ReDo" else 0.8)
    model.learn(1000 if method == "Lottery" else 700, callback=callback)
    assert before < 0.7
    assert score(model) > 0.9


@pytest.mark.parametrize("name", ["ppo", "a2c", "sac", "td3"])
def test_gradual_pruning_learns_with_every_family(name: str) -> None:
    model = MODELS[name]()
    before = score(model)
    model.learn({"ppo": 2000, "a2c": 2500}.get(name, 500), callback=made("Gradual"))
    assert score(model) > max(0.8, before + 0.1)


@pytest.mark.parametrize("name", ["ppo", "dqn", "sac"])
def test_sparsity_0_changes_nothing(name: str) -> None:
    plain = MODELS[name]().learn(200)
    pruned = MODELS[name]().learn(200, callback=made("Gradual", sparsity=0.0))  # made anew: that seeds what is drawn
    for (_, a), (_, b) in zip(plain.policy.named_parameters(), pruned.policy.named_parameters(), strict=True):
        assert torch.equal(a, b)


def test_actor_and_critic_have_their_own_sparsity_and_outputs_are_dense() -> None:
    model, callback = MODELS["sac"](), made("Gradual", actor_sparsity=0.9, critic_sparsity=0.25)
    model.learn(200, callback=callback)
    shares = {n: 1 - float(m.float().mean()) for n, m in callback.masks.items()}
    assert {n.split(".")[0] for n in shares} == {"actor", "critic"}
    assert sorted(n for n in shares if n.startswith("actor")) == [
        "actor.latent_pi.0.weight",
        "actor.latent_pi.2.weight",
    ]
    assert sparsity(m for n, m in callback.masks.items() if n.startswith("actor")) == pytest.approx(0.9, abs=0.005)
    assert sparsity(m for n, m in callback.masks.items() if n.startswith("critic")) == pytest.approx(0.25, abs=0.005)
    assert "critic.qf0.4.weight" not in shares
    callback = made("Gradual", dense_last=False)
    MODELS["sac"]().learn(200, callback=callback)
    assert {"actor.mu.weight", "actor.log_std.weight", "critic.qf0.4.weight"} <= callback.masks.keys()


def test_learning_on_continues_the_schedule_unless_it_is_reset() -> None:
    model, callback = MODELS["dqn"](), made("Gradual", start=0.5, end=0.9)
    model.learn(100, callback=callback)
    final = {n: m.clone() for n, m in callback.masks.items()}
    model.learn(100, callback=callback, reset_num_timesteps=False)
    assert all(torch.equal(m, final[n]) for n, m in callback.masks.items())
    assert list(wrong(model, callback.masks)) == []
    shares = []

    class Look(train.Sparse):
        """Writes sparsity down."""

        def _on_training_start(self) -> None:
            shares.append(sparsity(callback.masks.values()))

        def _on_rollout_start(self) -> None:
            shares.append(sparsity(callback.masks.values()))

    model.learn(100, callback=[callback, Look(callback.method)])
    assert shares[0] == 0.0
    assert sparsity(callback.masks.values()) == pytest.approx(0.8, abs=0.003)
    # A schedule that was interrupted goes on where it was.
    model, callback = MODELS["dqn"](), made("Gradual", start=0.0, end=1.0)
    model.learn(100, callback=[callback, ConvertCallback(lambda *_: model.num_timesteps < 50)])
    half = sparsity(callback.masks.values())
    assert 0.3 < half < 0.75
    model.learn(50, callback=callback, reset_num_timesteps=False)
    assert sparsity(callback.masks.values()) == pytest.approx(0.8, abs=0.003)


class Written(Logger):
    """Keeps what is recorded."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.found: dict[str, list[float]] = {}

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.found.setdefault(key, []).append(value)


def logged(model: BaseAlgorithm, steps: int, callback: train.Sparse) -> dict[str, list[float]]:
    """Train, and return what was logged of pruning."""
    written = Written()
    model.set_logger(written)
    model.learn(steps, callback=callback)
    return {key.removeprefix("prune/"): values for key, values in written.found.items() if key.startswith("prune/")}


def test_what_is_logged() -> None:
    model, callback = MODELS["td3"](), made("SET")
    written = logged(model, STEPS, callback)
    assert written["sparsity"][-1] == pytest.approx(0.8, abs=0.003)
    assert written["sparsity_actor"][-1] == pytest.approx(0.8, abs=0.005)
    assert max(written["changes"]) > 0
    assert all(0 < units <= 6 * 24 for units in written["units"])
    assert all(0.0 <= share < 1.0 for share in written["dormant"])


@pytest.mark.parametrize("method", ["RigL", "SET", "ReDo", "Static"])
def test_dormant_units_are_logged_while_masks_change_at_every_rollout(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "LOG_EVERY", 128)
    found = logged(MODELS["ppo"](), 1280, made(method, every=32, end=0.9))
    assert len(found["dormant"]) >= 4
    assert len(found["sparsity"]) >= len(found["dormant"])


Q_CNN = {"learning_starts": 20, "train_freq": 4, "batch_size": 4, "buffer_size": 200, "seed": 0}


def test_a_matrix_that_two_optimizers_have_is_measured_once() -> None:
    policy = {"net_arch": [8], "share_features_extractor": True}
    settings = {**Q_CNN, "train_freq": 1}
    model = TD3("CnnPolicy", Pictures(True), policy_kwargs=policy, device="cpu", **settings)
    callback = train.RigL(every=10, sparsity=0.5)
    model.learn(60, callback=callback)
    assert list(wrong(model, callback.masks)) == []


def test_a_schedule_that_was_cut_short_is_left_where_it_was() -> None:
    model, callback = MODELS["dqn"](), made("Gradual", start=0.0, end=0.9, every=1)
    model.learn(400, callback=[callback, ConvertCallback(lambda *_: model.num_timesteps < 200)])  # and no warning
    assert 0.3 < sparsity(callback.masks.values()) < 0.8
    assert callback.course is not None
    callback.course.end()
    with pytest.raises(LearnError, match="were let go"):
        model.learn(20, callback=pickle.loads(pickle.dumps(callback)), reset_num_timesteps=False)


def test_refused_callbacks_leave_no_hooks() -> None:
    callback = made("Gradual")
    MODELS["dqn"]().learn(STEPS, callback=callback)
    other = MODELS["dqn"]()
    other.learn(20)
    with pytest.raises(LearnError, match="pruned another model"):
        other.learn(20, callback=pickle.loads(pickle.dumps(callback)), reset_num_timesteps=False)
    assert not other.policy.optimizer._optimizer_step_pre_hooks


def test_a_convolutional_network_is_logged_and_its_units_are_recycled() -> None:
    found = logged(DQN("CnnPolicy", Pictures(), device="cpu", **Q_CNN), 60, train.Static(sparsity=0.5, end=0.9))
    assert found["sparsity"][0] == pytest.approx(0.5, abs=0.001)
    model = DQN("CnnPolicy", Pictures(), device="cpu", **Q_CNN)
    linear = model.q_net.features_extractor.linear[0]
    with torch.no_grad():
        linear.bias[:7] = -1e3  # these are silent
    callback = train.ReDo(every=20, tau=0.0)
    found = logged(model, 80, callback)
    assert not bool((linear.bias[:7] < -1.0).any())


def test_another_callback_takes_over_and_the_first_says_so() -> None:
    model = DQN("MlpPolicy", Follow(), policy_kwargs={**ARCH, "activation_fn": torch.nn.Tanh}, **OFF)
    first, second = made("Static", sparsity=0.9), made("Gradual", sparsity=0.5)
    model.learn(100, callback=first)
    model.learn(STEPS, callback=second)
    for name, mask in second.masks.items():
        assert torch.equal(model.policy.get_parameter(name) != 0, mask)
    with pytest.raises(LearnError, match="another callback on the same model"):
        model.learn(50, callback=first, reset_num_timesteps=False)
    with pytest.raises(LearnError, match="another callback on the same model"):
        MODELS["dqn"]().learn(STEPS, callback=[made("Static"), made("Gradual")])


def test_a_saved_callback_serves_the_model_that_it_pruned_alone(tmp_path: Any) -> None:
    model, callback = MODELS["dqn"](), made("Gradual")
    model.learn(STEPS, callback=callback)
    model.save(tmp_path / "agent.zip")
    loaded, saved = DQN.load(tmp_path / "agent.zip", env=Follow()), pickle.loads(pickle.dumps(callback))
    loaded.learn(50, callback=saved, reset_num_timesteps=False)
    assert list(wrong(loaded, saved.masks)) == []
    other = MODELS["dqn"]()
    other.learn(20)
    with pytest.raises(LearnError, match="pruned another model"):
        other.learn(20, callback=pickle.loads(pickle.dumps(callback)), reset_num_timesteps=False)


def test_methods_whose_sparsity_is_there_at_once_need_no_rollout_at_the_end() -> None:
    for name, method in (("ppo", train.ReDo()), ("a2c", train.ReDo()), ("ppo", train.Static(sparsity=0.5))):
        MODELS[name]().learn(64, callback=method)
    assert sparsity(method.masks.values()) == pytest.approx(0.5, abs=0.003)


def test_masks_that_come_after_the_last_update_are_told_of() -> None:
    model = TD3("MlpPolicy", Follow(True), **{**OFF, "train_freq": (8, "episode")}, policy_kwargs={**ARCH})
    with pytest.warns(LearnWarning, match="Gradual changed .* weights after the last update"):
        model.learn(STEPS, callback=made("Gradual"))


def test_lottery_learns_at_the_pace_of_the_beginning_after_a_rewind() -> None:
    model, callback = MODELS["dqn"](), train.Lottery(sparsity=0.2, round_share=0.2, end=0.5)
    moved: list[float] = []
    before: dict[int, Tensor] = {}

    class Look(BaseCallback):
        """Measures updates, in learning rates."""

        def _on_training_start(self) -> None:
            optimizer = self.model.policy.optimizer
            own = [p for group in optimizer.param_groups for p in group["params"]]
            optimizer.register_step_pre_hook(lambda *_: before.update((i, p.clone()) for i, p in enumerate(own)))
            rate = optimizer.param_groups[0]["lr"]
            optimizer.register_step_post_hook(
                lambda *_: moved.append(max(float((p - before[i]).abs().max()) / rate for i, p in enumerate(own)))
            )

        def _on_step(self) -> bool:
            return True

    model.learn(500, callback=[callback, Look()])
    assert callback.course is not None
    assert int(callback.course.memory["round"]) == 1
    counts = {int(state["step"]) for state in model.policy.optimizer.state.values()}
    assert max(counts) < 300  # of more than 400 updates
    assert max(moved[-max(counts) :][:20]) < 1.5


def test_rlx2_changes_targets_and_the_buffer() -> None:
    model = MODELS["td3"]()
    callback = made("RLx2", delay=200, n_steps=3, check_every=50, threshold=1e-6, least=100)
    model.learn(190, callback=callback)
    buffer = model.replay_buffer
    assert isinstance(buffer, DynamicReplayBuffer)
    assert buffer.n_steps == 1
    assert buffer.held < buffer.pos == 190
    model.learn(100, callback=callback, reset_num_timesteps=False)
    assert model.replay_buffer is buffer
    assert buffer.n_steps == 3
    assert set(buffer.oldest(10_000)) == set(range(buffer.pos - buffer.held, buffer.pos))
    drawn = buffer.sample(64)
    assert drawn.rewards.max() > 1.0  # sums of up to three rewards of at most 1


def test_a_dynamic_buffer_that_forgets_nothing_draws_every_transition() -> None:
    model = MODELS["dqn"]()
    model.replay_buffer = ReplayBuffer(8, model.observation_space, model.action_space)
    callback = made("RLx2", threshold=0.0)
    model.learn(100, callback=callback)
    assert model.replay_buffer.full
    assert model.replay_buffer.held == 8
    assert sorted(model.replay_buffer.oldest(100)) == list(range(8))


def test_what_cannot_be_is_refused() -> None:
    callback = made("Gradual")
    MODELS["dqn"]().learn(STEPS, callback=callback)
    with pytest.raises(LearnError, match="pruned another model"):
        MODELS["dqn"]().learn(STEPS, callback=callback)
    with pytest.raises(LearnError, match="Gradual goes by what is learnt, but its schedule ends at step 35"):
        MODELS["dqn"]().learn(50, callback=made("Gradual"))
    with pytest.raises(BudgetError, match=r"Write Gradual\(sparsity=0.9\), or Gradual\(\)"):
        MODELS["ppo"]().learn(50, callback=train.Gradual)
    with pytest.raises(LearnError, match="ARS does not train its policy with an optimizer"):
        ARS("MlpPolicy", Follow(True)).learn(50, callback=made("Gradual"))
    flat = DQN("MlpPolicy", Follow(), policy_kwargs={"net_arch": []})
    with pytest.raises(BudgetError, match="nothing to prune"):
        flat.learn(50, callback=made("Gradual"))
    with pytest.raises(BudgetError, match="would keep 0 of"):
        DQN("MlpPolicy", Follow(), policy_kwargs={"net_arch": [4, 4]}).learn(
            50, callback=made("Gradual", sparsity=0.99)
        )
    with pytest.raises(BudgetError, match="ends before it starts: both are at step 10 of 10"):
        MODELS["dqn"]().learn(10, callback=made("Gradual", start=0.98, end=1.0))
    with pytest.raises(BudgetError, match=r"critic_sparsity=0\.5, but no matrix that may be pruned is of a critic"):
        MODELS["dqn"]().learn(50, callback=made("Gradual", critic_sparsity=0.5))
    fresh = MODELS["ppo"]()
    with pytest.raises(LearnError, match="RLx2 needs an off-policy algorithm"):
        fresh.learn(500, callback=made("RLx2"))
    assert all(bool((p != 0).all()) for n, p in fresh.policy.named_parameters() if "weight" in n)
    assert not fresh.policy.optimizer._optimizer_step_pre_hooks
    with pytest.raises(BudgetError, match="the last rollout of 64 steps begins at step 64"):
        MODELS["ppo"]().learn(128, callback=made("Gradual", start=0.1, end=0.9))
    still = TD3("MlpPolicy", Follow(True), **{**OFF, "gradient_steps": 0})
    for method in ("RigL", "ReDo", "Movement", "Surgery"):
        with pytest.raises(LearnError, match=f"{method} goes by what is learnt, and the model makes no updates"):
            still.learn(50, callback=made(method))
    with pytest.raises(LearnError, match="ends at step 30 and updates begin after step 64"):
        MODELS["sac"]().learn(50, callback=made("Movement", end=0.6))
    kwargs = {"handle_timeout_termination": False}
    once = DQN("MlpPolicy", Follow(), learning_starts=9, optimize_memory_usage=True, replay_buffer_kwargs=kwargs)
    with pytest.raises(LearnError, match="optimize_memory_usage"):
        once.learn(50, callback=made("RLx2"))


def test_a_matrix_without_gradient_is_refused() -> None:
    model = PPO("MlpPolicy", Follow(), n_steps=64, batch_size=32, policy_kwargs={**ARCH}, vf_coef=0.0)
    extractor = model.policy.mlp_extractor
    model.policy.forward_critic = extractor.forward_critic
    extractor.forward_critic = lambda features: extractor.value_net(features).detach()
    with pytest.raises(LearnError, match=r"'mlp_extractor.value_net.0.weight'.* have no gradient"):
        model.learn(300, callback=made("RigL"))


def test_every_off_policy_algorithm_is_tried() -> None:
    assert set(OFF_POLICY) == {"dqn", "qrdqn", "sac", "td3", "ddpg", "tqc"}
