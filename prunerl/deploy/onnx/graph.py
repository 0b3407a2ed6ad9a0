"""An ONNX graph that is being written, with the opset that it keeps to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from prunerl.deploy.program import ALLOWED, OBSERVATION, Matrix, Program, Shape
from prunerl.errors import ExportError
from prunerl.types import VERSION

PACKED = 21
"""The first opset with integers of 4 bits."""


@dataclass
class Graph:
    """Nodes and weights so far.

    Attributes:
        opset: Version of the operators; a node that it lacks is refused.
        shapes: Of every value of the program, without the batch.
        masked: The policy takes a mask of allowed actions.
    """

    opset: int
    shapes: Mapping[str, Shape]
    masked: bool
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    where: str = ""

    def node(self, operator: str, *inputs: str, result: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return the output's name.

        Raises:
            ExportError: The opset has no such operator.
        """
        try:
            onnx.defs.get_schema(operator, self.opset)
        except onnx.defs.SchemaError as error:
            first = min(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == operator)
            raise ExportError(
                f"Value {self.where!r} needs the ONNX operator {operator}, which opset {self.opset} does not have. "
                f"Choose opset {first} or a newer one."
            ) from error
        result = result or f"value_{len(self.nodes)}"
        name = f"{self.where}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [result], name, **attributes))
        return result

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(array, dtype), name))
        return name

    def integers(self, codes: NDArray[np.integer[Any]], bits: int) -> str:
        """Add codes as the smallest integers that hold them, and return their name."""
        signed = bool(codes.min() < 0)
        name = f"codes_{len(self.weights)}"
        if bits <= 4 and self.opset >= PACKED:
            kind = TensorProto.INT4 if signed else TensorProto.UINT4
            nibbles = np.append(codes.ravel().astype(np.uint8) & 15, np.zeros(codes.size % 2, np.uint8))
            packed = (nibbles[::2] | nibbles[1::2] << 4).tobytes()
            self.weights.append(helper.make_tensor(name, kind, codes.shape, packed, raw=True))
        else:
            small: Any = (np.int8 if signed else np.uint8) if bits <= 8 else np.int32
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(codes, small), name))
        return name

    def weight(self, matrix: Matrix, *, turned: bool = False) -> str:
        """Add a weight as it is stored, ``turned`` with its dimensions exchanged; return its decoded value's name."""
        if matrix.codes is None:
            return self.constant(matrix.values.T if turned else matrix.values)
        codes = self.integers(matrix.codes.T if turned else matrix.codes, matrix.bits)
        if matrix.codebook is not None:
            places = self.node("Cast", codes, to=TensorProto.INT32)
            return self.node("Gather", self.constant(matrix.codebook), places)
        scale = np.asarray(matrix.scale)
        column = scale if turned else scale.reshape(-1, *(1,) * (matrix.codes.ndim - 1))
        # Not DequantizeLinear: ONNX Runtime joins it with a product, and then rounds the inputs to 8 bits as well.
        return self.node("Mul", self.node("Cast", codes, to=TensorProto.FLOAT), self.constant(column))

    def reshaped(self, name: str, shape: Shape) -> str:
        """Return a value with another shape behind the batch."""
        return self.node("Reshape", name, self.constant((-1, *shape), np.int64))

    def spread(self, array: NDArray[Any]) -> str:
        """Return a constant once for each observation of the batch."""
        count = self.node("Gather", self.node("Shape", OBSERVATION), self.constant([0], np.int64))
        full = self.node("Concat", count, self.constant(array.shape, np.int64), axis=0)
        return self.node("Expand", self.constant(array), full)

    def file(self, program: Program, name: str) -> bytes:
        """Return the whole, checked model."""
        inputs = [_value(OBSERVATION, program.observation_dtype, program.observation_shape)]
        inputs += [_value(ALLOWED, "bool", (program.allowed,))] if program.allowed else []
        inputs += [_value(before, "float32", self.shapes[before]) for before in program.memory]
        outputs = [_value("action", program.action_dtype, program.action_shape)]
        outputs += [_value(f"next_{before}", "float32", self.shapes[before]) for before in program.memory]
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="prunerl",
            producer_version=VERSION,
        )
        helper.set_model_props(model, {"opset": str(self.opset)})
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"ONNX's checker refuses the graph: {error}. Choose another opset.") from error
        return bytes(model.SerializeToString(deterministic=True))


def _value(name: str, dtype: str, shape: Shape) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])
