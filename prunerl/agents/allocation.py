"""Stop networks from being built that are far larger than the file that describes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})


class Limit(TorchFunctionMode):
    """Within it, tensors of at most ``numbers`` numbers may be made, all together; then ``ValueError`` is raised.

    A file of a megabyte can name widths of two layers, 100,000 each, without the weights between them.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count what a call would make, and let it."""
        given = dict(kwargs or {})
        if func in _FACTORIES:
            self.left -= _numbers(args, given)
            if self.left < 0:
                raise ValueError("its network would be far larger than its tensors are")
        return func(*args, **given)


def _numbers(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    size = args[0] if args and isinstance(args[0], tuple | list) else args or kwargs.get("size", ())
    return math.prod(int(n) for n in size)
