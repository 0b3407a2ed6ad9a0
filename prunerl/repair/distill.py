"""Distil the dense agent into smaller networks of one shape, several students at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from prunerl import heads
from prunerl.masks import apply
from prunerl.repair.guidance import Guide, shortfall
from prunerl.trace import Layer, Trace, activity, forward, matrix
from prunerl.types import Head, Masks

WARM_UP = 0.1
Project = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
BLOCK = 4_000_000
"""Numbers of observations that one forward pass over many states takes: images come in parts."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """States and the dense agent's answers to them.

    Attributes:
        observations: The network's inputs, shape (states, *observation).
        answers: The dense network's outputs, shape (states, outputs).
        scale: Spread of the dense agent's Q-values, see :func:`prunerl.heads.q_scale`.
        dense: How many of the states, the first ones, the dense agent visited; the others visited pruned agents.
    """

    observations: Tensor
    answers: Tensor
    scale: float
    dense: int


@dataclass(frozen=True)
class Taste:
    """How one student learns. Students of different tastes fail in different ways, and the best is kept.

    Attributes:
        own: Share of each minibatch that comes from states that pruned agents visited.
        divergence: Weight of the KL divergence; the rest weighs the regret Σ π(a)(max Q − Q(a)), for Q-values only.
    """

    own: float
    divergence: float


TASTES = tuple(Taste(own, divergence) for own in (0.0, 0.15, 0.5, 0.85) for divergence in (1.0, 0.05))
ALONE = Taste(0.5, 1.0)


def tastes(students: int) -> tuple[Taste, ...]:
    """Return the tastes of so many students; a single one learns from everything."""
    return (ALONE,) if students == 1 else tuple(TASTES[i % len(TASTES)] for i in range(students))


def distill(
    traced: Trace,
    students: Sequence[Mapping[str, Tensor]],
    masks: Masks,
    head: Head,
    lessons: Lessons,
    *,
    updates: int,
    learning_rate: float,
    generator: torch.Generator,
    batch: int = 256,
    project: Project | None = None,
    guide: Guide | None = None,
) -> list[dict[str, Tensor]]:
    """Train the students to answer as the dense agent does, on minibatches.

    The loss is the KL divergence of the action distributions, for Q-values also the regret of the student's
    distribution under them, in the proportions of the student's :class:`Taste`. All students have one shape and are
    trained side by side as one batch of networks. Inputs are standardised for the training, and the standardisation
    is folded back into the first layers, exactly.

    Args:
        traced: Trace of the students' network.
        students: The tensors of each student.
        masks: Single weights held at zero.
        head: What the outputs mean.
        lessons: What to learn.
        updates: Steps of Adam with a one-cycle learning rate; with a guide the rate stays at its peak after the
            warm-up, and the result is the mean of the weights in the second half.
        learning_rate: Its peak.
        generator: Draws the minibatches.
        batch: Inputs in a minibatch.
        project: From tensors by name to those weights that are held to a constraint, as it has them, with gradients:
            students compute with these while they are trained, and the result has them exactly.
        guide: Critics that judge a squashed action beside the imitation.

    Returns:
        The trained tensors of each student.

    Reference: Rusu 2016 (policy distillation), eq. 3; Ross 2011 (DAgger) for the states; Ross & Bagnell 2014
    (AggreVaTe) for the regret; Smith 2018 (one-cycle); Izmailov 2018 (mean of weights).
    """
    standard = _standard(traced, students[0], lessons.observations)
    names = [n for n in traced.parameters if n in traced.trainable and students[0][n].is_floating_point()]
    stacked = {n: torch.stack([_standardised(traced, s, n, standard) for s in students]) for n in names}
    fixed = {n: t for n, t in students[0].items() if n not in stacked}
    trained = {n: t.clone().requires_grad_() for n, t in stacked.items()}
    inputs = lessons.observations if standard is None else (lessons.observations - standard.mean) / standard.deviation
    wanted = heads.executed(head, lessons.answers) if head.kind == "gaussian" else _log_probabilities(head, lessons)
    spread = wanted.std(dim=0).clamp_min(1e-3)
    optimizer = torch.optim.Adam(list(trained.values()), lr=learning_rate, fused=True)
    schedule = _schedule(optimizer, learning_rate, updates, steady=guide is not None)
    constrained = _Constrained(traced, masks, standard, project)
    run = _side_by_side(traced, fixed, constrained, len(students))
    own = tastes(len(students))
    regret = _regret(head, lessons)
    weight = torch.tensor([1.0 if regret is None else t.divergence for t in own])
    weight = weight.view(-1, *[1] * (lessons.answers.dim() - 1))
    mean, half = trained, updates // 2
    for update in range(updates):
        index = _minibatches(lessons, own, generator, batch)
        outputs, target = run(trained, inputs[index]), wanted[index]
        if head.kind == "gaussian":
            loss = _action_error(head, target, outputs, spread)
            if guide is not None and head.squashed:
                loss = loss + shortfall(guide, index, outputs.tanh(), turn=update)
        else:
            learnt = heads.log_probabilities(head, outputs, scale=lessons.scale)
            loss = weight * (target.exp() * (target - learnt)).sum(dim=-1)
            if regret is not None:
                loss = loss + (1.0 - weight) * (learnt.exp() * regret[index]).sum(dim=-1)
        optimizer.zero_grad()
        loss.flatten(1).mean(dim=-1).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if guide is not None and update >= half:
            mean = _mean(mean if update > half else None, trained, 1 / (update - half + 1))
    result = []
    for i, student in enumerate(students):
        with torch.no_grad():
            restored = _restored(traced, constrained({n: t.detach()[i].clone() for n, t in mean.items()}), standard)
            # Standardising and back is exact up to rounding; a constraint holds to the last bit.
            result.append({**student, **restored, **(project(restored) if project is not None else {})})
    return result


def _schedule(
    optimizer: torch.optim.Optimizer, peak: float, updates: int, *, steady: bool
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a one-cycle learning rate, or a steady one after a warm-up."""
    if not steady:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=updates, pct_start=WARM_UP)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / (WARM_UP * updates)))


def _mean(mean: dict[str, Tensor] | None, tensors: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Move a mean of tensors in place by ``share`` of the way to these; None is the mean of none."""
    now = {n: t.detach() for n, t in tensors.items()}
    if mean is None:
        return {n: t.clone() for n, t in now.items()}
    torch._foreach_lerp_(list(mean.values()), list(now.values()), share)
    return mean


@dataclass(frozen=True, eq=False)
class _Constrained:
    """Maps a student's standardised tensors to those that it computes with: masks and the constraint hold."""

    traced: Trace
    masks: Masks
    standard: _Standard | None
    project: Project | None

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = apply(tensors, self.masks)
        if self.project is None:
            return own
        deviations = {
            e.weight: self.standard.deviation.unsqueeze(1) if e.transposed else self.standard.deviation
            for e in self.traced.layers
            if self.standard is not None and not e.reads
        }
        plain = {n: t / deviations[n] if n in deviations else t for n, t in own.items()}
        held = self.project(plain)
        return {**own, **{n: t * deviations[n] if n in deviations else t for n, t in held.items()}}


def _side_by_side(
    traced: Trace, fixed: Mapping[str, Tensor], constrained: _Constrained, students: int
) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """Return a function of the students' stacked tensors and inputs that computes all of their outputs."""

    def one(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return forward(traced, {**fixed, **constrained(tensors)}, x)

    if students > 1 and all(layer.kind == "linear" for layer in traced.layers):
        run: Callable[[Mapping[str, Tensor], Tensor], Tensor] = torch.func.vmap(one)
        return run
    # Convolutions side by side are slower than one after another, and recurrent operators cannot be.
    return lambda tensors, x: torch.stack([one({n: t[i] for n, t in tensors.items()}, x[i]) for i in range(students)])


def answers(traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor) -> Tensor:
    """Compute a network's outputs for any number of states, shape (states, outputs), in bounded memory."""
    states = max(1, BLOCK // max(1, observations[:1].numel()))
    with torch.no_grad():
        return torch.cat([forward(traced, tensors, part) for part in torch.split(observations, states)])


def divergences(traced: Trace, students: Sequence[Mapping[str, Tensor]], head: Head, lessons: Lessons) -> list[float]:
    """Return each student's mean KL from the dense agent over the lessons, in nats."""
    found = [answers(traced, s, lessons.observations) for s in students]
    return [float(heads.divergence(head, lessons.answers, o, scale=lessons.scale).mean()) for o in found]


def calibrate(traced: Trace, tensors: Mapping[str, Tensor], lessons: Lessons) -> dict[str, Tensor]:
    """Scale and shift the output layer so that Q-values return to the dense agent's units; no action changes.

    Only one factor above zero and one shift for all actions are fitted, so every argmax stays as it is.
    """
    last = traced.layers[-1]
    output = answers(traced, tensors, lessons.observations)
    centred, answer = output - output.mean(), lessons.answers - lessons.answers.mean()
    factor = float((centred * answer).sum() / centred.square().sum().clamp_min(1e-12))
    if last.bias is None or not factor > 1e-3:
        return dict(tensors)
    shift = float(lessons.answers.mean()) - factor * float(output.mean())
    return {**tensors, last.weight: tensors[last.weight] * factor, last.bias: tensors[last.bias] * factor + shift}


def _minibatches(lessons: Lessons, own: Sequence[Taste], generator: torch.Generator, batch: int) -> Tensor:
    """Draw one minibatch a student, shape (students, batch)."""
    size = (len(own), batch)
    index = torch.randint(lessons.dense, size, generator=generator)
    others = len(lessons.observations) - lessons.dense
    if others == 0:
        return index
    share = torch.tensor([t.own for t in own]).unsqueeze(1)
    chosen = torch.rand(size, generator=generator) < share
    return torch.where(chosen, lessons.dense + torch.randint(others, size, generator=generator), index)


def _regret(head: Head, lessons: Lessons) -> Tensor | None:
    """Return max Q − Q(a) in units of the Q-values' spread, shape (states, actions); None for other heads."""
    if head.kind != "q_values":
        return None
    return (lessons.answers.max(dim=-1, keepdim=True).values - lessons.answers) / lessons.scale


def _log_probabilities(head: Head, lessons: Lessons) -> Tensor:
    return heads.log_probabilities(head, lessons.answers, scale=lessons.scale)


def _action_error(head: Head, wanted: Tensor, outputs: Tensor, spread: Tensor) -> Tensor:
    """Return the squared error of the actions that reach the environment, in units of their spread.

    What is clipped has no gradient: a small pull brings an output back within reach where the dense agent is not
    clipped there too. A squashed action is learnt by the cross-entropy of its place between the bounds instead, whose
    gradient does not vanish where the student is saturated and the dense agent is not.
    """
    if head.squashed and head.low is not None and head.high is not None:
        low, high = (torch.as_tensor(b.reshape(-1), dtype=outputs.dtype) for b in (head.low, head.high))
        place = ((wanted - low) / (high - low)).clamp(0.0, 1.0)
        return F.binary_cross_entropy_with_logits(2.0 * outputs, place, reduction="none").sum(dim=-1)
    reached = heads.executed(head, outputs)
    gap = (wanted - reached) / spread
    loss = gap.square().sum(dim=-1)
    beyond = (outputs - reached.detach()) / spread * (gap.detach() != 0)
    return loss + 0.01 * beyond.square().sum(dim=-1)


@dataclass(frozen=True, eq=False)
class _Standard:
    mean: Tensor
    deviation: Tensor


def _standard(traced: Trace, tensors: Mapping[str, Tensor], observations: Tensor) -> _Standard | None:
    """Return mean and deviation of the inputs, or None when the first layers do not read them one to one."""
    if not observations.is_floating_point() or observations.dim() != 2:
        return None
    seen = activity(traced, tensors, observations[:2]).inputs
    first = [layer for layer in traced.layers if not layer.reads]
    direct = all(layer.name in seen and torch.equal(seen[layer.name], observations[:2]) for layer in first)
    if not first or not direct or any(layer.derived for layer in first) or any(layer.bias is None for layer in first):
        return None
    return _Standard(observations.mean(dim=0), observations.std(dim=0).clamp_min(1e-6))


def _standardised(traced: Trace, tensors: Mapping[str, Tensor], name: str, standard: _Standard | None) -> Tensor:
    """Return a tensor as it must be for standardised inputs: W diag(σ), and b + W μ."""
    for layer in traced.layers if standard is not None else ():
        if not layer.reads and name in (layer.weight, layer.bias):
            assert standard is not None  # the loop is empty otherwise
            weight = matrix(layer, tensors)
            if name == layer.bias:
                return tensors[name] + weight @ standard.mean
            return _as_stored(layer, weight * standard.deviation)
    return tensors[name]


def _restored(traced: Trace, own: Mapping[str, Tensor], standard: _Standard | None) -> dict[str, Tensor]:
    """Undo :func:`_standardised`."""
    result = dict(own)
    for layer in traced.layers if standard is not None else ():
        if not layer.reads and layer.bias is not None:
            assert standard is not None  # the loop is empty otherwise
            weight = matrix(layer, own) / standard.deviation
            result[layer.weight] = _as_stored(layer, weight)
            result[layer.bias] = own[layer.bias] - weight @ standard.mean
    return result


def _as_stored(layer: Layer, weight: Tensor) -> Tensor:
    return weight.T.contiguous() if layer.transposed else weight
