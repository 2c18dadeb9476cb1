"""Engine kind `tensorrt` in this process: one copy to the GPU, one run, one copy back.

Needs TensorRT and cuda-python, and the GPU and TensorRT that the plan was built for.
"""

from pathlib import Path
from threading import Lock

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cudart

from engine_build.runtime.cuda import Buffer, check, device_name
from engine_build.runtime.engine import Engine, EngineError, Scores
from engine_build.runtime.manifest import MANIFEST, Limits, Manifest, PackageError
from engine_build.runtime.tensors import OFFSET_ROWS, offset_input_name, offset_source
from model_def.batch import ALIGNMENT, PackedBatch
from model_def.config import PackageConfig

PLAN, PLUGINS = "model.plan", "libmtgr_tensorrt.so"


class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT ships no type information
    """Keeps TensorRT's errors, for the message of ours; drops the rest."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any thread."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self._errors.append(msg)

    def errors(self) -> str:
        """What went wrong so far."""
        return "; ".join(self._errors) or "it gives no reason"


class TensorRtEngine:
    """A plan with one execution context a profile; the smallest profile that fits a batch runs."""

    kind = "tensorrt"

    def __init__(self, directory: Path, config: PackageConfig, manifest: Manifest):
        limits = manifest.limits
        assert limits is not None  # the builder always writes them
        self._schema, self._tasks, self._limits = config.features, config.model.tasks, limits
        self._log, self._lock = Log(), Lock()
        self._runtime = trt.Runtime(self._log)
        library = directory / PLUGINS
        if self._runtime.get_plugin_registry().load_library(str(library)) is None:
            raise PackageError(f"{library}: TensorRT cannot load it: {self._log.errors()}")
        self._engine = self._runtime.deserialize_cuda_engine((directory / PLAN).read_bytes())
        if self._engine is None:
            raise PackageError(
                f"{directory / PLAN}: TensorRT cannot read it here: {self._log.errors()}; "
                "build the engine again on this machine"
            )
        self._stream = int(check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)))
        profiles = range(self._engine.num_optimization_profiles)
        self._contexts = [self._context(profile) for profile in profiles]
        self._inputs = Buffer(self._input_bytes(limits))
        self._outputs = Buffer(4 * limits.candidates * len(self._tasks))

    def run(self, batch: PackedBatch) -> Scores:
        """Scores of the batch; raises EngineError for one beyond the manifest's limits."""
        candidates = len(batch.arrays["candidate_visible"])
        with self._lock:
            context = self._fitting(batch)
            for task, address in self._task_addresses(candidates).items():
                context.set_tensor_address(task, address)
            size = self._stage(batch, context)
            self._inputs.to_device(size, self._stream)
            if not context.execute_async_v3(self._stream):
                raise EngineError(f"tensorrt: the run failed: {self._log.errors()}")
            self._outputs.to_host(4 * candidates * len(self._tasks), self._stream)
            check(cudart.cudaStreamSynchronize(self._stream))
            flat = self._outputs.host.view(np.float32)[: candidates * len(self._tasks)].copy()
        return Scores(dict(zip(self._tasks, flat.reshape(-1, candidates), strict=True)))

    def _context(self, profile: int) -> trt.IExecutionContext:
        context = self._engine.create_execution_context()
        context.set_optimization_profile_async(profile, self._stream)
        return context

    def _fitting(self, batch: PackedBatch) -> trt.IExecutionContext:
        """The context of the last profile, largest first, whose ranges hold the batch."""
        for profile in reversed(range(len(self._contexts))):
            ranges = {
                name: self._engine.get_tensor_profile_shape(name, profile)
                for name in ("candidate_visible", "candidate_offsets", "rt_visible")
            }
            lifelong = self._engine.get_tensor_profile_shape("lifelong_numbers", profile)
            ranges["lifelong_numbers"] = lifelong
            if all(len(batch.arrays[n]) <= high[0] for n, (_, _, high) in ranges.items()):
                return self._contexts[profile]
        raise EngineError(
            f"tensorrt: a batch of {batch.requests} requests and {batch.candidates} candidates "
            f"exceeds the engine's limits, {self._limits}; split it, or build with larger ones"
        )

    def _stage(self, batch: PackedBatch, context: trt.IExecutionContext) -> int:
        """Put the batch's one buffer, and the element counts, in page-locked memory; returns the
        bytes to copy."""
        end = batch.buffer.nbytes
        self._inputs.host[:end] = batch.buffer
        base = batch.buffer.ctypes.data
        for name, array in batch.arrays.items():
            if name == "context_candidates":
                continue
            offset = array.ctypes.data - base
            if name in OFFSET_ROWS:
                width = offset_source(self._schema, name).width
                if width > 1:
                    counts = (array * width).astype(np.int32).view(np.uint8)
                    self._inputs.host[end : end + counts.nbytes] = counts
                    offset, end = end, end + -(-counts.nbytes // ALIGNMENT) * ALIGNMENT
                name = offset_input_name(self._schema, name)
            context.set_input_shape(name, (len(array),))
            context.set_tensor_address(name, self._inputs.device + offset)
        return end

    def _task_addresses(self, candidates: int) -> dict[str, int]:
        return {
            task: self._outputs.device + 4 * candidates * number
            for number, task in enumerate(self._tasks)
        }

    def _input_bytes(self, limits: Limits) -> int:
        rows = {
            "profile": limits.requests,
            "context": limits.requests,
            "lifelong": limits.lifelong,
            "realtime": limits.realtime,
            "candidate": limits.candidates,
            "offset": 2 * (limits.requests + 1),  # and as element counts
        }
        return sum(
            rows[spec.rows] * spec.width * spec.dtype.itemsize + 2 * ALIGNMENT
            for spec in self._schema.arrays
        )


def load(directory: Path, config: PackageConfig, threads: int) -> Engine:
    """The engine of a package's `tensorrt` folder; raises PackageError for one built for another
    GPU or TensorRT, saying which. `threads` are the host's: it uses the caller's only."""
    manifest = Manifest.read(directory / MANIFEST)
    here = {"tensorrt": trt.__version__, "gpu": device_name()}
    for name, found in here.items():
        built = manifest.builders[name]
        if built != found:
            raise PackageError(
                f"{directory}: built for {name} {built}, found {found} here; build it again with "
                "'mtgr build --kind tensorrt' on a machine like this one"
            )
    return TensorRtEngine(directory, config, manifest)
