"""Freezing for serving: which ids of a trained checkpoint are worth a row, and what that costs.

Rare and stale ids go back to the unknown id's row; optimizer state and metadata stay behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_def.checkpoint import Checkpoint, CheckpointError
from model_def.growing_table import USE
from model_def.id_table import IdTable
from model_def.model import MTGR

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Rule:
    """What an id needs to keep its row; all that is given must hold."""

    share: float | None = None
    """Of a table's ids, the most frequent."""
    min_count: int = 1
    """Occurrences in training."""
    max_age_days: float | None = None
    """Between an id's last occurrence and the newest of its table."""

    def kept(self, uses: NDArray[Any]) -> NDArray[np.bool_]:
        """bool [N]: which ids of a table's metadata (`growing_table.USE`) stay."""
        kept = uses["count"] >= self.min_count
        if self.max_age_days is not None:
            oldest = uses["seen_ms"].max(initial=0) - self.max_age_days * DAY_MS
            kept &= uses["seen_ms"] >= oldest
        if self.share is not None:
            order = np.lexsort((-uses["seen_ms"], -uses["count"]))
            kept[order[round(self.share * len(uses)) :]] = False
        return np.asarray(kept)


@dataclass(frozen=True)
class Size:
    """Rows of a table, the unknown id's included, and its bytes while training and frozen."""

    rows: int
    training_bytes: int
    serving_bytes: int


def prune(checkpoint: Checkpoint, rule: Rule) -> Checkpoint:
    """The checkpoint with the ids that `rule` keeps, their embeddings unchanged, in their order.

    Raises CheckpointError for one without the metadata of its ids: pruned already.
    """
    if missing := set(checkpoint.id_tables) - set(checkpoint.uses):
        raise CheckpointError(
            f"id_uses.npz: lacks {sorted(missing)}; expected a checkpoint of 'mtgr train', not "
            "pruned yet"
        )
    state, tables = dict(checkpoint.model.state_dict()), {}
    for name, table in checkpoint.id_tables.items():
        kept = rule.kept(checkpoint.uses[name])
        tables[name] = IdTable(table.ids[kept])
        rows = torch.from_numpy(np.append(0, 1 + np.flatnonzero(kept)))
        key = f"embeddings.values.{name}"
        state[key] = state[key].index_select(0, rows)
    model = MTGR(checkpoint.config.model, checkpoint.config.features, tables)
    model.load_state_dict(state)
    return replace(checkpoint, model=model, id_tables=tables, uses={})


def sizes(checkpoint: Checkpoint) -> Mapping[str, Size]:
    """Each id table's size: in training three floats a value (Adam's) and metadata a row."""
    found = {}
    for name, table in checkpoint.id_tables.items():
        values = checkpoint.model.embeddings.values[name]
        frozen = table.freeze()
        keys = frozen.keys.nbytes + frozen.rows.nbytes
        floats = values.numel() * values.element_size()
        training = 3 * floats + len(table) * USE.itemsize + keys
        found[name] = Size(len(table), training, floats + keys)
    return found
