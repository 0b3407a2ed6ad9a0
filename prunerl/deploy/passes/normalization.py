"""Fold the normaliser of observations into the first layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prunerl.deploy.passes.edit import readers, scaled, with_operations
from prunerl.deploy.program import OBSERVATION, Affine, Floats, Normalize, Operation, Program, Shape

Bounds = tuple[ArrayLike, ArrayLike]
"""Lowest and highest entries of any observation."""

MAGNITUDE = 100.0
"""Observations in standard deviations, before their mean is subtracted, up to which the fold is precise: what is
subtracted in the layer then costs two digits at most."""


def fold_normalization(program: Program, bounds: Bounds) -> Program:
    """Fold the normaliser into the layers that read it, where no observation within the bounds is clipped.

    It stays where the clip may act, where a reader is no layer without codes, and where the observations are more than
    ``MAGNITUDE`` standard deviations away from zero: there the subtraction in the layer would be less precise.

    Args:
        program: What is changed.
        bounds: Lowest and highest entries of any observation, shape as the observation or a number.
    """
    found = readers(program)
    for place, operation in enumerate(program.operations):
        if isinstance(operation, Normalize) and operation.source == OBSERVATION:
            layers = found.get(operation.result, [])
            if not layers or not all(_takes(program, layer) for layer in layers):
                return program
            if not _never_clips(operation, bounds, program.observation_shape):
                return program
            operations: list[Operation] = list(program.operations)
            for layer in layers:
                operations[layer] = _folded(operations[layer], operation)
            del operations[place]
            return with_operations(program, operations, note="The normaliser is part of the first layer.")
    return program


def _takes(program: Program, place: int) -> bool:
    operation = program.operations[place] if place >= 0 else None
    if not isinstance(operation, Affine) or len(program.observation_shape) != 1:
        return False
    return operation.weight.codes is None and operation.input_scale is None


def _never_clips(operation: Normalize, bounds: Bounds, shape: Shape) -> bool:
    low, high = (np.broadcast_to(np.asarray(b, np.float64), shape) for b in bounds)
    where = np.ones(shape, np.bool_) if operation.where is None else operation.where
    clip = operation.clip
    inside = ((low - operation.mean) * operation.factor >= -clip) & ((high - operation.mean) * operation.factor <= clip)
    near = np.maximum(np.abs(low), np.abs(high)) * operation.factor <= MAGNITUDE
    return bool((inside & near)[where].all())


def _folded(layer: Any, operation: Normalize) -> Affine:
    where = np.ones_like(operation.mean, np.bool_) if operation.where is None else operation.where
    factor: Floats = np.where(where, operation.factor, np.float32(1))
    mean = np.where(where, operation.mean, 0).astype(np.float64)
    weight = scaled(layer.weight, factor, axis=1)
    assert weight is not None  # it has no codes
    shift = (layer.weight.values.astype(np.float64) * factor) @ mean
    bias = (-shift if layer.bias is None else layer.bias - shift).astype(np.float32)
    return Affine(operation.source, layer.result, weight, bias)
