"""What is known while a graph is walked, and what every rule needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import fx

from prunerl import labels
from prunerl.labels import Elements, Factor, Ids, Labels

Shape = tuple[int, ...]
Outputs = Labels | tuple[Labels, ...]
"""Labels of an operator's output, or of each of its outputs."""

OBSERVED = "reads the observation"
FIXED_BESIDE = "added to values of fixed width"
TURNED = ("t", "transpose", "numpy_T", "mT", "permute")
"""Operators that only turn a matrix over."""


@dataclass(frozen=True)
class Use:
    """A layer as the graph has it: one affine map of an activation.

    Attributes:
        node: Name of the graph node.
        kind: ``linear``, ``conv``, ``transposed_conv`` or ``recurrent``.
        source: Name of the node that is its input, or "" where that is inside of another operator.
        weight: Name of the node that is its weight.
        bias: Name of the node that is its bias.
        transposed: The weight is stored as (inputs, outputs).
    """

    node: str
    kind: str
    source: str
    weight: str
    bias: str | None
    transposed: bool = False


class Sum(NamedTuple):
    """A dimension of an argument that a node sums over; a unit whose entries are zero there is not read."""

    node: str
    argument: int
    dim: int
    ids: Ids


@dataclass(eq=False)
class Walk:
    """What is known while the graph is walked from its inputs to its outputs.

    Attributes:
        shapes: Shape of each value; several of an operator with several outputs.
        elements: What was said of the elements.
        labels: Labels of each value.
        weights: Nodes that are computed from parameters alone.
        uses: The layers so far.
        normalised: Nodes of LayerNorms, and the elements that they run over.
        sums: What is summed over units.
        contracted: Elements of parameters that are summed over where no value of the graph can be set to zero instead:
            inside of recurrent layers, and in weights that are computed.
    """

    shapes: Mapping[fx.Node, Any]
    elements: Elements = field(default_factory=Elements)
    labels: dict[fx.Node, Outputs] = field(default_factory=dict)
    weights: set[fx.Node] = field(default_factory=set)
    uses: list[Use] = field(default_factory=list)
    normalised: list[tuple[str, Ids]] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    contracted: list[Ids] = field(default_factory=list)

    def of(self, node: Any) -> Labels:
        """Return the labels of a value with one output."""
        found = self.labels.get(node, ()) if isinstance(node, fx.Node) else ()
        return tuple(f for f in found if isinstance(f, Factor))

    def shape(self, node: Any) -> Shape:
        """Return the shape of a tensor, () for anything else."""
        found = self.shapes.get(node, ()) if isinstance(node, fx.Node) else ()
        return found if all(isinstance(n, int) for n in found) else ()

    def ids(self, node: Any, dim: int) -> Ids | None:
        """Return the elements along one dimension of a value; the others it shares a factor with are projected."""
        dim = dim % max(len(self.shape(node)), 1)
        found = labels.covering(self.of(node), dim)
        if found is None:
            return None
        own = labels.project(self.elements, found, (dim,))
        assert own is not None  # the factor covers the dimension
        return own.ids.ravel()

    def keep(self, node: Any, reason: str) -> None:
        """Keep all units of a value whole."""
        found = self.labels.get(node, ()) if isinstance(node, fx.Node) else ()
        for entry in found:
            for factor in (entry,) if isinstance(entry, Factor) else entry:
                self.elements.fix(factor.ids, reason)

    def fix_dim(self, node: Any, dim: int, reason: str) -> None:
        """Keep all units along one dimension of a value whole."""
        found = labels.covering(self.of(node), dim)
        if found is not None:
            self.elements.fix(found.ids, reason)

    def line_up(self, first: Ids | None, second: Ids | None, reason: str) -> None:
        """Say that two dimensions have the same units; where one is not cut, the other is not either."""
        if first is not None and second is not None:
            self.elements.join(first, second)
        for one in (first, second):
            if one is not None and (first is None or second is None):
                self.elements.fix(one, reason)

    def summed(self, node: fx.Node, argument: int, dim: int) -> None:
        """Note that ``node`` sums an argument over one dimension."""
        ids = self.ids(node.args[argument], dim)
        if ids is not None:
            self.sums.append(Sum(node.name, argument, dim, ids))


Rule = Callable[[Walk, fx.Node], Outputs]


def arguments(node: fx.Node) -> Any:
    """Return a node's arguments, whose types its operator says."""
    return node.args


def option(node: fx.Node, place: int, keyword: str, default: Any) -> Any:
    """Return an argument by its place or keyword."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(keyword, default)


def name(node: fx.Node) -> str:
    """Return an operator's name, without its namespace and overload."""
    text = str(node.target)
    return text.split(".")[1] if text.startswith("aten.") else getattr(node.target, "__name__", text)


def described(node: fx.Node) -> str:
    """Return a node's operator and, where it is inside of one, its layer."""
    stack = node.meta.get("nn_module_stack") or {}
    where = next((path for path, _ in reversed(list(stack.values())) if path), "")
    operator = str(node.target) if str(node.target).startswith("aten.") else name(node)
    return f"{operator} in layer {where!r}" if where else operator


def stored(node: Any) -> bool:
    """Return whether a weight is a parameter as it is stored, or only turned over: not computed."""
    if not isinstance(node, fx.Node):
        return False
    source = node.args[0] if name(node) in TURNED and node.args else node
    return isinstance(source, fx.Node) and source.op == "placeholder"
