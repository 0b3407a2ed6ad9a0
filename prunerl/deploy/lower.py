"""Lower a policy: from its networks, normaliser and head to one program of plain operations."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from prunerl.deploy.lowering import RULES, Known, Lowering, Made, Stacked, Value
from prunerl.deploy.program import (
    OBSERVATION,
    Choose,
    Clip,
    Coding,
    Floats,
    Normalize,
    Positive,
    Program,
    Reshape,
    Squash,
)
from prunerl.errors import LowerError
from prunerl.operators import name
from prunerl.types import Head, Normalizer, Policy

CHECKS = frozenset("_assert_tensor_metadata _assert_scalar sym_constrain_range_for_size".split())
DTYPES = {
    "float32": torch.float32, "float64": torch.float32, "uint8": torch.uint8, "int8": torch.int8,
    "int16": torch.int16, "int32": torch.int32, "int64": torch.int64, "bool": torch.bool,
}  # fmt: skip
"""NumPy name of a raw observation's type → the type in which the network takes it."""


def lower(policy: Policy, codings: Mapping[str, Coding] = {}, *, dtype: str | None = None) -> Program:
    """Turn a policy into a program that computes the same deterministic actions from raw observations.

    Args:
        policy: What is deployed, in evaluation mode.
        codings: How parameters are stored that are quantised or shared, by name.
        dtype: NumPy name of the raw observation's type. By default what the policy says (``observation_dtype``, where
            it has that), else ``int64`` of an observation without dimensions and ``float32`` of others.

    Returns:
        The program as lowered; :func:`prunerl.deploy.passes.simplify` makes it smaller.

    Raises:
        LowerError: The network uses what a program does not have; the message names the operator, its layer and what to
            do. Or a weight is not finite, or not what its codes say.
    """
    dtype = _dtype(policy, dtype)
    exported = _exported(policy, DTYPES[dtype] if policy.normalizer is None else torch.float32)
    to = Lowering(_codings(policy, codings))
    to.shapes[OBSERVATION] = policy.observation_shape
    observation = _prepared(to, policy, dtype)
    memory = _memory(to, policy)
    names = _names(policy)
    output, following = _walk(to, exported, _placeholders(exported, (observation, *memory), names))
    left = sorted(set(to.codings) - to.coded)
    if left:
        raise LowerError(f"{left[0]!r} is stored in codes, but is no layer's weight. Leave it out of the codings.")
    to.node = None
    action, shapes = _action(to, policy.head, output), to.shapes
    return Program(
        operations=tuple(to.operations),
        shapes=shapes,
        action=action,
        observation_dtype=dtype,
        action_shape=tuple(policy.head.shape),
        action_dtype={"gaussian": "float32", "bernoulli": "int8"}.get(policy.head.kind, "int64"),
        memory=_remembered(to, memory, following),
        allowed=_allowed(policy.head, output) if policy.masked else 0,
    )


def _codings(policy: Policy, codings: Mapping[str, Coding]) -> dict[str, Coding]:
    """Return the codings by the first name of each tensor."""
    names = {name.removeprefix("network.") if policy.memory else name: first for name, first in _names(policy).items()}
    for name in codings:
        if name not in names:
            raise LowerError(f"A coding is given for {name!r}, which is no parameter of the policy's network.")
    return {names[name]: coding for name, coding in codings.items()}


def _names(policy: Policy) -> dict[str, str]:
    """Return the first name of each tensor by the names that the graph may have for it: shared ones have several."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in policy.network.state_dict(keep_vars=True).items():
        names[f"network.{name}" if policy.memory else name] = first.setdefault(id(tensor), name)
    return names


def _dtype(policy: Policy, dtype: str | None) -> str:
    default = "float32" if policy.observation_shape else "int64"
    chosen: str = dtype or getattr(policy, "observation_dtype", None) or default
    if chosen not in DTYPES:
        raise LowerError(f"Observations of type {chosen!r} cannot be lowered. Choose dtype from: {', '.join(DTYPES)}.")
    return chosen


class _Step(nn.Module):
    """One step of a recurrent network, whose memory comes in and goes out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        result: tuple[Tensor, tuple[Tensor, ...]] = self.network.step(observations, memory)  # type: ignore[operator]
        return result


def _exported(policy: Policy, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """Return the network's graph for a batch of one, in operators that have rules as far as PyTorch can say so."""
    arguments: tuple[Any, ...] = (torch.zeros((1, *policy.observation_shape), dtype=dtype),)
    module = policy.network
    if policy.memory:
        module = _Step(policy.network)
        arguments = (*arguments, tuple(torch.zeros(s[0], 1, *s[1:]) for s in policy.memory))
    try:
        with torch.no_grad(), warnings.catch_warnings(), _without_fast_path():
            # That recurrent layers keep their weights in a list as well is no concern here.
            warnings.filterwarnings("ignore", message=".*were assigned during export.*")
            program = torch.export.export(module, arguments)
            table = torch.export.default_decompositions()
            left = {op: rule for op, rule in table.items() if _plain_name(op) not in RULES}
            return program.run_decompositions(left)
    except Exception as error:  # torch.export raises many types; all mean that the network is not a plain graph
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LowerError(
            f"torch.export cannot read {type(policy.network).__name__}: {first}. "
            "Make its forward free of Python control flow on tensor values."
        ) from error


def _plain_name(operator: Any) -> str:
    return str(operator._schema.name.split("::")[1]) if hasattr(operator, "_schema") else str(operator)


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let attention be traced as products: its fused form for inference is one opaque operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _prepared(to: Lowering, policy: Policy, dtype: str) -> Made:
    """Return the network's input: the observation, normalised where the policy does that."""
    shape = (1, *policy.observation_shape)
    if policy.normalizer is None:
        return Made(OBSERVATION, shape, "real" if dtype.startswith("float") else "whole")
    normalize = _normalize(policy.normalizer, policy.observation_shape)
    to.operations.append(normalize)
    to.shapes[normalize.result] = policy.observation_shape
    return Made(normalize.result, shape)


def _normalize(normalizer: Normalizer, shape: tuple[int, ...]) -> Normalize:
    factor = 1 / np.sqrt(np.asarray(normalizer.var, np.float64) + normalizer.epsilon)
    mean = np.asarray(normalizer.mean, np.float64)
    for name, values in (("mean", mean), ("variance", factor)):
        if not np.isfinite(values).all():
            raise LowerError(f"The normaliser's {name} is not finite. Save the statistics again.")

    def spread(values: Any, kind: Any) -> Any:
        return np.ascontiguousarray(np.broadcast_to(values, shape).astype(kind))

    where = None if normalizer.where is None else spread(normalizer.where, np.bool_)
    return Normalize(
        OBSERVATION, "normalized", spread(mean, np.float32), spread(factor, np.float32), normalizer.clip, where
    )


def _memory(to: Lowering, policy: Policy) -> list[Stacked]:
    """Return the memory's tensors, each layer a value of the program."""
    memory = []
    for place, (layers, *shape) in enumerate(policy.memory):
        names = [f"memory_{place}_{layer}" for layer in range(layers)]
        to.shapes.update(dict.fromkeys(names, tuple(shape)))
        memory.append(Stacked(tuple(Made(name, (1, *shape)) for name in names)))
    return memory


def _remembered(to: Lowering, memory: Sequence[Stacked], following: Sequence[Value]) -> dict[str, str]:
    """Return which value each part of the memory holds next; a part never holds another part itself."""
    names = [part.name for stacked in memory for part in stacked.parts]
    remembered = {}
    for stacked, values in zip(memory, following, strict=True):
        for place, part in enumerate(stacked.parts):
            value = to.read(to.part(values, place), to.shapes[part.name])
            if value in names and value != part.name:
                source, value = value, to.fresh(f"{part.name}_next")
                to.operations.append(Reshape(source, value))
                to.shapes[value] = to.shapes[source]
            remembered[part.name] = value
    return remembered


def _walk(
    to: Lowering, exported: torch.export.ExportedProgram, values: dict[fx.Node, Value]
) -> tuple[Made, Sequence[Value]]:
    """Lower every node; return the output and the next memory."""
    for node in exported.graph.nodes:
        if node.op == "call_function" and name(node) not in CHECKS:
            to.node = node
            values[node] = _lowered(to, node, values)
    _check_effects(exported)
    results = [values[n] if isinstance(n, fx.Node) else n for n in exported.graph.output_node().args[0]]
    return to.made(results[0]), results[1:]


def _check_effects(exported: torch.export.ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            raise LowerError(
                f"The network changes {spec.target!r} while it acts. Put it into evaluation mode, or return what it "
                "remembers as its memory."
            )


def _placeholders(
    exported: torch.export.ExportedProgram, inputs: Sequence[Value], names: Mapping[str, str]
) -> dict[fx.Node, Value]:
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    given, values = iter(inputs), {}
    for spec in exported.graph_signature.input_specs:
        node = nodes[spec.arg.name]  # type: ignore[union-attr]
        if spec.kind == InputKind.USER_INPUT:
            values[node] = next(given)
            continue
        target = str(spec.target)
        tensor = exported.state_dict[target] if target in exported.state_dict else exported.constants[target]
        parameter = names.get(target, target)
        if spec.kind == InputKind.PARAMETER and node.users and not bool(tensor.isfinite().all()):
            raise LowerError(f"{parameter!r} holds numbers that are not finite. Train the agent again, or mend them.")
        values[node] = Known(tensor.detach(), frozenset((parameter,)), parameter)
    return values


def _lowered(to: Lowering, node: fx.Node, values: Mapping[fx.Node, Value]) -> Value:
    arguments = fx.map_arg(node.args, values.__getitem__)  # type: ignore[arg-type]
    options = fx.map_arg(node.kwargs, values.__getitem__)  # type: ignore[arg-type]
    if node.target is operator.getitem:
        return _item(to, *arguments)
    known = [values[n] for n in node.all_input_nodes]
    if all(isinstance(value, Known) for value in known):
        return _computed(to, node, known)
    which = name(node)
    if which not in RULES:
        to.refuse("a program has no such operation. Write the network with others, or add a rule in deploy/lowering.")
    try:
        return RULES[which](to, *arguments, **options)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        if isinstance(error, LowerError):
            raise
        to.refuse(
            f"is used in a form that its rule does not know ({type(error).__name__}: {error}). Write it in another way."
        )


def _item(to: Lowering, values: Sequence[Value], place: int) -> Value:
    if values[place] is None:
        to.refuse("gives the places of the largest entries, which a program does not compute. Use the values alone.")
    return values[place]


def _computed(to: Lowering, node: fx.Node, known: Sequence[Known]) -> Value:
    """Compute what does not depend on the observation."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _dropout_off(node):
        to.refuse("draws at random, so there is no one action. Put the network into evaluation mode: module.eval().")
    tensors = {n: value.tensor for n, value in zip(node.all_input_nodes, known, strict=True)}
    arguments: Any = fx.map_arg(node.args, tensors.__getitem__)  # type: ignore[arg-type]
    options: Any = fx.map_arg(node.kwargs, tensors.__getitem__)  # type: ignore[arg-type]
    with torch.no_grad():
        result = node.target(*arguments, **options)  # type: ignore[operator]
    roots = frozenset[str]().union(*(value.roots for value in known))
    if isinstance(result, Tensor):
        return _identified(to, Known(result, roots), known)
    return tuple(Known(part, roots) if isinstance(part, Tensor) else part for part in result)


def _dropout_off(node: fx.Node) -> bool:
    return "dropout" in name(node) and node.args[2] is False


def _identified(to: Lowering, value: Known, known: Sequence[Known]) -> Known:
    """Return a computed value as the parameter that it is, turned over or not, where it is one that has codes."""
    for source in known:
        if source.parameter in to.codings:
            if source.tensor.shape == value.tensor.shape and torch.equal(source.tensor, value.tensor):
                return source
            if source.tensor.dim() == 2 and torch.equal(source.tensor.mT, value.tensor):
                return Known(value.tensor, value.roots, source.parameter, not source.flipped)
    return value


def _action(to: Lowering, head: Head, output: Made) -> str:
    """Add what turns the network's output into the action, and return its name."""
    count = math.prod(output.shape)
    if len(output.shape) != 2 or output.shape[0] != 1 or (head.sizes and count != sum(head.sizes)):
        raise LowerError(
            f"The network gives shape {output.shape} for one observation, but a {head.kind} head of sizes {head.sizes} "
            "reads (1, outputs). Return the head's input alone."
        )
    source, result = to.read(output), to.fresh("action")
    if head.kind in ("categorical", "q_values"):
        to.operations.append(Choose(source, result, head.sizes))
        to.shapes[result] = (len(head.sizes),)
        return result
    to.shapes[result] = (count,)
    if head.kind == "bernoulli":
        to.operations.append(Positive(source, result))
        return result
    low, high = (_bound(value, default, count) for value, default in ((head.low, -np.inf), (head.high, np.inf)))
    to.operations.append((Squash if head.squashed else Clip)(source, result, low, high))
    return result


def _bound(value: Any, default: float, count: int) -> Floats:
    return np.full(count, default, np.float32) if value is None else np.asarray(value, np.float32).reshape(-1)


def _allowed(head: Head, output: Made) -> int:
    return 2 * math.prod(output.shape) if head.kind == "bernoulli" else sum(head.sizes)
