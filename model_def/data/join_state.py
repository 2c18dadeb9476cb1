"""What `mtgr join` remembers between runs, beside the logs it makes.

    join/state.json              State, replaced whole at the end of a run
    join/labels-<run>.parquet    labels whose requests are still open
    join/rejects-<run>.csv       rows that run set aside

A run that is killed before its state is replaced runs again: it writes the same part anew.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from model_def.data.attribution import Label
from model_def.data.logs import LogError
from model_def.data.served_scores import SERVED
from model_def.schema import Frozen

LABELS = pa.schema(
    [
        ("time_ms", pa.int64()),
        ("request_id", pa.string()),
        ("item_id", pa.int64()),
        ("action", pa.string()),
    ]
)


class State(Frozen):
    """How far the join has come."""

    runs: int = 0
    parts: int = 0
    request_files: dict[str, int | None] = Field(default_factory=dict)
    """Requests of a file before this time are joined; None: all of them are."""
    label_files: tuple[str, ...] = ()
    """Files whose labels are used, or wait."""


class StateStore:
    """The state of one directory of joined logs."""

    def __init__(self, out: Path):
        self._out, self._directory = out, out / "join"

    def read(self) -> tuple[State, list[Label]]:
        """The last run's state, and the labels that wait; raises LogError."""
        path = self._directory / "state.json"
        if not path.is_file():
            if (self._out / "schema.json").exists():
                raise LogError(f"{self._out}: holds logs that 'mtgr join' did not make")
            self.write(State(), [])
        try:
            state = State.model_validate_json(path.read_text())
            rows = pq.read_table(self._labels(state.runs)).to_pylist()
        except (OSError, ValueError) as error:
            raise LogError(
                f"{path}: not a join's state ({error}); join into a new directory"
            ) from error
        return state, [Label(**row) for row in rows]

    def write(self, state: State, waiting: Sequence[Label]) -> None:
        """Replace the state, whole."""
        self._directory.mkdir(parents=True, exist_ok=True)
        columns = {name: [getattr(w, name) for w in waiting] for name in Label._fields}
        pq.write_table(pa.table(columns, LABELS), self._labels(state.runs), compression="zstd")
        partial = self._directory / "state.json.partial"
        partial.write_text(state.model_dump_json(indent=1) + "\n")
        partial.replace(self._directory / "state.json")
        self._labels(state.runs - 1).unlink(missing_ok=True)

    def rejects(self, run: int) -> Path:
        """Where a run lists what it set aside."""
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory / f"rejects-{run:06d}.csv"

    def joined(self, request_ids: Sequence[str], parts: int) -> set[str]:
        """Those of the requests that the first `parts` of the logs hold already."""
        wanted = pa.array(request_ids, pa.string())
        found: set[str] = set()
        for part in range(1, parts + 1):
            path = self._out / SERVED / f"{part_name(part)}.parquet"
            ids = pq.read_table(path, columns=["request_id"])["request_id"]
            found |= set(ids.filter(pc.is_in(ids, wanted)).unique().to_pylist())
        return found

    def _labels(self, run: int) -> Path:
        return self._directory / f"labels-{run:06d}.parquet"


def part_name(part: int) -> str:
    """Of the files of a part, counted from 1."""
    return f"part-{part:06d}"
