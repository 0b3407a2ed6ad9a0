"""What a policy costs: parameters, non-zeros, multiply–accumulates and latency."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from prunerl import heads
from prunerl.trace import Trace, matrix
from prunerl.types import Policy, Size, State

DECISIONS = 1000


def size(traced: Trace, tensors: Mapping[str, Tensor]) -> Size:
    """Count a policy network's parameters, non-zeros, MACs of one decision and hidden widths."""
    own = [tensors[name] for name in traced.parameters]
    layers = [layer for layer in traced.layers if layer.makes and (layer.kind != "recurrent" or not layer.seen)]
    widths = tuple(matrix(e, tensors).shape[1 if e.kind == "recurrent" else 0] for e in layers)
    return Size(
        parameters=sum(t.numel() for t in own),
        nonzeros=sum(int(t.count_nonzero()) for t in own),
        macs=sum(tensors[layer.weight].numel() * layer.positions for layer in traced.layers),
        units=widths,
    )


def stored(traced: Trace, state: State) -> int:
    """Return the numbers of a policy network that are not held at zero by a mask."""
    return sum(
        int(state.masks[name].sum()) if name in state.masks else state.tensors[name].numel()
        for name in traced.parameters
    )


def latency(policy: Policy, *, decisions: int = DECISIONS) -> tuple[float, float, float]:
    """Time single decisions through PyTorch on this CPU: 5 %, 50 % and 95 % quantile in microseconds."""
    observation = np.zeros((1, *policy.observation_shape), dtype=np.float32)
    if not policy.observation_shape:
        observation = np.zeros((1,), dtype=np.int64)
    times = []
    for i in range(decisions + decisions // 10):
        start = time.perf_counter()
        heads.act(policy, observation)
        if i >= decisions // 10:
            times.append((time.perf_counter() - start) * 1e6)
    low, median, high = np.quantile(times, [0.05, 0.5, 0.95])
    return float(low), float(median), float(high)
