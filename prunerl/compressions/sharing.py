"""Weights that share values: places in a small codebook, found by k-means."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor

from prunerl.compressions.codes import codes_of, nearest, stored_bytes, weights_to_code
from prunerl.compressions.moments import corrected_bias, layer_inputs
from prunerl.compressions.quantize import Coded
from prunerl.deploy.program import Coding
from prunerl.trace import Trace

UPDATES = 50


def codebook_of(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Return the values that stand for all others: 0, and the means of k-means clusters; sorted.

    The clusters begin evenly spaced between the smallest and the largest value, so that large weights, which are few
    and count most, have values near them.

    Args:
        values: The weights, of any shape.
        bits: Of one place: there are at most ``2**bits`` values.

    Reference: Han 2016 (deep compression), sections 3.1 and 3.2.

    >>> codebook_of(np.array([-1.0, -0.9, 0.0, 2.0], dtype=np.float32), 2).tolist()
    [-1.0, -0.8999999761581421, 0.0, 2.0]
    """
    zero = np.zeros(1, dtype=np.float32)
    other = values[values != 0].ravel()
    free = 2**bits - 1
    distinct = np.unique(other)
    if len(distinct) <= free:
        return np.union1d(distinct, zero)
    start = np.linspace(distinct[0], distinct[-1], free, dtype=np.float32)
    with warnings.catch_warnings():
        # Evenly spaced clusters may begin without members, and gain some later or are left out below.
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        found, _ = kmeans2(other[:, None], start[:, None], iter=UPDATES, minit="matrix")
    codebook = np.union1d(found.ravel().astype(np.float32), zero)
    return _centred(other, codebook)


def held(values: Tensor, coding: Coding, codes: Tensor) -> Tensor:
    """Return values in which equal codes have one value, their mean, and the code of 0 has 0.

    A gradient on the result reaches each of them as the sum over all that share it, up to the number of them.

    Reference: Han 2016, equation 3.
    """
    assert coding.codebook is not None  # of every shared coding
    flat, entries = codes.flatten(), len(coding.codebook)
    counts = torch.bincount(flat, minlength=entries).clamp_min(1)
    means = torch.zeros(entries).index_add(0, flat, values.flatten()) / counts
    free = torch.as_tensor(coding.codebook != 0)
    return torch.where(free, means, torch.zeros(entries))[codes]


def shared(
    traced: Trace, tensors: Mapping[str, Tensor], codings: Mapping[str, Coding], observations: Tensor, *, bits: int
) -> Coded:
    """Let the weights of each layer share few values, and correct biases for the mean error that this makes.

    Args:
        traced: The network.
        tensors: Its tensors.
        codings: Of weights that are coded already, and stay so.
        observations: Visited states, the network's inputs.
        bits: Of one place in a codebook.
    """
    seen = layer_inputs(traced, tensors, observations)
    changed, made, left = dict(tensors), dict[str, Coding](), list[str]()
    for layer in weights_to_code(traced, tensors, codings):
        weight = tensors[layer.weight]
        values = weight.detach().numpy()
        codebook = codebook_of(values, bits)
        coding = Coding("shared", bits, codebook=codebook)
        if stored_bytes(weight, coding) >= stored_bytes(weight, None):
            left.append(layer.weight)
            continue
        made[layer.weight] = coding
        changed[layer.weight] = torch.from_numpy(codebook[nearest(values, codebook)])
        changed |= corrected_bias(traced, layer, tensors, changed, seen)
    return Coded(changed, made, tuple(left))


def recoded(values: Tensor, coding: Coding) -> Coding:
    """Return the coding of a shared weight whose values were trained: what they are now, sorted."""
    codebook = np.union1d(values.detach().numpy(), np.zeros(1, dtype=np.float32))
    return Coding("shared", coding.bits, codebook=codebook)


def assignments(values: Tensor, coding: Coding) -> Tensor:
    """Return the place in the codebook of each value, which training keeps."""
    return torch.from_numpy(codes_of(values, coding))


def _centred(values: NDArray[np.float32], codebook: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the codebook with each entry the mean of what is nearest to it, 0 as it is, without unused entries."""
    codes = nearest(values, codebook)
    counts = np.bincount(codes, minlength=len(codebook))
    sums = np.bincount(codes, weights=values, minlength=len(codebook))
    means = np.where(codebook == 0, 0.0, sums / np.maximum(counts, 1)).astype(np.float32)
    return np.unique(means[(counts > 0) | (codebook == 0)])
