"""The graph of a policy's network for a batch of one, and the walk over it."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.rules import RULES
from prunerl.deploy.lowering.values import Known, Made, Value
from prunerl.errors import LowerError
from prunerl.operators import name as operator_name
from prunerl.types import Policy

CHECKS = frozenset("_assert_tensor_metadata _assert_scalar sym_constrain_range_for_size".split())


def exported(policy: Policy, dtype: torch.dtype) -> ExportedProgram:
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
            program: ExportedProgram = torch.export.export(module, arguments)
            table: Any = torch.export.default_decompositions()
            left = {op: rule for op, rule in table.items() if _plain_name(op) not in RULES}
            decomposed: ExportedProgram = program.run_decompositions(left)
    except Exception as error:  # torch.export raises many types; all mean that the network is not a plain graph
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LowerError(
            f"torch.export cannot read {type(policy.network).__name__}: {first}. "
            "Make its forward free of Python control flow on tensor values."
        ) from error
    return decomposed


class _Step(nn.Module):
    """One step of a recurrent network, whose memory comes in and goes out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observations: Tensor, memory: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        result: tuple[Tensor, tuple[Tensor, ...]] = self.network.step(observations, memory)  # type: ignore[operator]
        return result


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


def names(policy: Policy) -> dict[str, str]:
    """Return the first name of each tensor by the names that the graph may have for it: shared ones have several."""
    first: dict[int, str] = {}
    prefix = "network." if policy.memory else ""
    live = policy.network.state_dict(keep_vars=True).items()
    return {prefix + name: first.setdefault(id(tensor), name) for name, tensor in live}


def walk(to: Lowering, exported: ExportedProgram, values: dict[fx.Node, Value]) -> tuple[Made, Sequence[Value]]:
    """Lower every node; return the output and the next memory."""
    for node in exported.graph.nodes:
        if node.op == "call_function" and operator_name(node) not in CHECKS:
            to.node = node
            values[node] = _lowered(to, node, values)
    _check_effects(exported)
    results = [values[n] if isinstance(n, fx.Node) else n for n in exported.graph.output_node().args[0]]
    return to.made(results[0]), results[1:]


def placeholders(exported: ExportedProgram, inputs: Sequence[Value], names: Mapping[str, str]) -> dict[fx.Node, Value]:
    """Return what the graph's inputs are: the observation and the memory, parameters, buffers and constants.

    Raises:
        LowerError: A parameter is not finite.
    """
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    given, values = iter(inputs), {}
    for spec in exported.graph_signature.input_specs:
        node = nodes[spec.arg.name]
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


def _check_effects(exported: ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            raise LowerError(
                f"The network changes {spec.target!r} while it acts. Put it into evaluation mode, or return what it "
                "remembers as its memory."
            )


def _lowered(to: Lowering, node: fx.Node, values: Mapping[fx.Node, Value]) -> Value:
    arguments: Any = fx.map_arg(node.args, values.__getitem__)
    options: Any = fx.map_arg(node.kwargs, values.__getitem__)
    if node.target is operator.getitem:
        return _item(to, *arguments)
    known = [values[n] for n in node.all_input_nodes]
    if all(isinstance(value, Known) for value in known):
        return _computed(to, node, known)
    which = operator_name(node)
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
    arguments: Any = fx.map_arg(node.args, tensors.__getitem__)
    options: Any = fx.map_arg(node.kwargs, tensors.__getitem__)
    with torch.no_grad():
        result = node.target(*arguments, **options)  # type: ignore[operator]
    roots = frozenset[str]().union(*(value.roots for value in known))
    if isinstance(result, Tensor):
        return _identified(to, Known(result, roots), known)
    return tuple(Known(part, roots) if isinstance(part, Tensor) else part for part in result)


def _dropout_off(node: fx.Node) -> bool:
    return "dropout" in operator_name(node) and node.args[2] is False


def _identified(to: Lowering, value: Known, known: Sequence[Known]) -> Known:
    """Return a computed value as the parameter that it is, turned over or not, where it is one that has codes."""
    for source in known:
        if source.parameter in to.codings:
            if source.tensor.shape == value.tensor.shape and torch.equal(source.tensor, value.tensor):
                return source
            if source.tensor.dim() == 2 and torch.equal(source.tensor.mT, value.tensor):
                return Known(value.tensor, value.roots, source.parameter, not source.flipped)
    return value
