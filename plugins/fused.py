"""Launches that no operator has, for a model whose kernels are planned once: fused products,
tokens and task scores.

Like the operators of `loader.py` they enqueue on the current stream, take CUDA tensors, and raise
ValueError naming the argument that does not fit. They need a GPU of compute capability 9.0.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plugins import abi
from plugins.loader import DTYPES, Library

SOURCE_DTYPES = {
    torch.int64: 0,
    torch.int32: 1,
    torch.uint8: 2,
    torch.float32: 3,
    torch.float16: 4,
}


@dataclass(frozen=True)
class Product:
    """x weight^T + bias into `out`, row i of it to row out_rows[i] or i; see `products`.

    x [rows, depth], weight [columns, depth], residual [rows, columns]: fp16 or bf16; bias
    [columns]: float32; out_rows: int32 [rows]. `out` is x's dtype or float32. Last dimensions are
    contiguous, rows and addresses multiples of 16 bytes.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    out: Tensor
    residual: Tensor | None = None
    out_rows: Tensor | None = None

    def args(self) -> abi.LinearArgs:
        """As C takes it; raises for shapes and dtypes that contradict each other."""
        (rows, depth), columns = self.x.shape, len(self.weight)
        expected = {
            "weight": (self.weight, (columns, depth), self.x.dtype),
            "bias": (self.bias, (columns,), torch.float32),
            "residual": (self.residual, (rows, columns), self.x.dtype),
            "out_rows": (self.out_rows, (rows,), torch.int32),
        }
        for name, (tensor, shape, dtype) in expected.items():
            if tensor is None:
                continue
            if tensor.shape != shape or tensor.dtype != dtype or tensor.stride(-1) != 1:
                got = f"{tensor.dtype} {list(tensor.shape)}"
                raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {got}")
        if self.out.shape[1] != columns or (self.out_rows is None and len(self.out) != rows):
            raise ValueError(f"out: expected [{rows}, {columns}], got {list(self.out.shape)}")
        if self.x.stride(1) != 1 or self.out.stride(1) != 1 or not self.weight.is_contiguous():
            raise ValueError("x, weight, out: expected contiguous rows")
        return abi.LinearArgs(
            rows,
            columns,
            depth,
            DTYPES.get(self.out.dtype, -1),
            self.x.data_ptr(),
            self.weight.data_ptr(),
            self.bias.data_ptr(),
            None if self.residual is None else self.residual.data_ptr(),
            None if self.out_rows is None else self.out_rows.data_ptr(),
            self.out.data_ptr(),
            self.x.stride(0),
            0 if self.residual is None else self.residual.stride(0),
            self.out.stride(0),
        )


def products(library: Library, *problems: Product, silu: bool = False) -> None:
    """Up to four products in one launch, none of which reads what another writes.

    Each result y is stored as silu(y), or as y + residual where all have one, or as it is.
    """
    args = (abi.LinearArgs * len(problems))(*(problem.args() for problem in problems))
    x, residual = problems[0].x, problems[0].residual is not None
    dtype, epilogue = abi.INT(DTYPES.get(x.dtype, -1)), abi.INT(1 if silu else 2 * residual)
    library.launch("mtgr_linear", x, dtype, epilogue, args, abi.INT(len(problems)))


def on_device(structs: Sequence[ctypes.Structure], device: torch.device) -> Tensor:
    """Descriptors as bytes in device memory."""
    raw = b"".join(map(bytes, structs))
    return torch.frombuffer(bytearray(raw or b"\0"), dtype=torch.uint8).to(device)


@dataclass(frozen=True)
class Descriptors:
    """What of a segment's features never changes: `abi.Vector`, `abi.Number` and `abi.Table`
    arrays on the device."""

    vectors: int
    vector: Tensor
    numbers: Tensor
    tables: Tensor


@dataclass(frozen=True)
class Features:
    """One segment of a batch. `sources`: (array or None, values a row, a row a request?)."""

    descriptors: Descriptors
    sources: Sequence[tuple[Tensor | None, int, bool]]
    offsets: Tensor
    tokens: int
    out: Tensor

    def args(self) -> abi.Features:
        """As C takes it."""
        absent = abi.Source(None, 0, 0, 0)
        made = [
            absent if a is None else abi.Source(a.data_ptr(), SOURCE_DTYPES[a.dtype], width, one)
            for a, width, one in self.sources
        ]
        made += [absent] * (abi.SOURCES - len(made))
        of, vectors = self.descriptors, self.descriptors.vectors
        if self.out.shape[1] != 8 * vectors or not self.out.is_contiguous():
            raise ValueError(f"out: expected {8 * vectors} columns, got {list(self.out.shape)}")
        return abi.Features(
            len(self.out),
            self.tokens,
            vectors,
            len(self.offsets) - 1,
            of.vector.data_ptr(),
            of.numbers.data_ptr(),
            of.tables.data_ptr(),
            self.offsets.data_ptr(),
            (abi.Source * abi.SOURCES)(*made),
            self.out.data_ptr(),
        )


@dataclass(frozen=True)
class Frame:
    """Inputs and int32 outputs of `mtgr_frame` (see the header)."""

    profile_tokens: int
    groups: tuple[int, int, int, int]
    lifelong_rows: int
    lifelong_offsets: Tensor
    rt_visible: Tensor
    candidate_visible: Tensor
    static_offsets: Tensor = field(init=False)
    static_rows: Tensor = field(init=False)
    group: Tensor = field(init=False)
    rt_visible_out: Tensor = field(init=False)
    candidate_visible_out: Tensor = field(init=False)

    def __post_init__(self) -> None:
        requests = len(self.lifelong_offsets) - 1
        static = requests * self.profile_tokens + self.lifelong_rows
        recent = len(self.rt_visible), len(self.candidate_visible)
        for name, size in (
            ("static_offsets", requests + 1),
            ("static_rows", static),
            ("group", static + sum(recent)),
            ("rt_visible_out", recent[0]),
            ("candidate_visible_out", recent[1]),
        ):
            made = self.lifelong_offsets.new_empty(size)
            object.__setattr__(self, name, made)

    def args(self) -> abi.Frame:
        """As C takes it."""
        rows = (self.lifelong_rows, len(self.rt_visible), len(self.candidate_visible))
        return abi.Frame(
            len(self.lifelong_offsets) - 1,
            self.profile_tokens,
            (abi.INT * 3)(*rows),
            (abi.INT * 4)(*self.groups),
            SOURCE_DTYPES[self.rt_visible.dtype],
            self.lifelong_offsets.data_ptr(),
            self.rt_visible.data_ptr(),
            self.candidate_visible.data_ptr(),
            self.static_offsets.data_ptr(),
            self.static_rows.data_ptr(),
            self.group.data_ptr(),
            self.rt_visible_out.data_ptr(),
            self.candidate_visible_out.data_ptr(),
        )


def tokens(
    library: Library, dtype: torch.dtype, segments: Sequence[Features], frame: Frame
) -> None:
    """Fill the segments' `out` and the frame's outputs, in one launch."""
    args = (abi.Features * len(segments))(*(segment.args() for segment in segments))
    count, c_dtype = abi.INT(len(segments)), abi.INT(DTYPES.get(dtype, -1))
    where = frame.lifelong_offsets
    library.launch("mtgr_tokens", where, c_dtype, args, count, ctypes.byref(frame.args()))


def task_scores(library: Library, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """hidden [rows, tasks * width], weight [tasks, width], bias [tasks], float32 ->
    sigmoid(hidden . weight + bias): [tasks, rows]."""
    (tasks, width), rows = weight.shape, len(hidden)
    out = hidden.new_empty(tasks, rows)
    pointers = (t.data_ptr() for t in (hidden, weight, bias, out))
    args = abi.ScoresArgs(rows, tasks, width, *pointers)
    library.launch("mtgr_task_scores", hidden, ctypes.byref(args))
    return out
