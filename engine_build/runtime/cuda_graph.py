"""Engine kind `cuda-graph`: the model on our CUDA kernels, captured once a shape bucket.

On Hopper it runs as planned in `plan.py`, elsewhere as PyTorch's modules over the same operators.

A batch is staged in page-locked memory, and the graph of the smallest bucket that holds it is
replayed: one launch for the copy to the GPU in one piece, the model, and the copy of the scores
back to page-locked memory. A batch that none holds runs uncaptured, and is counted.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine_build.precision import DTYPES, in_precision
from engine_build.runtime.buckets import Size, holds, layout, size_of, stage, tokens
from engine_build.runtime.engine import Engine, Scores
from engine_build.runtime.manifest import MANIFEST, Manifest, PackageError
from engine_build.runtime.packed import row_counts
from engine_build.runtime.plan import Plan, refusal
from engine_build.runtime.staging import Staging
from engine_build.runtime.tensors import engine_inputs
from engine_build.serving import Serving
from model_def.batch import PackedBatch
from model_def.checkpoint import load as load_checkpoint
from model_def.config import PackageConfig
from model_def.model import MTGR
from model_def.schema import FeatureSchema
from plugins import loader

LOG = logging.getLogger(__name__)
Computation = Callable[[Mapping[str, Tensor]], Tensor]
"""A bucket's arrays on the GPU, by name -> probabilities float32 [tasks, T_c]."""

BUCKETS = "buckets.json"
WARM_UPS = 3
"""Runs before a capture: libraries choose their algorithms and allocate in the first ones."""


class Slot:
    """The static arrays of one bucket: one host buffer, one device buffer, views into both."""

    def __init__(self, schema: FeatureSchema, bucket: Size, device: torch.device):
        places, self.bytes = layout(schema, bucket)
        self._host = torch.zeros(self.bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self.host: NDArray[np.uint8] = self._host.numpy()
        self._device = torch.zeros(self.bytes, dtype=torch.uint8, device=device)
        self._views: dict[str, NDArray[Any]] = {}
        self.arrays: dict[str, Tensor] = {}
        for spec in engine_inputs(schema):
            place = places[spec.name]
            self._views[spec.name] = self.host[place].view(spec.dtype)
            dtype = torch.from_numpy(np.empty(0, spec.dtype)).dtype
            self.arrays[spec.name] = self._device[place].view(dtype)

    def stage(self, batch: PackedBatch) -> None:
        """Copy the batch into the host buffer."""
        stage(batch, self._views)

    def send(self) -> None:
        """Enqueue the one copy to the device, on the current stream."""
        self._device.copy_(self._host, non_blocking=True)


class Captured(NamedTuple):
    """A bucket's graph, from its slot's host buffer to `scores` [tasks, T_c] on the host."""

    slot: Slot
    stage_packed: Staging
    graph: torch.cuda.CUDAGraph
    """Owns what is run."""
    executable: int
    """Its cudaGraphExec_t."""
    scores: NDArray[np.float32]


class CudaGraphEngine:
    """Captured graphs by bucket, sharing one memory pool: one of them runs at a time."""

    kind = "cuda-graph"

    def __init__(
        self,
        compute: Computation,
        tasks: Sequence[str],
        schema: FeatureSchema,
        buckets: tuple[Size, ...],
    ):
        self._device = torch.device("cuda")
        self._compute, self._tasks, self._schema = compute, tasks, schema
        self._stream: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's own
        self._lock = Lock()
        self._pool: Any = torch.cuda.graph_pool_handle()
        self.uncaptured_runs = 0
        """Batches that no bucket held."""
        # The largest first: the others then fit in the memory that it took from the pool.
        largest_first = sorted(buckets, key=tokens, reverse=True)
        self._graphs = {bucket: self._capture(bucket) for bucket in largest_first}
        self._smallest_first = largest_first[::-1]

    @torch.inference_mode()
    def run(self, batch: PackedBatch) -> Scores:
        """Scores of the batch, of any size that the GPU's memory holds."""
        size = size_of(batch)
        bucket = self._fitting(size)
        with self._lock:
            if bucket is None:
                return self._uncaptured(batch, size)
            captured = self._graphs[bucket]
            captured.slot.stage(batch)
            return self._replayed(captured, size)

    def run_packed(self, requests: Sequence[NDArray[np.uint8]]) -> Scores | None:
        """Scores of requests as they came (see `packed.py`), in order. None where they are for
        `run`: one may be malformed, and it says what of it, or no bucket holds them."""
        counts = [row_counts(request) for request in requests]
        size = Size(len(requests), *map(sum, zip(*counts, strict=True)))
        schema, bucket = self._schema, self._fitting(size)
        if bucket is None or any(
            lifelong > schema.lifelong_cap or realtime > schema.realtime_cap
            for lifelong, realtime, _ in counts
        ):
            return None
        captured = self._graphs[bucket]
        with self._lock:
            return self._replayed(captured, size) if captured.stage_packed(requests) else None

    def _fitting(self, size: Size) -> Size | None:
        """`buckets.fitting`, at the price of the buckets that are too small."""
        return next((b for b in self._smallest_first if holds(b, size)), None)

    def _replayed(self, captured: Captured, size: Size) -> Scores:
        """Of what is staged."""
        _kernels().replay(captured.executable, self._stream.cuda_stream)
        return self._scores(captured.scores, size)

    def _uncaptured(self, batch: PackedBatch, size: Size) -> Scores:
        self.uncaptured_runs += 1
        with torch.cuda.stream(self._stream):
            slot = Slot(self._schema, size, self._device)
            slot.stage(batch)
            slot.send()
            return self._scores(self._compute(slot.arrays).cpu().numpy(), size)

    def _scores(self, scores: NDArray[np.float32], size: Size) -> Scores:
        return Scores(dict(zip(self._tasks, scores[:, : size.candidates].copy(), strict=True)))

    @torch.inference_mode()
    def _capture(self, bucket: Size) -> Captured:
        slot = Slot(self._schema, bucket, self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                result = self._compute(slot.arrays)
            scores = torch.empty_like(result, device="cpu", pin_memory=True)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # "thread_local": another engine may be serving from another thread meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            slot.send()
            scores.copy_(self._compute(slot.arrays), non_blocking=True)
        stage_packed = Staging(_kernels().stage, self._schema, bucket, slot.host)
        executable = graph.raw_cuda_graph_exec()
        return Captured(slot, stage_packed, graph, executable, scores.numpy())


def computation(model: MTGR, precision: str, device: torch.device) -> Computation:
    """The model's serving pass in 16 bits: planned where the GPU is of the kind, else PyTorch's.

    `model` is in float32, and on any device. Raises loader.LibraryError without the kernels.
    """
    library, dtype = _kernels(), DTYPES[precision]
    reason = refusal(model, dtype, device)
    if reason is None:
        return Plan(model, dtype, library, device)
    LOG.warning("cuda-graph: runs PyTorch's modules, not the plan: %s", reason)
    serving = Serving(in_precision(model, precision)).to(device).eval()
    return lambda arrays: torch.stack(serving(arrays))


@cache
def _kernels() -> loader.Library:
    """Once a process: the operators are the process's."""
    return loader.register()


def load(directory: Path, config: PackageConfig, threads: int) -> Engine:
    """The engine of a package's `cuda-graph` folder, from the checkpoint beside it.

    Raises PackageError without a GPU or its kernels. `threads` are the host's: it uses the
    caller's only.
    """
    if not torch.cuda.is_available():
        raise PackageError(f"{directory}: PyTorch {torch.__version__} finds no NVIDIA GPU here")
    manifest = Manifest.read(directory / MANIFEST)
    saved = json.loads((directory / BUCKETS).read_text())
    buckets = tuple(Size(**bucket) for bucket in saved["buckets"])
    model = load_checkpoint(directory.parent).model
    try:
        compute = computation(model, manifest.precision, torch.device("cuda"))
    except loader.LibraryError as error:
        raise PackageError(f"cuda-graph: {error}") from error
    return CudaGraphEngine(compute, config.model.tasks, config.features, buckets)
