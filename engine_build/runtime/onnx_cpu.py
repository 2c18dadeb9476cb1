"""Engine kind `onnx-cpu`: ONNX Runtime on the CPU, in float32, on any machine."""

from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from engine_build.runtime.engine import Engine, Scores
from engine_build.runtime.host_embeddings import HostEmbeddings
from engine_build.runtime.manifest import PackageError
from model_def.batch import PackedBatch
from model_def.config import PackageConfig

MODEL = "model.onnx"


class OnnxCpuEngine:
    """An ONNX Runtime session; inputs are the batch's arrays by name, outputs the tasks.

    With `embeddings`, ids and categories become vectors before they reach it.

    It keeps the memory that its largest batch needed: returning it after each run costs a fifth
    of the time.
    """

    kind = "onnx-cpu"

    def __init__(self, model: Path, threads: int, embeddings: HostEmbeddings | None = None):
        self._embeddings = embeddings
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between requests would take the cores of the process that serves.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except (states.Fail, states.InvalidGraph, states.InvalidProtobuf) as error:
            raise PackageError(
                f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}"
            ) from error
        self._inputs = [given.name for given in self._session.get_inputs()]
        self._tasks = [output.name for output in self._session.get_outputs()]

    def run(self, batch: PackedBatch) -> Scores:
        """Scores of the batch; see `engine_build.runtime.engine`."""
        given = self._embeddings(batch) if self._embeddings else batch.arrays
        arrays = {name: given[name] for name in self._inputs}
        outputs = self._session.run(self._tasks, arrays)
        return Scores(dict(zip(self._tasks, outputs, strict=True)))


def load(directory: Path, config: PackageConfig, threads: int) -> Engine:
    """The engine of a package's `onnx-cpu` folder."""
    on_host = config.model.embedding_source == "host"
    embeddings = HostEmbeddings(directory, config.features) if on_host else None
    return OnnxCpuEngine(directory / MODEL, threads, embeddings)
