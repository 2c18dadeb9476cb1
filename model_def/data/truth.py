"""The true probabilities behind simulated logs, beside them: what the best ranker would say.

truth.parquet   a row each exposure, in the order of exposures.parquet
    request_id, item_id     whose exposure
    ctr, ctcvr              true probabilities, float64
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_def.data.logs import LogError, Logs
from model_def.data.simulator import Floats

FILE = "truth.parquet"


def write_truth(directory: Path, logs: Logs, truth: Floats) -> None:
    """Write `truth` [N, 2], true CTR and CTCVR of each exposure."""
    request, item = _exposures(logs)
    columns = {"request_id": request, "item_id": item, "ctr": truth[:, 0], "ctcvr": truth[:, 1]}
    pq.write_table(pa.table(columns), directory / FILE, compression="zstd")


def read_truth(directory: Path, logs: Logs) -> Floats | None:
    """The truth [N, 2] of the exposures that `read_logs` gave; None where logs are not simulated.

    Raises LogError when it is not that of these exposures.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    table = pq.read_table(path)
    request, item = _exposures(logs)
    if not (
        table.column("request_id").combine_chunks().equals(request)
        and np.array_equal(table.column("item_id"), item)
    ):
        raise LogError(f"{path}: is not of the exposures beside it; delete it or simulate again")
    return np.stack([np.asarray(table.column(task)) for task in ("ctr", "ctcvr")], 1)


def _exposures(logs: Logs) -> tuple[pa.Array, Floats]:
    """request_id and item_id of every exposure."""
    requests = logs.requests
    owner = np.repeat(np.arange(len(requests.request_id)), requests.candidate_counts)
    names = pa.array(requests.request_id.tolist(), pa.string()).take(pa.array(owner))
    return names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names, (
        requests.candidates["ids"][:, logs.schema.item_place]
    )
