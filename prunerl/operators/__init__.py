"""How each ATen operator moves labels: one rule an operator, found by its name.

A rule takes the walk and a graph node, and gives the labels of the node's output (for an operator with several outputs,
one each). An operator without a rule keeps its inputs whole, with a reason that names it.

To add a rule, find the operator's name in ``traced.kept_whole`` or ``traced.module.graph``, write what it says of its
inputs' units, and put it into the ``RULES`` of the file with its subject. Three things can be said: units of two values
are the same ones (``walk.line_up``, ``labels.broadcast``), units are never cut (``walk.keep``, ``walk.fix_dim``), and
a unit is not read where its entries are zero (``walk.summed``). What a rule gives back are the output's units. A rule
that says too little makes :func:`prunerl.remove.remove` refuse, which compares the smaller network with the masked one.
``roll``, for example, moves the units along a dimension round, by a fixed number of places:

>>> import numpy as np, torch
>>> from torch import nn
>>> from prunerl.labels import Factor
>>> from prunerl.operators import RULES, Walk, arguments
>>> from prunerl.trace import trace, unit_groups
>>> def roll(walk, node):
...     source, shifts, dims = arguments(node)
...     return tuple(Factor(f.dims, np.roll(f.ids, shifts, dims)) for f in walk.of(source))
>>> class Rolled(nn.Module):
...     def __init__(self):
...         super().__init__()
...         self.hidden, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
...     def forward(self, x):
...         return self.last(torch.roll(self.hidden(x), 1, 1))
>>> network = Rolled()
>>> trace(network, torch.randn(2, 3)).kept_whole["hidden"]
'read by aten.roll.default, which has no rule'
>>> RULES["roll"] = roll
>>> traced = trace(network, torch.randn(2, 3))
>>> [group.units for group in unit_groups(traced, network.state_dict())]
[4]
>>> del RULES["roll"]
"""

from __future__ import annotations

from torch import fx

from prunerl.operators import elementwise, parts, products, recurrent, reductions, views
from prunerl.operators.walk import Rule, Sum, Use, Walk, arguments, described, name, stored

__all__ = ["RULES", "Rule", "Sum", "Use", "Walk", "apply", "arguments", "described", "name", "stored"]

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **reductions.RULES,
    **products.RULES,
    **recurrent.RULES,
    **views.RULES,
    **parts.RULES,
}
IGNORED = frozenset("sym_size _assert_tensor_metadata _assert_scalar sym_constrain_range_for_size".split())


def apply(walk: Walk, node: fx.Node) -> None:
    """Give a node of the graph its labels.

    Where an operator has no rule, or is used in a form that its rule does not know, its inputs are kept whole: what was
    said of them before only ever keeps more of them.
    """
    which, inputs = name(node), node.all_input_nodes
    if which in IGNORED:
        return
    if inputs and set(inputs) <= walk.weights:
        walk.weights.add(node)
    reason = f"read by {described(node)}, which has no rule"
    if which in RULES:
        try:
            walk.labels[node] = RULES[which](walk, node)
            return
        except (ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
            reason = (
                f"read by {described(node)} in a form that its rule does not know ({type(error).__name__}: {error})"
            )
    for each in inputs:
        walk.keep(each, reason)
