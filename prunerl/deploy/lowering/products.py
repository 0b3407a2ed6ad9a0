"""Rules for what sums over products: linear layers, matrix products, attention, tables."""

from __future__ import annotations

import math
from typing import Any

import torch

from prunerl.deploy.lowering.entries import binary, times
from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Known, Made, Rule, Value, stripped
from prunerl.deploy.lowering.views import transpose
from prunerl.deploy.program import Affine, Embedding, MatMul, OneHot, Softmax


def linear(to: Lowering, x: Value, weight: Value, bias: Value = None) -> Value:
    """Rule for y = x Wᵀ + b."""
    if isinstance(x, Made) and isinstance(weight, Known) and (bias is None or isinstance(bias, Known)):
        return affine(to, x, weight, bias, flipped=False)
    made = product(to, x, transpose(to, weight, -1, -2))
    return made if bias is None else binary(to, "add", made, bias)


def matmul(to: Lowering, x: Value, y: Value) -> Value:
    """Rule for products, of which one may be a layer's weight, stored as (inputs, outputs)."""
    if isinstance(x, Made) and isinstance(y, Known) and y.tensor.dim() == 2:
        return affine(to, x, y, None, flipped=True)
    return product(to, x, y)


def addmm(to: Lowering, bias: Value, x: Value, y: Value, *, beta: float = 1, alpha: float = 1) -> Value:
    """Rule for beta · b + alpha · x y."""
    plain = isinstance(x, Made) and isinstance(y, Known) and isinstance(bias, Known) and beta == alpha == 1
    if plain and bias.tensor.dim() == 1 and y.tensor.dim() == 2:
        return affine(to, x, y, bias, flipped=True)
    return binary(to, "add", times(to, matmul(to, x, y), alpha), times(to, bias, beta))


def affine(to: Lowering, x: Made, weight: Known, bias: Value, *, flipped: bool) -> Made:
    """Add a layer over the last dimension, with its weight stored as (inputs, outputs) where ``flipped``."""
    if len(x.shape) < 2:
        to.refuse("a layer takes a value without a batch. Let the network take (batch, *observation).")
    matrix, vector, scale = to.matrix(weight, flipped=flipped), to.vector(bias), to.input_scale(weight)
    source = to.read(x)
    shape = (*to.shapes[source][:-1], len(matrix.values))
    return to.add(lambda r: Affine(source, r, matrix, vector, scale), shape, (*x.shape[:-1], len(matrix.values)))


def product(to: Lowering, x: Value, y: Value) -> Made:
    """Add the matrix product of two values, of one or more dimensions each."""
    left, right = to.made(x), to.made(y)
    out = torch.empty(left.shape, device="meta").matmul(torch.empty(right.shape, device="meta")).shape
    one = left.shape if len(left.shape) > 1 else (1, *left.shape)
    other = right.shape if len(right.shape) > 1 else (*right.shape, 1)
    shapes = [stripped(s) if len(s) > 2 else s for s in (one, other)]
    names = [to.read(v, s) for v, s in zip((left, right), shapes, strict=True)]
    made = torch.empty(shapes[0], device="meta").matmul(torch.empty(shapes[1], device="meta")).shape
    return to.add(lambda r: MatMul(names[0], names[1], r), tuple(made), out)


def attention(
    to: Lowering, query: Value, key: Value, value: Value, mask: Value = None, dropout: float = 0.0,
    causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Made:  # fmt: skip
    """Rule for scaled dot-product attention: softmax(q kᵀ · scale + mask) v."""
    if dropout > 0 or enable_gqa:
        to.refuse("drops entries at random, or shares keys among heads. Use evaluation mode and equally many heads.")
    query, key = to.made(query), to.made(key)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores: Value = product(to, times(to, query, scale), transpose(to, key, -1, -2))
    if causal:
        mask = Known(torch.ones(scores.shape[-2:]).tril().bool())
    if isinstance(mask, Known) and mask.tensor.dtype == torch.bool:
        mask = Known(torch.zeros(mask.tensor.shape).masked_fill(~mask.tensor, -torch.inf))
    if mask is not None:
        scores = binary(to, "add", scores, mask)
    source = to.read(scores)
    axis = len(to.shapes[source]) - 1
    weights = to.add(lambda r: Softmax(source, r, axis), to.shapes[source], scores.shape)
    return product(to, weights, value)


def embedding(to: Lowering, weight: Value, indices: Value, *_: Any) -> Made:
    """Rule for a table whose rows are picked by the observation."""
    if not isinstance(weight, Known):
        to.refuse("a table depends on the observation. Only stored tables are picked from.")
    table, source = to.matrix(weight), to.picks(indices)
    return to.add(lambda r: Embedding(source, r, table), (*to.shapes[source], table.values.shape[1]))


def one_hot(to: Lowering, x: Value, classes: int = -1) -> Made:
    """Rule for one-hot codes, of a number of classes that is said."""
    if classes < 1:
        to.refuse("the number of classes depends on the observation. Say it: one_hot(x, num_classes).")
    source, count = to.picks(x), math.prod(to.made(x).shape)
    return to.add(lambda r: OneHot(source, r, (int(classes),) * count), (int(classes) * count,))


def dot(to: Lowering, x: Value, y: Value) -> Made:
    """Rule for the inner product of two vectors."""
    return product(to, x, y)


RULES: dict[str, Rule] = {
    "linear": linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    **dict.fromkeys(("dot", "vdot"), dot),
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    "one_hot": one_hot,
}
