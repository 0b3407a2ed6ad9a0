"""How each ATen operator becomes operations of a program: one rule an operator, found by its name.

A rule takes the lowering and then what the operator takes, with values in place of tensors: a
``Known`` where it does not depend on the observation, and a ``Made`` where it does.
It gives the operator's result, or one for each. Where every tensor is known no rule is asked: PyTorch computes it.
"""

from __future__ import annotations

from prunerl.deploy.lowering import activations, elementwise, products, recurrent, reductions, spatial, views
from prunerl.deploy.lowering.values import Rule

RULES: dict[str, Rule] = {
    **activations.RULES,
    **elementwise.RULES,
    **products.RULES,
    **recurrent.RULES,
    **reductions.RULES,
    **spatial.RULES,
    **views.RULES,
}
