"""What was served of each joined exposure, beside its logs: ranks and scores, for comparison.

served.parquet      a directory of files; a row each exposure
    request_id, item_id     whose exposure
    rank                    int32, place in the answer from 0; null if it was not answered
    score, ctr, ctcvr       float, as served; the tasks are null unless the model ranked
    model_version, ranked_by, reason    of the request, see `model_def.served`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model_def.data.attribution import Outcome
from model_def.data.logs import LogError, Logs
from model_def.schema import FeatureSchema
from model_def.served import TASKS, ServedRequest

SERVED = "served.parquet"


@dataclass(frozen=True)
class ServedScores:
    """Of N exposures, in the order of `Requests.candidates`; NaN where none was served."""

    tasks: dict[str, NDArray[np.float32]]
    score: NDArray[np.float32]
    model_version: NDArray[np.str_]


def write_served(
    path: Path,
    served: Sequence[ServedRequest],
    outcomes: Sequence[Outcome],
    schema: FeatureSchema,
) -> None:
    """Write one file, whole."""
    place = schema.item_place
    tables = [_rows(s, o, place) for s, o in zip(served, outcomes, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pq.write_table(pa.concat_tables(tables), partial, compression="zstd")
    partial.replace(path)


def _rows(served: ServedRequest, outcome: Outcome, item_place: int) -> Any:
    shown = np.flatnonzero(outcome.shown)
    rank = np.full(len(outcome.shown), -1, np.int32)
    rank[served.answered] = np.arange(len(served.answered))
    text = {
        name: pa.array([getattr(served, name)] * len(shown), pa.string())
        for name in ("request_id", "model_version", "ranked_by", "reason")
    }
    numbers = {
        task: pa.nulls(len(shown), pa.float32())
        if task not in served.tasks
        else pa.array(served.tasks[task][shown], pa.float32())
        for task in TASKS
    }
    columns = {
        **text,
        "item_id": served.sample.candidates["ids"][shown, item_place],
        "rank": pa.array(rank[shown], mask=rank[shown] < 0),
        "score": pa.array(served.scores[shown], pa.float32()),
        **numbers,
    }
    return pa.table(columns)


def read_served(directory: Path, logs: Logs) -> ServedScores | None:
    """What was served of the exposures that `read_logs` gave; None where nobody wrote it.

    Raises LogError where exposures lack theirs.
    """
    files = sorted((directory / SERVED).glob("*.parquet"))
    if not files:
        return None
    table = pa.concat_tables([pq.read_table(file) for file in files])
    requests = logs.requests
    owner = np.repeat(np.arange(len(requests.request_id)), requests.candidate_counts)
    items = requests.candidates["ids"][:, logs.schema.item_place]
    keys = zip(requests.request_id[owner].tolist(), items.tolist(), strict=True)
    ours = zip(table["request_id"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    rows = {key: row for row, key in enumerate(ours)}
    try:
        order = [rows[key] for key in keys]
    except KeyError as missing:
        raise LogError(f"{directory / SERVED}: lacks the exposure {missing}") from None
    table = table.take(pa.array(order, pa.int64()))

    def numbers(name: str) -> NDArray[np.float32]:
        return np.asarray(table[name].cast(pa.float32()).fill_null(np.nan), np.float32)

    return ServedScores(
        {task: numbers(task) for task in TASKS},
        numbers("score"),
        np.array(table["model_version"].to_pylist(), np.str_),
    )
