"""A TFLite graph that is being written, as the tables of its schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from prunerl.deploy.program import Matrix, Shape
from prunerl.errors import ExportError

TYPES = {
    "float32": schema.TensorType.FLOAT32, "float64": schema.TensorType.FLOAT32, "float16": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8, "int16": schema.TensorType.INT16, "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64, "uint8": schema.TensorType.UINT8, "bool": schema.TensorType.BOOL,
}  # fmt: skip
"""NumPy name of a type → that of a tensor. LiteRT computes in float32, so other floats are taken as such."""

ARITHMETIC = {
    "ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT, "DIV": schema.DivOptionsT,
    "MAXIMUM": schema.MaximumMinimumOptionsT, "MINIMUM": schema.MaximumMinimumOptionsT, "POW": schema.PowOptionsT,
}  # fmt: skip

ALIGNED = 16
"""Bytes to which the runtime wants weights aligned."""


class _Buffer(schema.BufferT):  # type: ignore[misc]
    """A buffer that is written aligned, which the schema's own class does not do."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        data = bytes(self.data or b"")
        builder.StartVector(1, len(data), ALIGNED)
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


@dataclass
class Graph:
    """Tensors and operators so far; a tensor is named by its number. Every value has a batch of one in front.

    Attributes:
        shapes: Of every value of the program, without the batch.
        masked: The policy takes a mask of allowed actions.
    """

    shapes: Mapping[str, Shape]
    masked: bool
    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    operators: list[Any] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    def tensor(self, shape: Shape, dtype: str = "float32", name: str = "") -> int:
        """Add a tensor without contents and return its number."""
        return self._tensor(shape, TYPES[dtype], 0, name)

    def constant(self, array: Any, dtype: str = "float32") -> int:
        """Add a constant and return its number."""
        numbers = np.array(array, dtype)
        return self._tensor(numbers.shape, TYPES[dtype], self._buffer(numbers.tobytes()))

    def _tensor(self, shape: Shape, kind: int, buffer: int, name: str = "", quantization: Any = None) -> int:
        name = name or f"tensor_{len(self.tensors)}"
        sizes = np.array(shape, np.int32)
        self.tensors.append(
            schema.TensorT(
                sizes, kind, buffer, name.encode(), quantization or schema.QuantizationParametersT(), hasRank=True
            )
        )
        return len(self.tensors) - 1

    def _buffer(self, data: bytes) -> int:
        made = _Buffer()
        made.data = data
        self.buffers.append(made)
        return len(self.buffers) - 1

    def operator(
        self, kind: str, inputs: list[int], shape: Shape, dtype: str = "float32", options: Any = None, name: str = ""
    ) -> int:
        """Add an operator with one output of that whole shape, and return the output's number."""
        result = self.tensor(shape, dtype, name)
        code = getattr(schema.BuiltinOperator, kind)
        if code not in self.codes:
            self.codes.append(code)
        made = schema.OperatorT(self.codes.index(code), np.array(inputs, np.int32), np.array([result], np.int32))
        if options is not None:
            made.builtinOptions = options
            made.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(made)
        return result

    def binary(self, kind: str, left: int, right: int) -> int:
        """Add arithmetic of two tensors, entry by entry, and return the result's number."""
        shape = np.broadcast_shapes(self.shape_of(left), self.shape_of(right))
        return self.operator(kind, [left, right], shape, options=ARITHMETIC[kind]())

    def weight(self, matrix: Matrix, order: tuple[int, ...] | None = None) -> int:
        """Add a weight as it is stored, its dimensions in another order; return its decoded value's number."""
        turn = (lambda x: x) if order is None else (lambda x: np.ascontiguousarray(x.transpose(order)))
        if matrix.codes is None:
            return self.constant(turn(matrix.values))
        codes: NDArray[Any] = turn(matrix.codes)
        if matrix.codebook is not None:
            places = self.constant(codes, "uint8" if matrix.bits <= 8 else "int32")
            return self.operator(
                "GATHER", [self.constant(matrix.codebook), self.cast(places, codes.shape, "int32")], codes.shape
            )
        if matrix.bits > 8:
            column = np.asarray(matrix.scale).reshape(-1, *(1,) * (codes.ndim - 1))
            whole = self.cast(self.constant(codes, "int32"), codes.shape, "float32")
            return self.binary("MUL", whole, self.constant(column))
        return self.operator(
            "DEQUANTIZE", [self._integers(codes, matrix)], codes.shape, options=schema.DequantizeOptionsT()
        )

    def _integers(self, codes: NDArray[Any], matrix: Matrix) -> int:
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.asarray(matrix.scale, np.float32)
        quantization.zeroPoint = np.zeros(len(codes), np.int64)
        quantization.quantizedDimension = 0
        if matrix.bits > 4:
            return self._tensor(
                codes.shape, TYPES["int8"], self._buffer(codes.astype(np.int8).tobytes()), quantization=quantization
            )
        nibbles = np.append(codes.ravel().astype(np.uint8) & 15, np.zeros(codes.size % 2, np.uint8))
        packed = (nibbles[::2] | nibbles[1::2] << 4).tobytes()
        return self._tensor(codes.shape, schema.TensorType.INT4, self._buffer(packed), quantization=quantization)

    def cast(self, source: int, shape: Shape, dtype: str, name: str = "") -> int:
        """Return a tensor's numbers in another type."""
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = self.tensors[source].type, TYPES[dtype]
        return self.operator("CAST", [source], shape, dtype, options, name)

    def reshaped(self, source: int, shape: Shape, dtype: str = "float32", name: str = "") -> int:
        """Return a tensor with another whole shape."""
        return self.operator("RESHAPE", [source, self.constant(shape, "int32")], shape, dtype, None, name)

    def turned(self, source: int, axes: tuple[int, ...]) -> int:
        """Return a tensor with its dimensions in another order."""
        shape = tuple(int(n) for n in self.tensors[source].shape)
        made = tuple(shape[axis] for axis in axes)
        return self.operator("TRANSPOSE", [source, self.constant(axes, "int32")], made)

    def shape_of(self, tensor: int) -> Shape:
        """Return a tensor's whole shape."""
        return tuple(int(n) for n in self.tensors[tensor].shape)

    def file(self, inputs: Mapping[str, int], outputs: Mapping[str, int], signature: str) -> bytes:
        """Return the whole model."""
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs = np.array(list(inputs.values()), np.int32)
        graph.outputs = np.array(list(outputs.values()), np.int32)
        graph.name = b"policy"
        model = schema.ModelT()
        model.version, model.description = 3, b"prunerl"
        model.operatorCodes = [_code(code) for code in self.codes]
        model.subgraphs, model.buffers = [graph], self.buffers
        model.signatureDefs = [_signature(inputs, outputs, signature)]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _code(code: int) -> Any:
    made = schema.OperatorCodeT()
    # Readers from before there were more than 127 operators look at the first of these.
    made.deprecatedBuiltinCode, made.builtinCode, made.version = min(code, 127), code, 1
    return made


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int], key: str) -> Any:
    def named(tensors: Mapping[str, int]) -> list[Any]:
        maps = []
        for name, tensor in tensors.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), tensor
            maps.append(entry)
        return maps

    made = schema.SignatureDefT()
    made.inputs, made.outputs = named(inputs), named(outputs)
    made.signatureKey, made.subgraphIndex = key.encode(), 0
    return made


def refuse(name: str, what: str) -> ExportError:
    """Build the error for a value that LiteRT cannot compute."""
    return ExportError(f"Value {name!r}: LiteRT has no form of {what}. Choose another format, such as .onnx.")
