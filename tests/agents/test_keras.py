"""Policies in Keras files: what they mean, cut, and loaded again by Keras alone."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import prunerl
from prunerl import heads
from prunerl.agents.keras import KerasAgent
from prunerl.agents.keras_masks import hold_zeros
from prunerl.errors import LearnError, LoadError, NameUnknownError, RemovalError, SpaceError
from prunerl.remove import follow, remove
from prunerl.trace import groups, layer_groups, trace, unit_groups
from prunerl.types import State

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
L = keras.layers

ALONE = """
import sys, json
sys.modules["prunerl"] = None
import numpy as np, keras
folder = sys.argv[1]
result = {"backend": keras.backend.backend()}
for name, inputs in np.load(folder + "/observations.npz").items():
    model = keras.saving.load_model(folder + "/" + name + ".keras")
    outputs = model.predict_on_batch(inputs)
    outputs = [np.asarray(o) for o in outputs] if isinstance(outputs, list) else [np.asarray(outputs)]
    widths = [w.shape[-1] for layer in model.layers for w in layer.get_weights()[:1]]
    model.compile(optimizer="adam", loss="mse")
    before = [np.array(w) for w in model.trainable_weights]
    model.train_on_batch(inputs, [o + 1 for o in outputs] if len(outputs) > 1 else outputs[0] + 1)
    moved = all((np.asarray(w) != b).any() for w, b in zip(model.trainable_weights, before))
    result[name] = {"outputs": [o.tolist() for o in outputs], "widths": widths, "moved": moved}
print(json.dumps(result))
"""
"""Keras in a process where this package cannot be imported: loads each file, predicts, and trains on."""


def alone(
    folder: Path, files: Mapping[str, np.ndarray], backend: str = "torch", python: str = sys.executable
) -> dict[str, Any]:
    """Return what plain Keras says of the files ``<name>.keras`` in a folder, given observations for each."""
    np.savez(folder / "observations.npz", **files)
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [python, "-W", "error::UserWarning:keras", "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["backend"] == backend
    return result


def article() -> Any:
    """The network of the founding article: 4-64-64-64-64-2."""
    hidden = [L.Dense(64, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((4,)), *hidden, L.Dense(2, activation="softmax")])
    draw = np.random.default_rng(0)
    model.set_weights([draw.normal(0.0, (w.ndim - 1) * np.sqrt(2 / w.shape[0]), w.shape) for w in model.get_weights()])
    return model


def image_policy() -> Any:
    """A network for the images of :class:`Picture`, with all that a policy has: convolutions, norms and a branch."""
    inputs = keras.Input((16, 16, 3))
    x = L.Rescaling(1 / 255)(inputs)
    x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x)
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, strides=2)(x)))
    x = L.Dense(16, activation="relu")(L.Flatten()(x))
    x = L.Concatenate()([L.Add()([x, L.Dense(16, activation="tanh")(x)]), L.Dense(8, activation="relu")(x)])
    return keras.Model(inputs, L.Softmax()(L.Dense(3)(x)))


def actor_critic() -> Any:
    """Policy and value on a shared layer, as in Keras' own example of actor and critic."""
    inputs = keras.Input((4,))
    common = L.Dense(32, activation="relu")(inputs)
    return keras.Model(inputs, [L.Dense(2, activation="softmax")(common), L.Dense(1)(L.Dense(8)(common))])


def ending(*last: Any, shape: tuple[int, ...] = (4,)) -> Any:
    return keras.Sequential([keras.Input(shape), L.Dense(8, activation="relu"), *last])


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., KerasAgent]:
    """From a model to the agent that is loaded from its file."""

    def load(model: Any, env: str = "CartPole-v1", **options: Any) -> KerasAgent:
        model.save(tmp_path / "model.keras")
        agent = prunerl.load(tmp_path / "model.keras", env=env, **options)
        assert isinstance(agent, KerasAgent)
        return agent

    return load


@pytest.fixture(scope="module", autouse=True)
def picture() -> Any:
    """Register an environment with image observations and three actions."""
    import gymnasium as gym

    class Picture(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        action_space = gym.spaces.Discrete(3)

    gym.register("Picture-v0", Picture)
    yield
    gym.registry.pop("Picture-v0")


def observations(agent: KerasAgent, count: int = 200) -> np.ndarray:
    draw = np.random.default_rng(3)
    shape = (count, *agent.policy.observation_shape)
    if len(shape) > 2:
        return draw.integers(0, 256, shape).astype(np.uint8)
    return draw.normal(size=shape).astype(np.float32)


def halved(agent: KerasAgent, structure: str = "units") -> KerasAgent:
    """Remove every other unit of each layer, or every other weight."""
    inputs = torch.from_numpy(observations(agent, 8))
    traced = trace(agent.policy.network, inputs)
    found = groups(traced, agent.state, structure)  # type: ignore[arg-type]
    decision = {group.name: torch.arange(group.units) % 2 == 0 for group in found}
    return agent.with_state(remove(traced, agent.state, found, decision, ties=agent.ties, observations=inputs))


def shorter(agent: KerasAgent, index: int) -> KerasAgent:
    """Leave out one hidden layer."""
    inputs = torch.from_numpy(observations(agent, 256))
    traced = trace(agent.policy.network, inputs)
    found = layer_groups(traced)
    decision = {found[index].name: torch.tensor([False])}
    return agent.with_state(remove(traced, agent.state, found, decision, ties=agent.ties, observations=inputs))


def test_the_articles_network_acts_as_keras_predicts(loaded: Callable[..., KerasAgent]) -> None:
    model = article()
    agent = loaded(model)
    seen = observations(agent)
    expected = model.predict(seen, verbose=0)
    with torch.no_grad():
        output = agent.policy.network(torch.from_numpy(seen))
    np.testing.assert_allclose(output.softmax(1), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(heads.act(agent.policy, seen), expected.argmax(1))
    assert set(expected.argmax(1)) == {0, 1}, "one action only, so equality would prove nothing"


def test_its_hidden_layers_are_groups_under_readable_names(loaded: Callable[..., KerasAgent]) -> None:
    model = article()
    agent = loaded(model)
    traced = trace(agent.policy.network, torch.from_numpy(observations(agent, 3)))
    names = [layer.name for layer in model.layers]
    assert [(g.name, g.units) for g in unit_groups(traced, agent.state.tensors)] == [(n, 64) for n in names[:4]]
    assert [n for n in agent.state.tensors] == [f"{n}.{v}" for n in names for v in ("kernel", "bias")]
    assert agent.stacks == tuple(names[:4])


def test_what_is_saved_is_the_same_for_keras_alone(loaded: Callable[..., KerasAgent], tmp_path: Path) -> None:
    dense = loaded(article())
    made = {
        "halved": halved(dense),
        "shorter": shorter(shorter(halved(dense), 1), 0),
        "masked": halved(dense, "weights"),
        "image": halved(loaded(image_policy(), "Picture-v0")),
        "both": halved(loaded(actor_critic())),
    }
    seen = {name: observations(agent) for name, agent in made.items()}
    for name, agent in made.items():
        agent.save(tmp_path / f"{name}.keras")
    found = alone(tmp_path, seen)
    for name, agent in made.items():
        output = np.asarray(found[name]["outputs"][0])
        np.testing.assert_array_equal(output.argmax(1), heads.act(agent.policy, seen[name]), err_msg=name)
        with torch.no_grad():
            own = agent.policy.network(torch.from_numpy(seen[name])).softmax(1)
        np.testing.assert_allclose(output, own, rtol=1e-4, atol=1e-5, err_msg=name)
        assert found[name]["moved"], f"Keras cannot train {name} on"
    assert found["halved"]["widths"] == [32, 32, 32, 32, 2]
    assert found["shorter"]["widths"] == [32, 32, 2]
    assert found["masked"]["widths"] == [64, 64, 64, 64, 2]
    assert found["image"]["widths"] == [4, 4, 4, 8, 8, 4, 3]
    assert found["both"]["widths"] == [16, 8, 2, 1]
    critic = made["both"].critics[0]
    with torch.no_grad():
        value = critic.network(critic.inputs(torch.from_numpy(seen["both"])))
    np.testing.assert_allclose(np.asarray(found["both"]["outputs"][1]), value, rtol=1e-4, atol=1e-5)


def test_masked_weights_are_zeros_in_the_file(loaded: Callable[..., KerasAgent], tmp_path: Path) -> None:
    agent = halved(loaded(article()), "weights")
    agent.save(tmp_path / "masked.keras")
    kernels = [w for w in keras.saving.load_model(tmp_path / "masked.keras").get_weights() if w.ndim == 2]
    masks = [mask for name, mask in agent.state.masks.items() if name.endswith("kernel")]
    assert len(masks) == len(kernels) == 5
    for kernel, mask in zip(kernels, masks, strict=True):
        np.testing.assert_array_equal(kernel != 0, mask.T)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop", "sgd"])
def test_masked_weights_stay_zero_through_fit(
    loaded: Callable[..., KerasAgent], tmp_path: Path, optimizer: str
) -> None:
    small = halved(loaded(article()), "weights")
    small.save(tmp_path / "small.keras")
    model = keras.saving.load_model(tmp_path / "small.keras")
    chosen = keras.optimizers.SGD(0.01, momentum=0.9) if optimizer == "sgd" else optimizer
    model.compile(chosen, "sparse_categorical_crossentropy")
    before, counts = model.get_weights(), []

    def count(batch: int, logs: Any) -> None:
        counts.append(sum(int((w == 0).sum()) for w in model.get_weights() if w.ndim == 2))

    seen = observations(small, 96)
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=count)
    model.fit(seen, np.arange(96) % 2, epochs=2, verbose=0, callbacks=[hold_zeros(model), watch])
    gone = sum(int((~mask).sum()) for mask in small.state.masks.values())
    assert counts == [gone] * 6  # after every update as many as were removed, and no more
    assert all((old != new).any() for old, new in zip(before, model.get_weights(), strict=True))
    slots = [np.asarray(v) for v in model.optimizer.variables if len(v.shape) == 2]
    assert slots
    assert sum(int((s == 0).sum()) for s in slots) >= gone * len(slots) // 5
    model.compile(chosen, "mse", steps_per_execution=2)
    with pytest.raises(LearnError, match="steps_per_execution=1"):
        hold_zeros(model).on_train_begin()


def test_all_else_in_the_file_stays_as_it_was(loaded: Callable[..., KerasAgent], tmp_path: Path) -> None:
    model = article()
    model.compile(optimizer="adam", loss="mse")
    agent = loaded(model)
    assert any("compile" in note for note in agent.notes)
    halved(agent).save(tmp_path / "half.keras")

    def entries(name: str) -> tuple[Any, Any]:
        with zipfile.ZipFile(tmp_path / name) as archive:
            return json.loads(archive.read("config.json")), json.loads(archive.read("metadata.json"))

    (before, version), (after, version_after) = entries("model.keras"), entries("half.keras")
    assert version_after == {**version, "prunerl_head": "probabilities"}
    del before["compile_config"]
    for layer in before["config"]["layers"][1:]:
        if layer["config"]["units"] == 64:
            layer["config"]["units"] = 32
        if layer["build_config"]["input_shape"] == [None, 64]:
            layer["build_config"]["input_shape"] = [None, 32]
    assert before == after


def test_saved_twice_is_equal_to_the_bit_and_loads_again(loaded: Callable[..., KerasAgent], tmp_path: Path) -> None:
    agent = halved(loaded(image_policy(), "Picture-v0"))
    for name in ("a", "b"):
        agent.save(tmp_path / f"{name}.keras")
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    again = prunerl.load(tmp_path / "a.keras", env="Picture-v0")
    assert list(again.state.tensors) == list(agent.state.tensors)
    for name, tensor in again.state.tensors.items():
        assert torch.equal(tensor, agent.state.tensors[name]), name


@pytest.mark.parametrize(
    ("last", "env", "head", "kind", "squashed", "linear"),
    [
        ([L.Dense(2, activation="softmax")], "CartPole-v1", None, "categorical", False, True),
        ([L.Dense(2), L.Activation("softmax")], "CartPole-v1", "softmax", "categorical", False, True),
        ([L.Dense(2), L.Softmax()], "CartPole-v1", "probabilities", "categorical", False, True),
        ([L.Dense(2)], "CartPole-v1", None, "q_values", False, True),
        ([L.Dense(2)], "CartPole-v1", "logits", "categorical", False, True),
        ([L.Dense(2, activation="relu")], "CartPole-v1", "q_values", "q_values", False, False),
        ([L.Dense(1, activation="sigmoid")], "CartPole-v1", None, "bernoulli", False, True),
        ([L.Dense(1, activation="tanh")], "Pendulum-v1", None, "gaussian", True, True),
        ([L.Dense(1, activation="tanh")], "Pendulum-v1", "mean", "gaussian", False, False),
        ([L.Dense(1), L.Activation("tanh"), L.Rescaling(2.0)], "Pendulum-v1", None, "gaussian", True, True),
        ([L.Dense(1)], "Pendulum-v1", None, "gaussian", False, True),
    ],
)
def test_the_head_is_read_off_the_end_or_said(
    last: list[Any], env: str, head: str | None, kind: str, squashed: bool, linear: bool,
    loaded: Callable[..., KerasAgent],
) -> None:  # fmt: skip
    """``linear``: whether the network ends in its last Dense layer, what follows being left to the head."""
    model = ending(*last, shape=(4,) if env == "CartPole-v1" else (3,))
    agent = loaded(model, env, head=head)
    assert (agent.policy.head.kind, agent.policy.head.squashed) == (kind, squashed)
    assert any("is taken as" in note for note in agent.notes)
    seen = observations(agent, 50)
    output = model.predict(seen, verbose=0)
    ends = agent.policy.network.graph.nodes[-1]  # type: ignore[union-attr]
    assert ends.kind == "Dense"
    assert (ends.config["activation"] == "linear") is linear
    expected = output.argmax(1) if output.shape[1] == 2 else output[:, 0] > 0.5
    if kind == "gaussian":
        scaled = squashed and len(last) == 1
        expected = np.clip(output * (2.0 if scaled else 1.0), -2.0, 2.0)
    np.testing.assert_allclose(heads.act(agent.policy, seen), expected, rtol=1e-4, atol=1e-5)


def test_a_head_that_was_said_is_remembered_in_the_file(loaded: Callable[..., KerasAgent], tmp_path: Path) -> None:
    agent = loaded(ending(L.Dense(1, activation="tanh"), shape=(3,)), "Pendulum-v1", head="mean")
    agent.save(tmp_path / "again.keras")
    again = prunerl.load(tmp_path / "again.keras", env="Pendulum-v1")
    seen = observations(agent, 20)
    assert not again.policy.head.squashed
    np.testing.assert_array_equal(heads.act(again.policy, seen), heads.act(agent.policy, seen))
    assert prunerl.load(tmp_path / "again.keras", env="Pendulum-v1", head="squashed_mean").policy.head.squashed


@pytest.mark.parametrize(
    ("last", "env", "head", "error", "reason"),
    [
        ([L.Dense(3)], "CartPole-v1", None, SpaceError, r"'q_values' of shape \(3,\)"),
        ([L.Dense(2)], "CartPole-v1", "probabilities", SpaceError, "needs softmax"),
        ([L.Dense(2, activation="softmax")], "CartPole-v1", "logits", SpaceError, "ends in a softmax"),
        ([L.Dense(1)], "Pendulum-v1", "squashed_mean", SpaceError, "needs tanh"),
        ([L.Dense(2)], "CartPole-v1", "mean", SpaceError, "does not fit the action space"),
        ([L.Dense(2)], "CartPole-v1", "q_value", NameUnknownError, "Did you mean 'q_values'"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    last: list[Any], env: str, head: str | None, error: type[Exception], reason: str, loaded: Callable[..., KerasAgent]
) -> None:
    with pytest.raises(error, match=reason):
        loaded(ending(*last, shape=(4,) if env == "CartPole-v1" else (3,)), env, head=head)


def test_an_environment_that_does_not_fit_is_refused(loaded: Callable[..., KerasAgent], tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"\(4,\), but 'Acrobot-v1' gives \(6,\)"):
        loaded(ending(L.Dense(3)), "Acrobot-v1")
    with pytest.raises(LoadError, match="no algorithm"):
        loaded(ending(L.Dense(2)), algorithm="ppo")


def test_outputs_that_both_fit_are_refused(loaded: Callable[..., KerasAgent]) -> None:
    inputs = keras.Input((4,))
    with pytest.raises(LoadError, match="all fit the action space"):
        loaded(keras.Model(inputs, [L.Dense(2)(inputs), L.Dense(2)(inputs)]))


def test_another_output_that_could_not_follow_is_refused(loaded: Callable[..., KerasAgent]) -> None:
    inputs = keras.Input((4,))
    common = L.Dense(8, activation="relu")(inputs)
    value = L.Dense(1)(L.LayerNormalization()(common))
    with pytest.raises(LoadError, match=r"reads layer 'dense.*', which the policy reads in another way"):
        loaded(keras.Model(inputs, [L.Dense(2, activation="softmax")(common), value]))


def test_another_output_of_the_same_shape_keeps_its_own_values(loaded: Callable[..., KerasAgent]) -> None:
    inputs = keras.Input((4,))
    common = L.Dense(8, activation="relu")(inputs)
    model = keras.Model(inputs, [L.Dense(2, activation="softmax")(common), L.Dense(2)(common)])
    agent = loaded(model, head="probabilities")
    smaller = halved(agent)
    value = smaller.ties[0].target
    assert torch.equal(smaller.state.tensors[value], agent.state.tensors[value][:, ::2])
    for name, tensor in follow(smaller.state, smaller.ties).tensors.items():
        assert torch.equal(tensor, smaller.state.tensors[name]), name


def test_a_layer_is_left_out_only_where_that_is_plain(loaded: Callable[..., KerasAgent]) -> None:
    agent = loaded(image_policy(), "Picture-v0")
    assert agent.stacks == ()
    name = next(n for n in agent.state.tensors if n.startswith("dense") and n.endswith("kernel"))
    tensors = {n: t for n, t in agent.state.tensors.items() if n.split(".")[0] != name.split(".")[0]}
    with pytest.raises(RemovalError, match="cannot be left out"):
        agent.with_state(State(tensors))


def test_learning_is_refused_with_a_way_out(loaded: Callable[..., KerasAgent]) -> None:
    with pytest.raises(LearnError, match="finetune"):
        loaded(ending(L.Dense(2))).learn(10, seed=0)


def test_with_state_shares_nothing_and_changes_nothing(loaded: Callable[..., KerasAgent]) -> None:
    agent = loaded(article())
    before = {n: t.clone() for n, t in agent.state.tensors.items()}
    smaller = halved(agent)
    for parameter in smaller.policy.network.parameters():
        parameter.data.zero_()
    for name, tensor in agent.state.tensors.items():
        assert torch.equal(tensor, before[name]), name
    assert any(bool(t.any()) for t in smaller.state.tensors.values())


def test_a_file_of_the_tensorflow_backend(tmp_path: Path) -> None:
    """Both ways: a file written there loads here, and what is saved here loads there.

    ``PRUNERL_TENSORFLOW`` names a Python that has Keras and TensorFlow, when this one does not.
    """
    python = os.environ.get("PRUNERL_TENSORFLOW", sys.executable)
    tried = subprocess.run([python, "-c", "import tensorflow"], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("tensorflow is not installed; set PRUNERL_TENSORFLOW to a Python that has it")
    script = (
        "import keras, numpy as np; L = keras.layers; "
        "m = keras.Sequential([keras.Input((4,)), *[L.Dense(64, activation='relu') for _ in range(4)], "
        "L.Dense(2, activation='softmax')]); m.compile('adam', 'mse'); x = np.load('seen.npy'); "
        "m.fit(x, np.eye(2)[(x[:, 0] > 0).astype(int)], epochs=5, verbose=0); m.save('theirs.keras'); "
        "np.save('outputs.npy', m.predict(x, verbose=0))"
    )
    seen = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    np.save(tmp_path / "seen.npy", seen)
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run([python, "-c", script], check=True, capture_output=True, cwd=tmp_path, env=environment)
    agent = prunerl.load(tmp_path / "theirs.keras", env="CartPole-v1")
    assert isinstance(agent, KerasAgent)
    np.testing.assert_array_equal(heads.act(agent.policy, seen), np.load(tmp_path / "outputs.npy").argmax(1))
    smaller = halved(agent)
    smaller.save(tmp_path / "ours.keras")
    found = alone(tmp_path, {"ours": seen}, backend="tensorflow", python=python)["ours"]
    assert found["widths"] == [32, 32, 32, 32, 2]
    assert found["moved"]
    np.testing.assert_array_equal(np.asarray(found["outputs"][0]).argmax(1), heads.act(smaller.policy, seen))


def imitated() -> Any:
    """The article's network, taught the rule that balances the pole: push to where it will have fallen."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(20_000, 4, generator=draw) * torch.tensor([1.0, 1.0, 0.1, 1.0])
    rule = states @ torch.tensor([0.05, 0.15, 1.0, 0.5])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = [4, 64, 64, 64, 64, 2]
        steps = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        network = torch.nn.Sequential(*[m for s in steps for m in (s, torch.nn.ReLU())][:-1])
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(400):
            batch = torch.randint(len(states), (256,))
            loss = torch.nn.functional.cross_entropy(network(states[batch]), (rule[batch] > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model = article()
    weights: list[Tensor] = [t for s in steps for t in (s.weight.detach().T, s.bias.detach())]
    model.set_weights([w.numpy() for w in weights])
    return model


@pytest.mark.slow
def test_a_good_policy_is_pruned_end_to_end(loaded: Callable[..., KerasAgent], tmp_path: Path) -> None:
    agent = loaded(imitated())
    result = prunerl.prune(agent, tolerance=0.05, compare=False)
    assert np.mean(result.report.dense.verdict.dense) > 490
    assert result.report.pruned.verdict.satisfied
    assert result.report.pruned.size.parameters < 100
    result.agent.save(tmp_path / "small.keras")
    seen = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
    found = alone(tmp_path, {"small": seen})["small"]
    assert sum(found["widths"][:-1]) == sum(result.report.pruned.size.units)
    np.testing.assert_array_equal(np.asarray(found["outputs"][0]).argmax(1), heads.act(result.agent.policy, seen))
