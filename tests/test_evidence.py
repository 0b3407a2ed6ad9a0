"""Evidence is collected once, when it is asked for, and its gradients are those of the policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunerl import heads
from prunerl.errors import BudgetError
from prunerl.evidence import VisitedEvidence, surprise
from prunerl.trace import forward, trace
from prunerl.types import Head, State

CATEGORICAL = Head("categorical", sizes=(2, 3))
Q_VALUES = Head("q_values", sizes=(3,))
BERNOULLI = Head("bernoulli", sizes=(2,))
GAUSSIAN = Head("gaussian", std=np.array([0.5, 2.0]))
HEADS = [CATEGORICAL, Q_VALUES, BERNOULLI, GAUSSIAN, Head("gaussian")]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)  # for the layers' initial weights, which take no generator
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))


@pytest.fixture(scope="module")
def evidence(network: nn.Module) -> VisitedEvidence:
    return build(network, torch.randn(10, 3, generator=torch.Generator().manual_seed(1)))


def build(network: nn.Module, observations: Tensor, seed: int = 0) -> VisitedEvidence:
    state = State({name: tensor.detach() for name, tensor in network.named_parameters()})
    generator = torch.Generator().manual_seed(seed)
    return VisitedEvidence(trace(network, torch.ones(2, 3)), state, CATEGORICAL, lambda: observations, generator)


def again(evidence: VisitedEvidence, observations: Tensor | None = None, seed: int = 0) -> VisitedEvidence:
    collect = evidence.collect if observations is None else lambda: observations
    generator = torch.Generator().manual_seed(seed)
    return VisitedEvidence(evidence.traced, evidence.state, evidence.head, collect, generator)


def test_states_are_collected_at_most_once(evidence: VisitedEvidence) -> None:
    calls = []

    def collect() -> Tensor:
        calls.append(1)
        return torch.ones(4, 3)

    counted = VisitedEvidence(evidence.traced, evidence.state, evidence.head, collect, torch.Generator())
    assert calls == []
    assert counted.activity.output.shape == (4, 5)
    assert len(list(counted.gradients(2))) == 2
    assert counted.activity is counted.activity
    assert calls == [1]


def test_activity_is_what_the_network_computes(network: nn.Sequential, evidence: VisitedEvidence) -> None:
    torch.testing.assert_close(evidence.activity.output, network(evidence.observations).detach())
    torch.testing.assert_close(evidence.activity.inputs["2"], network[:2](evidence.observations).detach())
    assert not evidence.activity.output.requires_grad


def test_gradients_come_one_a_minibatch_and_leave_no_trace(evidence: VisitedEvidence) -> None:
    before = {name: tensor.clone() for name, tensor in evidence.state.tensors.items()}
    with torch.no_grad():
        batches = []
        for gradients in again(evidence).gradients(4):
            assert not torch.is_grad_enabled()
            batches.append(gradients)
    assert len(batches) == 3  # 4 + 4 + 2 states
    for gradients in batches:
        assert {name: g.shape for name, g in gradients.items()} == {name: t.shape for name, t in before.items()}
    for name, tensor in evidence.state.tensors.items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None
        assert not tensor.requires_grad


def test_equal_seeds_give_equal_gradients(evidence: VisitedEvidence) -> None:
    def first(seed: int) -> Tensor:
        return next(again(evidence, seed=seed).gradients(10))["0.weight"]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.kind)
def test_the_mean_square_of_the_gradient_is_the_fisher_information(head: Head) -> None:
    """In closed form: π(1 − π) for a logit, over the temperature squared for a Q-value, 1/σ² for a mean.

    The mean is zero: the expectation of ∂log π vanishes under π.
    """
    output = torch.tensor([[0.3, -0.4, 0.1, 0.5, -0.2]])[:, : 5 if head is CATEGORICAL else max(sum(head.sizes), 2)]
    scale = heads.q_scale(head, output)
    outputs = output.repeat(400_000, 1).requires_grad_()
    loss = surprise(head, outputs, torch.Generator().manual_seed(0), scale=scale)
    (gradient,) = torch.autograd.grad(loss.sum(), outputs)
    assert loss.shape == (400_000,)

    if head.kind == "gaussian":
        expected = torch.ones(2) if head.std is None else torch.as_tensor(head.std).float() ** -2
    else:
        p = heads.log_probabilities(head, output, scale=scale).exp()[0, : output.shape[1]]
        expected = p * (1 - p) / (heads.TEMPERATURE * scale if head.kind == "q_values" else 1.0) ** 2
    torch.testing.assert_close(gradient.square().mean(0), expected, rtol=0.03, atol=0.01)
    assert (gradient.mean(0).abs() < 0.03 * expected.sqrt()).all()


def test_the_gradient_of_the_loss_reaches_the_parameters(evidence: VisitedEvidence) -> None:
    """The bias of the output layer has the derivative of −log π by the logits: π − 1 for what was drawn, else π."""
    (gradients,) = again(evidence, evidence.observations[:1]).gradients(1)
    p = heads.log_probabilities(CATEGORICAL, evidence.activity.output[:1]).exp()[0]
    difference = p - gradients["2.bias"]
    for part in difference.split([2, 3]):
        assert sorted(part.tolist()) == pytest.approx([0.0] * (len(part) - 1) + [1.0], abs=1e-6)


def test_the_distance_between_an_agent_and_itself_has_no_gradient(evidence: VisitedEvidence) -> None:
    """Why the loss is not that distance."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in evidence.state.tensors.items()}
    output = forward(evidence.traced, leaves, evidence.observations)
    loss = heads.divergence(CATEGORICAL, output.detach(), output).mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6


def test_too_little_is_refused(evidence: VisitedEvidence) -> None:
    with pytest.raises(BudgetError, match="collected in 0 states"):
        _ = again(evidence, torch.zeros(0, 3)).observations
    with pytest.raises(BudgetError, match="minibatch of 0 states"):
        next(evidence.gradients(0))
