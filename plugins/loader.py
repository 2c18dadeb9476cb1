"""Runs the custom ops of namespace `mtgr` with the CUDA kernels of `libmtgr_ops.so`.

`register()` opens the plain C library and makes its launchers the "cuda" implementations of the
already defined operators. It knows the C ABI (`include/mtgr_ops.h`) and the operators' signatures,
and nothing of the model. A missing or outdated library is an error here, never a slower path later.
"""

import ctypes
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plugins.abi import (
    ABI_VERSION,
    INT,
    LONG,
    POINTER,
    AttentionArgs,
    AttentionMemory,
    NormArgs,
    Rows,
)

LIBRARY = "libmtgr_ops.so"
BUILD_COMMAND = "cmake -S plugins -B build/plugins && cmake --build build/plugins"
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class LibraryError(RuntimeError):
    """The kernel library is missing, or not the one that this loader knows."""


class KernelError(RuntimeError):
    """CUDA refused a launch."""


@dataclass
class Counters:
    """Zeroed counters, one slot for everything that may run at the same time as the rest.

    A slot belongs to a stream or, while a graph is captured, to that capture: the graph may be
    replayed on any stream. Slots are added outside of captures only, where memory may be zeroed.
    """

    slot_bytes: int
    free: list[Tensor] = field(default_factory=list)
    taken: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def slot(self, capture: int, stream: int, device: torch.device) -> Tensor:
        if not capture and len(self.free) < 64:
            pool = torch.zeros(512, self.slot_bytes, dtype=torch.uint8, device=device)
            torch.cuda.synchronize(device)
            self.free.extend(pool)
        key = (capture, stream)
        if key not in self.taken:
            if not self.free:
                raise KernelError("hstu_attention: call it once before capturing a graph")
            self.taken[key] = self.free.pop()
        return self.taken[key]


class Library:
    """The launchers of one opened library, as the operators' CUDA implementations."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise LibraryError(f"{path}: no such file; build it with: {BUILD_COMMAND}")
        self._c = ctypes.CDLL(str(path))
        self._c.mtgr_last_error.restype = ctypes.c_char_p
        version = self._c.mtgr_abi_version()
        if version != ABI_VERSION:
            raise LibraryError(
                f"{path}: ABI version {version}, expected {ABI_VERSION}; rebuild it with: "
                f"{BUILD_COMMAND}"
            )
        self._counters: dict[torch.device, Counters] = {}
        self.stage = stage_function(self._c)
        self._replay = self._c.mtgr_replay
        self._replay.argtypes = [POINTER, POINTER]

    def hstu_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        static_offsets: Tensor,
        rt_offsets: Tensor,
        candidate_offsets: Tensor,
        rt_visible: Tensor,
        candidate_visible: Tensor,
        alpha: float,
        inv_n: float,
        first_query_segment: int = 0,
    ) -> Tensor:
        """See the operator: [T_q, H, D] x [T, H_kv, D] -> [T_q, H, D], fp16 or bf16."""
        rt_rows, candidate_rows = len(rt_visible), len(candidate_visible)
        static_rows = len(k) - rt_rows - candidate_rows
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        args = AttentionArgs(
            _dtype("q", q),
            q.shape[2],
            q.shape[1],
            k.shape[1],
            len(static_offsets) - 1,
            static_rows,
            rt_rows,
            candidate_rows,
            first_query_segment,
            alpha,
            inv_n,
            _rows(q),
            _rows(k[:static_rows]),
            _rows(v[:static_rows]),
            _rows(k[static_rows:]),
            _rows(v[static_rows:]),
            out.data_ptr(),
            static_offsets.data_ptr(),
            rt_offsets.data_ptr(),
            candidate_offsets.data_ptr(),
            rt_visible.data_ptr(),
            candidate_visible.data_ptr(),
        )
        with torch.cuda.device(q.device):
            memory = AttentionMemory()
            self._check(
                self._c.mtgr_attention_memory_needed(ctypes.byref(args), ctypes.byref(memory))
            )
            stream = _stream(q)
            partials = torch.empty(memory.partials, dtype=torch.uint8, device=q.device)
            counters = self._counter_slot(memory.counters, stream, q.device)
            self._check(
                self._c.mtgr_attention(
                    ctypes.byref(args), _pointer(partials), _pointer(counters), POINTER(stream)
                )
            )
        return out

    def group_layer_norm(
        self, x: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        """See the operator: [T, d] -> [T, d]; weight and bias in x's dtype or float32."""
        return self._norm(x, None, group, weight, bias, eps)

    def gated_group_layer_norm(
        self, x: Tensor, gate: Tensor, group: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        """See the operator: the norm of x * gate."""
        return self._norm(x, gate, group, weight, bias, eps)

    def id_lookup(self, ids: Tensor, keys: Tensor, rows: Tensor, max_probe: int) -> Tensor:
        """See the operator: int64 [N] -> int32 [N]."""
        out = torch.empty(ids.shape, dtype=torch.int32, device=ids.device)
        ids, keys, rows = ids.contiguous(), keys.contiguous(), rows.contiguous()
        self.launch(
            "mtgr_id_lookup",
            ids,
            _pointer(ids),
            INT(len(ids)),
            _pointer(keys),
            _pointer(rows),
            LONG(len(keys)),
            INT(max_probe),
            _pointer(out),
        )
        return out

    def _norm(
        self,
        x: Tensor,
        gate: Tensor | None,
        group: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        if weight.dtype != bias.dtype:
            raise ValueError(f"bias: expected weight's {weight.dtype}, got {bias.dtype}")
        for name, tensor in (("x", x), ("gate", gate)):
            if tensor is not None and tensor.stride(1) != 1:
                raise ValueError(f"{name}: expected a contiguous last dimension")
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        group, weight, bias = group.contiguous(), weight.contiguous(), bias.contiguous()
        args = NormArgs(
            _dtype("x", x),
            _dtype("weight", weight),
            x.shape[0],
            x.shape[1],
            weight.shape[0],
            eps,
            x.data_ptr(),
            None if gate is None else gate.data_ptr(),
            x.stride(0),
            0 if gate is None else gate.stride(0),
            group.data_ptr(),
            weight.data_ptr(),
            bias.data_ptr(),
            out.data_ptr(),
        )
        self.launch("mtgr_group_layer_norm", x, ctypes.byref(args))
        return out

    def _counter_slot(self, size: int, stream: int, device: torch.device) -> Tensor | None:
        if size == 0:
            return None
        capture = ctypes.c_uint64()
        self._check(self._c.mtgr_capture_id(POINTER(stream), ctypes.byref(capture)))
        counters = self._counters.setdefault(device, Counters(size))
        return counters.slot(capture.value, stream, device)

    def launch(self, name: str, where: Tensor, *arguments: Any) -> None:
        """Call a launcher whose last argument is the stream: the current one of `where`'s device.

        Raises ValueError with the launcher's message, or KernelError if CUDA refuses.
        """
        with torch.cuda.device(where.device):
            self._check(getattr(self._c, name)(*arguments, POINTER(_stream(where))))

    def replay(self, graph: int, stream: int) -> None:
        """Run a captured graph (cudaGraphExec_t) on a stream (cudaStream_t), and wait for it.

        PyTorch's own replay runs on the current stream: making one current, and back, is ten calls
        of Python's. Raises KernelError if CUDA refuses.
        """
        self._check(self._replay(graph, stream))

    def _check(self, status: int) -> None:
        if status == 0:
            return
        message = self._c.mtgr_last_error().decode()
        raise ValueError(message) if status == 1 else KernelError(message)


def stage_function(library: ctypes.CDLL) -> Any:
    """`mtgr_stage`, which runs on the host. Arrays go by their addresses."""
    function = library.mtgr_stage
    function.argtypes = [POINTER, INT, POINTER, INT, POINTER, POINTER]
    return function


def default_path() -> Path:
    """`MTGR_OPS_LIBRARY` if set, else the file in build/plugins beside this checkout's plugins/."""
    built = Path(__file__).resolve().parents[1] / "build" / "plugins" / LIBRARY
    return Path(os.environ.get("MTGR_OPS_LIBRARY", built))


def register(path: Path | None = None) -> Library:
    """Make the kernels the CUDA implementations of the `mtgr` operators, which must exist already.

    Raises:
        LibraryError: the file is missing or of another ABI version.
    """
    library = Library(path or default_path())
    for name in ("hstu_attention", "group_layer_norm", "gated_group_layer_norm", "id_lookup"):
        torch.library.register_kernel(f"mtgr::{name}", "cuda", getattr(library, name))
    return library


def _dtype(name: str, tensor: Tensor) -> int:
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name}: {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    return DTYPES[tensor.dtype]


def _rows(view: Tensor) -> Rows:
    return Rows(view.data_ptr(), view.stride(0), view.stride(1))


def _pointer(tensor: Tensor | None) -> Any:
    return POINTER(None if tensor is None else tensor.data_ptr())


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)
