"""What a convolution sees at each place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.nn import functional as F


def patches(node: fx.Node, inputs: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Return the patches under a convolution's kernel, as a view of its (padded) input.

    Args:
        node: Of the graph, an ATen convolution of any number of dimensions; its stride, padding and dilation count.
        inputs: What enters it, shape (batch, channels, *image).
        shape: Of its weight, (outputs, channels, *kernel).

    Returns:
        Shape (batch, *places, channels, *kernel); None of a convolution of several groups.
    """
    kernel = tuple(shape[2:])
    options = [*node.args[3:], *[None] * 4][:4]
    stride, padding, dilation, groups = (
        node.kwargs.get(name, given)
        for name, given in zip(("stride", "padding", "dilation", "groups"), options, strict=True)
    )
    if groups not in (None, 1):
        return None
    steps, gaps = _each(stride, len(kernel), 1), _each(dilation, len(kernel), 1)
    reach = [gap * (size - 1) + 1 for size, gap in zip(kernel, gaps, strict=True)]
    seen = F.pad(inputs, _margins(padding, reach))
    for d, (width, step, gap) in enumerate(zip(reach, steps, gaps, strict=True)):
        seen = seen.unfold(d + 2, width, step)[..., ::gap]
    return seen.movedim(1, 1 + len(kernel))


def _margins(padding: Any, reach: Sequence[int]) -> list[int]:
    """Return what is padded before and after each dimension, the last one first, as ``F.pad`` wants it."""
    if padding == "same":  # where it cannot be even, PyTorch pads one more after
        both = [((width - 1) // 2, width - 1 - (width - 1) // 2) for width in reach]
    else:
        both = [(p, p) for p in _each(None if padding == "valid" else padding, len(reach), 0)]
    return [margin for pair in reversed(both) for margin in pair]


def _each(given: Any, dims: int, default: int) -> list[int]:
    """Return an option of a convolution for each dimension; one number stands for all."""
    numbers = [default] if given is None else [given] if isinstance(given, int) else list(given)
    return numbers * dims if len(numbers) == 1 else numbers
