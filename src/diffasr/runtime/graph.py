"""One computation as an ONNX graph, written node by node; weights stay in the checkpoint's file.

A matrix that is stored in int8 is multiplied in int8: a row of what comes in is cut to whole numbers by a scale of its
own, so the product is a sum of whole numbers, exact, and what is lost is lost in rounding (arXiv:2206.01861 section
4.1: a scale a token, a scale a row of weight). Other matrices are multiplied in float32.
"""

import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from diffasr.runtime.weights import Weights

_OPSET, _IR = 21, 10
_FOLDER = "session.model_external_initializers_file_folder_path"
_SPINNING = "session.intra_op.allow_spinning"
_MICROSOFT = "com.microsoft"
Shape = Sequence[int | str]
FULL, HALF = 127, 63
"""Whole numbers from -127 to 127, and from -63 to 63: two products of the larger ones and a weight overflow 16 bits."""


def reach() -> int:
    """What whole numbers may go up to on this machine.

    Kernels for x86 without VNNI add up pairs of products in 16 bits and cut off what is larger.
    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "When to use S8S8 or U8U8".
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return FULL
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system: it may have VNNI, but who knows
        return HALF
    return FULL if re.search(r"\bavx(512)?_vnni\b", known) else HALF


class Graph:
    """Values are named by strings; a method that makes one gives its name."""

    def __init__(self, weights: Weights, *, reach: int = FULL) -> None:
        """reach: the whole number that a row's largest value becomes."""
        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._stored: dict[str, str] = {}
        self._shared: dict[tuple[str, bytes], str] = {}
        self._reach = reach
        self._count = 0

    def input(self, name: str, shape: Shape, *, kind: int = TensorProto.FLOAT) -> str:
        """What comes in; a text in ``shape`` stands for any size."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, name: str, value: str, *, kind: int = TensorProto.FLOAT) -> None:
        """What goes out, under ``name``."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, kind, None))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One value of one operator."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """Several values of one operator."""
        names = [self._name() for _ in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def constant(self, value: NDArray[Any] | float | Sequence[int]) -> str:
        """A number or an array that belongs to the graph; numbers are float32, sequences int64."""
        array = np.asarray(value, np.float32) if isinstance(value, float) else np.asarray(value)
        key = f"{array.dtype} {array.shape}", array.tobytes()
        if key not in self._shared:
            self._shared[key] = self._name()
            self._constants.append(numpy_helper.from_array(array, self._shared[key]))
        return self._shared[key]

    def stored(self, name: str) -> str:
        """A tensor of the file, as it lies there."""
        if name not in self._stored:
            place = self._weights.place(name)
            tensor = TensorProto(name=name, dims=place.shape, data_location=TensorProto.EXTERNAL)
            tensor.data_type = helper.np_dtype_to_tensor_dtype(place.numbers)
            for key, value in (("location", self._weights.path.name), ("offset", place.start), ("length", place.size)):
                tensor.external_data.add(key=key, value=str(value))
            self._constants.append(tensor)
            self._stored[name] = name
        return name

    def floats(self, name: str) -> str:
        """A small tensor of the file in float32."""
        return self.constant(self._weights.floats(name))

    def linear(self, x: str, *names: str) -> str:
        """(n, K) to (n, N): the layers ``names`` of one input, their outputs behind one another."""
        parts = [self._matrix(name) for name in names]
        matrix = parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)
        bias = np.concatenate([self._bias(name) for name in names])
        if self._is_int8(names[0]):
            scale = np.concatenate([self._weights.floats(f"{name}.weight.scale") for name in names])
            return self.int8_product(x, matrix, scale, bias)
        out = self.op("MatMul", x, matrix)
        return self.op("Add", out, self.constant(bias)) if bias.any() else out

    def int8_product(self, x: str, matrix: str, scale: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        """(n, K) float32 times (K, N) int8, each column with its ``scale``."""
        largest = self.op("ReduceMax", self.op("Abs", x), self.constant([-1]), keepdims=0)  # (n,)
        unit = self.op("Max", self.op("Mul", largest, self.constant(1 / self._reach)), self.constant(1e-20))
        middle = np.array([self._reach + 1], np.uint8)  # what 0 becomes: kernels are quickest without a sign
        zeros = self.op("Expand", self.constant(middle), self.op("Shape", unit))
        codes = self.op("QuantizeLinear", x, unit, zeros, axis=0)
        product = self.op(
            "MatMulIntegerToFloat", codes, matrix, self.constant(1.0), self.constant(scale),
            self.constant(middle[0]), domain=_MICROSOFT,
        )  # fmt: skip
        out = self.op("Mul", product, self.op("Unsqueeze", unit, self.constant([-1])))
        return self.op("Add", out, self.constant(bias)) if bias.any() else out

    def scores(self, x: str, table: str, rows: Sequence[int] | None) -> str:
        """(n, D) to the product with each row of a table, (n, V), or with some of its ``rows`` (C,), (n, C)."""
        if rows is None:
            return self.linear(x, table)
        chosen = self._weights.read(f"{table}.weight")[np.asarray(rows)]  # (C, D)
        if not self._is_int8(table):
            return self.op("MatMul", x, self.constant(chosen.astype(np.float32).T))
        scale = self._weights.floats(f"{table}.weight.scale")[np.asarray(rows)]
        return self.int8_product(x, self.constant(chosen.T), scale, np.zeros(len(scale), np.float32))

    def norm(self, x: str, name: str) -> str:
        """A layer norm."""
        return self.op("LayerNormalization", x, self.floats(f"{name}.weight"), self.floats(f"{name}.bias"), axis=-1)

    def gelu(self, x: str) -> str:
        """The exact one."""
        return self.op("Gelu", x, domain=_MICROSOFT)

    def convolution(self, x: str, name: str, *, stride: int) -> str:
        """(T, C) to (ceil(T / stride), N), with zeros at the ends, as one product: of a frame with its neighbours."""
        kernel = self._weights.place(f"{name}.weight").shape[2]
        side = kernel // 2
        size = self.op("Shape", x, start=0, end=1)
        padded = self.op("Pad", x, self.constant([side, 0, side, 0]))
        parts = []
        for start in range(kernel):
            end = self.op("Add", size, self.constant([start]))
            parts.append(self.op("Slice", padded, self.constant([start]), end, self.constant([0]),
                                 self.constant([stride])))  # fmt: skip
        return self.linear(self.op("Concat", *parts, axis=1), name)

    def split(self, x: str, heads: int) -> str:
        """(T, D) to (1, H, T, D / H)."""
        apart = self.op("Reshape", self.op("Unsqueeze", x, self.constant([0])), self.constant([0, 0, heads, -1]))
        return self.op("Transpose", apart, perm=[0, 2, 1, 3])

    def attention(self, queries: str, keys: str, values: str, *, heads: int, added: str = "") -> str:
        """(n, D) to the same. keys, values: (T, D), or (1, H, T, D / H) if they are ``speech``. added: to the scores,
        (1, 1, n, T)."""
        rows = [part if part.startswith("speech.") else self.op("Unsqueeze", part, self.constant([0]))
                for part in (queries, keys, values)]  # fmt: skip
        more = ["", "", added] if added else []
        heard = self.op("MultiHeadAttention", *rows, *more, domain=_MICROSOFT, num_heads=heads)
        return self.op("Squeeze", heard, self.constant([0]))

    def session(self, *, threads: int) -> onnxruntime.InferenceSession:
        """The graph, ready to run."""
        graph = helper.make_graph(self._nodes, "diffasr", self._inputs, self._outputs, self._constants)
        sets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=sets, ir_version=_IR)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # what a long clip needed would be kept, rounded up, by each session
        options.log_severity_level = 3
        options.add_session_config_entry(_SPINNING, "0")  # one graph's threads would wait on another's cores
        options.add_session_config_entry(_FOLDER, str(self._weights.path.parent))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _name(self) -> str:
        self._count += 1
        return f"value {self._count}"

    def _is_int8(self, name: str) -> bool:
        return self._weights.place(f"{name}.weight").kind == "I8"

    def _matrix(self, name: str) -> str:
        """Of a layer or a convolution, (K, N)."""
        full = f"{name}.weight"
        kind, shape = self._weights.place(full).kind, self._weights.place(full).shape
        stored = self.stored(full)
        if kind == "F16":
            stored = self.op("Cast", stored, to=TensorProto.FLOAT)
        if len(shape) == 2:
            return self.op("Transpose", stored, perm=[1, 0])
        turned = self.op("Transpose", stored, perm=[2, 1, 0])  # (kernel, C, N)
        return self.op("Reshape", turned, self.constant([-1, shape[0]]))

    def _bias(self, name: str) -> NDArray[np.float32]:
        full = f"{name}.bias"
        if full in self._weights:
            return self._weights.floats(full)
        return np.zeros(self._weights.place(f"{name}.weight").shape[0], np.float32)
