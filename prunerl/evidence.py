"""Evidence of a finished agent: what its network computes, and its gradients, in the states that it visits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunerl import heads
from prunerl.errors import BudgetError
from prunerl.trace import Activity, Trace, activity, forward
from prunerl.types import Head, State


@dataclass(frozen=True, eq=False)
class VisitedEvidence:
    """Evidence from visited states, each part computed when it is first asked for and then kept.

    A criterion that only looks at weights therefore never steps an environment.

    Attributes:
        traced: The graph of the policy network.
        state: The agent's tensors.
        head: What the network's output means.
        collect: Returns the network's inputs in visited states, shape (states, *observation); called at most once.
        generator: Draws the actions of :meth:`gradients`, and whatever a criterion draws.
    """

    traced: Trace
    state: State
    head: Head
    collect: Callable[[], Tensor]
    generator: torch.Generator

    @cached_property
    def observations(self) -> Tensor:
        """The network's inputs in visited states.

        Raises:
            BudgetError: No state was collected.
        """
        observations = self.collect()
        if len(observations) == 0:
            raise BudgetError("Evidence was collected in 0 states. Collect at least one state.")
        return observations

    @cached_property
    def activity(self) -> Activity:
        """What the network computes in all visited states."""
        with torch.no_grad():
            return activity(self.traced, self.state.tensors, self.observations)

    def gradients(self, batch: int) -> Iterator[Mapping[str, Tensor]]:
        """Yield the gradient of the loss −log π(a|s), mean over one minibatch after another, by parameter name.

        The action a is drawn from the agent's own policy, so the mean square of the gradient at ``batch=1`` is the
        diagonal of the policy's Fisher matrix (with actions that were stored from somewhere else it would be the
        "empirical" one, which is not a curvature). The more obvious loss, the distance between the agent and
        itself, is of no use: its gradient is zero in every state, as the agent is its own optimum.

        Q-values are a policy by the softmax that :func:`prunerl.heads.log_probabilities` defines. A Gaussian without
        deviations, as deterministic actors have it, has deviation 1. A squashed action is scored before its
        squashing, which does not depend on the parameters.

        Args:
            batch: States in a minibatch; the last one may have fewer.

        Raises:
            BudgetError: ``batch`` is less than 1.

        Reference: Martens 2020, *New insights and perspectives on the natural gradient method*, section 5.
        """
        if batch < 1:
            raise BudgetError(f"A minibatch of {batch} states has no gradient. Set batch to 1 or more.")
        scale = heads.q_scale(self.head, self.activity.output)
        tensors = self.state.tensors
        names = [name for name in self.traced.parameters if tensors[name].is_floating_point()]
        leaves = {name: tensors[name].detach().clone().requires_grad_() for name in names}
        for observations in torch.split(self.observations, batch):
            with torch.enable_grad():  # left before each yield, or the caller would run under it
                output = forward(self.traced, {**tensors, **leaves}, observations).flatten(0, -2)
                loss = surprise(self.head, output, self.generator, scale=scale).mean()
                found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
            yield dict(zip(names, found, strict=True))


def surprise(head: Head, output: Tensor, generator: torch.Generator, *, scale: float = 1.0) -> Tensor:
    """Draw an action in each state and return −log π(a|s) up to a constant, shape (batch,).

    Args:
        head: What the output means.
        output: Output of the network, shape (batch, outputs).
        generator: Draws the actions.
        scale: Spread of the Q-values, from :func:`prunerl.heads.q_scale`; other heads ignore it.

    >>> generator = torch.Generator().manual_seed(0)
    >>> surprise(Head("categorical", sizes=(2,)), torch.zeros(1, 2), generator)
    tensor([0.6931])
    """
    if head.kind == "gaussian":
        std = torch.ones(1) if head.std is None else torch.as_tensor(head.std)
        std = std.to(output.dtype).clamp_min(1e-3)  # as in heads.divergence: a deviation of zero has no density
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        sample = output.detach() + std * noise
        return 0.5 * ((sample - output) / std).square().sum(dim=-1)
    logs = heads.log_probabilities(head, output, scale=scale)
    if head.kind == "bernoulli":
        parts = logs.reshape(len(logs), 2, -1).unbind(-1)  # log π(1) and log π(0) of each bit
    else:
        parts = torch.split(logs, list(head.sizes), dim=-1)
    drawn = [part.gather(1, torch.multinomial(part.detach().exp(), 1, generator=generator)) for part in parts]
    return -torch.cat(drawn, dim=1).sum(dim=1)
