"""A program as far as it is made from a graph, and what rules add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx

from prunerl.deploy.lowering.codes import plain, with_codes
from prunerl.deploy.lowering.values import Known, Made, Stacked, Value, stripped
from prunerl.deploy.program import Coding, Concat, Constant, Floats, Matrix, Operation, Reshape, Shape, Slice
from prunerl.errors import LowerError
from prunerl.operators import described, name


@dataclass(eq=False)
class Lowering:
    """A program as far as it is made.

    Attributes:
        codings: How parameters are stored, by name.
        node: The node of the graph that is being lowered.
        operations, shapes: Of the program.
        coded: Parameters whose codes are in the program.
    """

    codings: Mapping[str, Coding]
    node: fx.Node | None = None
    operations: list[Operation] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    coded: set[str] = field(default_factory=set)
    stored: dict[Any, tuple[Tensor, Matrix]] = field(default_factory=dict)

    @property
    def operator(self) -> str:
        """Name of the operator that is being lowered."""
        assert self.node is not None  # rules are applied to nodes
        return name(self.node)

    @property
    def out(self) -> Shape:
        """Shape of the node's output in the graph, of its first one where it has several."""
        return self.outs[0]

    @property
    def outs(self) -> tuple[Shape, ...]:
        """Shape of each output of the node in the graph."""
        assert self.node is not None  # rules are applied to nodes
        value = self.node.meta["val"]
        values = value if isinstance(value, tuple | list) else (value,)
        return tuple(tuple(int(n) for n in v.shape) for v in values)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the node's output in the graph, of its first one where it has several."""
        assert self.node is not None  # rules are applied to nodes
        value = self.node.meta["val"]
        dtype: torch.dtype = (value[0] if isinstance(value, tuple | list) else value).dtype
        return dtype

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that says why the node cannot be lowered."""
        where = "the network" if self.node is None else described(self.node)
        raise LowerError(f"{where}: {why}")

    def fresh(self, stem: str) -> str:
        """Return a name that no value has yet."""
        made, count = stem, 1
        while made in self.shapes:
            made, count = f"{stem}_{count}", count + 1
        return made

    def add(self, make: Callable[[str], Operation], made: Shape, shape: Sequence[int] | None = None) -> Made:
        """Add an operation.

        Args:
            make: From the name of its result to the operation.
            made: Shape of the result in the program.
            shape: Shape that the value then has in the graph; the node's output by default.
        """
        shape = self.out if shape is None else tuple(shape)
        result = self.fresh("value" if self.node is None else self.node.name)
        self.operations.append(make(result))
        self.shapes[result] = tuple(made)
        return Made(self._reshaped(result, stripped(shape)), tuple(shape))

    def view(self, value: Value, shape: Sequence[int]) -> Made:
        """Return a value in another shape of the graph, with the same entries in the same order."""
        made = self.made(value)
        return replace(made, name=self._reshaped(made.name, stripped(shape)), shape=tuple(shape))

    def read(self, value: Value, shape: Sequence[int] | None = None) -> str:
        """Return the name of a value that is computed with, in this shape of the program if one is given."""
        made = self.made(value)
        if made.numbers == "cut":
            self.refuse(
                "computes with whole numbers that were cut out of fractions, which a program cannot. Say by dtype= "
                "that the observation is of integers, or cut the fractions off in the environment."
            )
        return self.picks(made, shape)

    def picks(self, value: Value, shape: Sequence[int] | None = None) -> str:
        """Return the name of a value that is not computed with: its fractions may still have to be cut off."""
        made = self.made(value)
        return made.name if shape is None else self._reshaped(made.name, tuple(shape))

    def made(self, value: Value) -> Made:
        """Return a value of the program, made if it is not there yet."""
        if isinstance(value, Made):
            return value
        if isinstance(value, Stacked):
            first = value.parts[0]
            names = tuple(self._reshaped(p.name, (1, *p.shape)) for p in value.parts)
            shape = (len(names), *first.shape)
            return self.add(lambda r: Concat(names, r, 0), shape, shape) if len(names) > 1 else self.view(first, shape)
        if not isinstance(value, Known):
            value = Known(torch.as_tensor(value))
        array = self.array(value)
        shape = tuple(value.tensor.shape)
        array = array.reshape(stripped(shape))
        return self.add(lambda r: Constant(r, array), array.shape, shape)

    def part(self, value: Value, place: int) -> Made:
        """Return one entry along the first dimension, without that dimension."""
        if isinstance(value, Stacked):
            return value.parts[place]
        if isinstance(value, Known):
            return self.made(Known(value.tensor[place], value.roots))
        return self.slice(value, 0, place, place + 1, shape=value.shape[1:])

    def slice(self, value: Made, dim: int, start: int, stop: int, step: int = 1, *, shape: Any = None) -> Made:
        """Return a slice along a dimension of the graph; ``shape`` is what it then has there."""
        length = value.shape[dim]
        count = len(range(start, stop, step))
        kept = (*value.shape[:dim], count, *value.shape[dim + 1 :])
        shape = kept if shape is None else tuple(shape)
        if count == length:
            return self.view(value, shape)
        lead = len(value.shape) - len(stripped(value.shape))
        axis = dim - lead
        sliced = self.add(lambda r: Slice(value.name, r, axis, start, stop, step), kept[lead:], shape)
        return replace(sliced, numbers=value.numbers)

    def axis(self, value: Made, dim: int) -> int | None:
        """Return the program's axis of a dimension of the graph; None for the batch, which is not there."""
        lead = len(value.shape) - len(stripped(value.shape))
        dim = dim % max(len(value.shape), 1)
        return dim - lead if dim >= lead else None

    def array(self, value: Known) -> Floats:
        """Return a known tensor as an array.

        Raises:
            LowerError: It holds NaN.
        """
        array = value.tensor.detach().to(torch.float32).contiguous().numpy()
        if np.isnan(array).any():
            names = ", ".join(sorted(value.roots)) or "constants"
            self.refuse(f"what it computes from {names} holds NaN. Train the agent again, or mend these weights.")
        return array

    def vector(self, value: Value) -> Floats | None:
        """Return a bias or another vector of a layer; None where there is none.

        Raises:
            LowerError: It depends on the observation.
        """
        if value is None:
            return None
        if not isinstance(value, Known):
            self.refuse("a bias or a scale depends on the observation here. Write it as a sum or a product.")
        return self.array(value)

    def matrix(self, value: Known, *, flipped: bool = False) -> Matrix:
        """Return a layer's weight as it is stored, turned over where ``flipped``.

        Raises:
            LowerError: It is computed from parameters that are stored in codes, or not what its codes say.
        """
        flipped = flipped != value.flipped
        key = (value.parameter, flipped) if value.parameter is not None else (id(value.tensor), flipped)
        if key not in self.stored:
            # The tensor is kept beside the matrix: as long as it lives, no other one has its id.
            self.stored[key] = (value.tensor, self._matrix(value, flipped))
        return self.stored[key][1]

    def _matrix(self, value: Known, flipped: bool) -> Matrix:
        tensor = value.tensor.mT if flipped != value.flipped else value.tensor
        array = np.ascontiguousarray(self.array(Known(tensor, value.roots)))
        hidden = sorted(value.roots & set(self.codings))
        if not hidden:
            return plain(array)
        if value.parameter is None:
            self.refuse(
                f"its weight is computed from {hidden[0]!r}, which is stored in codes. Leave that parameter out of "
                "the codings, or fold what computes with it first."
            )
        self.coded.add(value.parameter)
        return with_codes(array, self.codings[value.parameter], value.parameter)

    def input_scale(self, value: Known) -> float | None:
        """Return the scale of a layer's inputs, where they are rounded."""
        coding = None if value.parameter is None else self.codings.get(value.parameter)
        return None if coding is None else coding.input_scale

    def _reshaped(self, source: str, shape: Shape) -> str:
        if self.shapes[source] == shape:
            return source
        result = self.fresh(f"{source}_as_{'x'.join(map(str, shape)) or 'number'}")
        self.operations.append(Reshape(source, result))
        self.shapes[result] = shape
        return result
