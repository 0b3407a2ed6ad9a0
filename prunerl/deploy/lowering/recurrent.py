"""Rules for recurrent layers, one operation for each layer and step, and for cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunerl.deploy.lowering.lowering import Lowering
from prunerl.deploy.lowering.values import Made, Rule, Stacked, Value
from prunerl.deploy.lowering.views import joined
from prunerl.deploy.program import Floats, Matrix, Recurrent


@dataclass(frozen=True, eq=False)
class _Layer:
    """One direction of one layer."""

    kind: Any
    inner: Matrix
    outer: Matrix
    inner_bias: Floats | None
    outer_bias: Floats | None

    def step(self, to: Lowering, x: Made, memory: Sequence[Made]) -> tuple[Made, ...]:
        """Add one time step: from input and memory, shape (1, numbers), to the next memory."""
        units = self.outer.values.shape[1]
        source = to.read(x, (self.inner.values.shape[1],))
        before = tuple(to.read(m, (units,)) for m in memory)
        stem = "value" if to.node is None else to.node.name
        following = []
        for part in ("hidden", "cell")[: len(before)]:
            following.append(to.fresh(f"{stem}_{part}"))
            to.shapes[following[-1]] = (units,)
        to.operations.append(
            Recurrent(
                source, before, tuple(following), self.kind, self.inner, self.outer, self.inner_bias, self.outer_bias
            )
        )
        return tuple(Made(name, (1, units)) for name in following)


def _layer(to: Lowering, kind: str, tensors: Sequence[Value]) -> _Layer:
    inner, outer, *biases = tensors
    if any(to.input_scale(w) is not None for w in (inner, outer)):
        to.refuse("inputs of recurrent layers are not rounded. Leave input_scale out of their codings.")
    pair = [to.vector(b) for b in biases] or [None, None]
    return _Layer(kind, to.matrix(inner), to.matrix(outer), pair[0], pair[1])


def recurrent(
    to: Lowering, x: Value, memory: Value, weights: Sequence[Value], biases: bool, layers: int, dropout: float,
    train: bool, both: bool, batch_first: bool,
) -> Value:  # fmt: skip
    """Rule for LSTM, GRU and plain recurrent layers over a sequence."""
    if train and dropout > 0:
        to.refuse("drops units at random. Put the network into evaluation mode: module.eval().")
    each, directions = (4 if biases else 2), (2 if both else 1)
    if len(weights) != each * directions * layers:
        to.refuse("projects its outputs, which a program cannot. Use proj_size=0 and a linear layer after it.")
    starts = list(memory) if isinstance(memory, list | tuple) else [memory]
    values, ends = _steps(to, to.made(x), batch_first), [[] for _ in starts]  # type: list[Made], list[list[Made]]
    for place in range(layers):
        outputs: list[list[Made]] = []
        for direction in range(directions):
            index = place * directions + direction
            own = _layer(to, to.operator, weights[index * each : (index + 1) * each])
            now: Sequence[Made] = [to.part(start, index) for start in starts]
            made: list[Made] = []
            for value in reversed(values) if direction else values:
                now = own.step(to, value, now)
                made.append(now[0])
            outputs.append(made[::-1] if direction else made)
            for end, value in zip(ends, now, strict=True):
                end.append(value)
        values = outputs[0] if not both else [joined(to, pair, 1) for pair in zip(*outputs, strict=True)]
    # Unbatched sequences have no dimension of the batch in their memory either.
    stacks = [Stacked(tuple(to.view(v, shape[1:]) for v in end)) for end, shape in zip(ends, to.outs[1:], strict=True)]
    return (to.view(joined(to, values, 0), to.outs[0]), *stacks)


def _steps(to: Lowering, x: Made, batch_first: bool) -> list[Made]:
    """Return the steps of a sequence, shape (1, inputs) each."""
    if len(x.shape) == 3 and x.shape[0 if batch_first else 1] != 1:
        to.refuse("runs over several sequences at once, which a program cannot. Let it run over one.")
    length, width = (x.shape[1] if len(x.shape) == 3 and batch_first else x.shape[0]), x.shape[-1]
    flat = to.view(x, (length, width))
    return [to.slice(flat, 0, step, step + 1) for step in range(length)]


def lstm_cell(to: Lowering, x: Value, memory: Sequence[Value], *weights: Value) -> Value:
    """Rule for one step of an LSTM."""
    own = _layer(to, "lstm", [w for w in weights if w is not None])
    return own.step(to, to.made(x), [to.made(m) for m in memory])


def cell(to: Lowering, x: Value, memory: Value, *weights: Value) -> Value:
    """Rule for one step of a GRU or a plain recurrent layer."""
    own = _layer(to, to.operator.removesuffix("_cell"), [w for w in weights if w is not None])
    return own.step(to, to.made(x), [to.made(memory)])[0]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent),
    "lstm_cell": lstm_cell,
    **dict.fromkeys(("gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), cell),
}
