"""A user's own tables of interactions -> training logs, by a mapping file.

An occasion (a basket) becomes a request: its items are the positives, sampled negatives the rest,
cross features come from the past alone. There is no exposure log behind such tables, so there is
one label: click, meaning chosen.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from model_def.data.cross_features import DAY_MS, PastFeatures
from model_def.data.encoding import Vocabulary
from model_def.data.import_schema import build_schema
from model_def.data.logs import UNLABELLED, Events, LogError, Logs, Requests, Snapshots
from model_def.data.mapping import (
    Mapping,
    MappingError,
    Negatives,
    PastNumber,
    milliseconds,
    read_mapping,
)
from model_def.data.occasions import draw_negatives, find_occasions
from model_def.data.parquet import LogWriter, read_schema
from model_def.data.rejects import Rejects
from model_def.data.source_columns import Features, Integers, read_tables
from model_def.rows import rows_from_columns
from model_def.schema import FeatureSchema

VOCABULARY, REJECTS = "vocabulary.json", "rejects.csv"

CHUNK = 512
"""Requests whose candidates are computed at once."""

BIN_SAMPLE = 4096
"""Requests whose candidates the number bins are learned from."""


class Importer:
    """One import. `like` is an earlier one's log directory, whose codes and bins are kept."""

    def __init__(self, mapping: Mapping, source: Path, like: Path | None = None):
        self.mapping, self.rejects = mapping, Rejects()
        self.words = Vocabulary.read(like / VOCABULARY) if like else Vocabulary()
        self._tables = read_tables(mapping, source, self.words, self.rejects)
        rows = self._rows = self._tables.interactions
        self._past = PastFeatures(
            rows.time_ms, self._keys(rows.user, rows.item, rows.context), rows.sums
        )
        self._from_ms = milliseconds(mapping.requests_from)
        self._period_ms = mapping.snapshot_days * DAY_MS
        self._occasions, new = find_occasions(rows, self._from_ms, mapping.negatives.new_items)
        self._tables.table.note(rows.table_row[new], "positive: an item that nobody chose before")
        self._start = np.concatenate([[0], np.cumsum(self._occasions.counts)])
        self._static = self._find_snapshots()
        self.schema = read_schema(like) if like else self._learn_schema()

    def __len__(self) -> int:
        """Requests."""
        return len(self._occasions.first)

    def snapshots(self) -> Snapshots:
        """Every user's static part at the start of each period in which they have a request."""
        user, at = self._static
        rows, tables = self._rows, self._tables
        order = np.argsort(rows.user, kind="stable")  # by user, then time
        span = int(rows.time_ms.max(initial=0)) + 2
        places = rows.user[order] * span + rows.time_ms[order]
        low = np.searchsorted(places, user * span)
        high = np.searchsorted(places, user * span + np.minimum(at, span - 2), side="right")
        counts = np.minimum(high - low, self.mapping.lifelong_cap)
        taken = order[_ranges(high - counts, counts)]
        return Snapshots(
            tables.user_id[user],
            at,
            rows_from_columns(self.schema.layouts["profile"], self._profile(user, at), len(user)),
            rows_from_columns(
                self.schema.layouts["lifelong"],
                self._behaviour(taken),
                len(taken),
                {"time_ms": rows.time_ms[taken]},
            ),
            counts.astype(np.int32),
        )

    def events(self) -> Events:
        """Every interaction, as a behaviour event."""
        everything = np.arange(len(self._rows.user))
        stamps = {"time_ms": self._rows.time_ms, "event_id": everything}
        layout = self.schema.layouts["realtime"]
        rows = rows_from_columns(layout, self._behaviour(everything), len(everything), stamps)
        return Events(self._tables.user_id[self._rows.user], rows)

    def requests(self) -> Iterator[Requests]:
        """All requests in time order, some at a time."""
        for low in range(0, len(self), CHUNK):
            which = np.arange(low, min(low + CHUNK, len(self)))
            yield self._requests(which, self.mapping.negatives)

    def logs(self) -> Logs:
        """Everything at once."""
        return Logs(self.schema, self.snapshots(), self.events(), _joined(self.requests()))

    def redrawn(self, seed: int, before_ms: int) -> Requests:
        """The requests before a time, with negatives drawn anew: for another epoch, say."""
        negatives = self.mapping.negatives.model_copy(update={"seed": seed})
        early = np.flatnonzero(self._rows.time_ms[self._occasions.first] < before_ms)
        parts = np.array_split(early, range(CHUNK, len(early), CHUNK))
        return _joined(self._requests(which, negatives) for which in parts)

    def _requests(self, which: Integers, negatives: Negatives) -> Requests:
        first = self._occasions.first[which]
        item, counts, chosen = self._candidates(which, negatives)
        owner = np.repeat(first, counts)
        columns = {"item_id": self._tables.item_id[item], **_take(self._tables.items, item)}
        columns |= self._cross(owner, item)
        layouts, rows = self.schema.layouts, self._rows
        return Requests(
            self._occasions.request_id[which],
            self._tables.user_id[rows.user[first]],
            np.full(len(which), self.mapping.scene),
            rows_from_columns(
                layouts["context"],
                _take(rows.context, first),
                len(which),
                {"time_ms": rows.time_ms[first]},
            ),
            rows_from_columns(layouts["candidate"], columns, len(item)),
            counts.astype(np.int32),
            chosen.astype(np.int8),
            np.full(len(item), UNLABELLED, np.int8),
        )

    def _candidates(
        self, which: Integers, negatives: Negatives
    ) -> tuple[Integers, Integers, Integers]:
        """Items, how many a request has, and whether each was chosen; by item, not by label."""
        rows, occasions = self._rows, self._occasions
        listed: list[tuple[int, bool]] = []
        counts = []
        for i in which.tolist():
            basket = slice(self._start[i], self._start[i + 1])
            items, first = occasions.items[basket].tolist(), occasions.first[i]
            past = int(np.searchsorted(rows.time_ms, rows.time_ms[first]))
            drawn = draw_negatives(rows, str(occasions.request_id[i]), past, {*items}, negatives)
            positives = np.array(items)[occasions.positive[basket]].tolist()
            request = [*((item, True) for item in positives), *((item, False) for item in drawn)]
            listed += sorted(request)
            counts.append(len(request))
        pairs = np.array(listed, np.int64).reshape(-1, 2)
        return pairs[:, 0], np.array(counts, np.int64), pairs[:, 1]

    def _cross(self, owner: Integers, item: Integers) -> Features:
        """Cross features of candidates `item` of requests that begin at interactions `owner`."""
        rows = self._rows
        keys = self._keys(rows.user[owner], item, _take(rows.context, owner))
        return self._past.evaluate(self.mapping.cross, keys, rows.time_ms[owner])

    def _profile(self, user: Integers, at: Integers) -> Features:
        pasts = {n: s for n, s in self.mapping.profile.items() if isinstance(s, PastNumber)}
        # What happened at the snapshot's own time belongs to it, hence one ms later.
        past = self._past.evaluate(pasts, {"user": user}, at + 1)
        return _take(self._tables.profile, user) | past

    def _behaviour(self, which: Integers) -> Features:
        item = self._rows.item[which]
        columns = {"item_id": self._tables.item_id[item], **_take(self._tables.items, item)}
        return columns | _take(self._rows.event, which)

    def _keys(self, user: Integers, item: Integers, context: Features) -> Features:
        item_keys = {"item_id": item, **_take(self._tables.items, item)}
        return {"user": user} | item_keys | context

    def _find_snapshots(self) -> tuple[Integers, Integers]:
        """Users and times of the snapshots that the requests need.

        A period's snapshot is taken 1 ms before it begins, so that a request at its very start
        has none of its own time in it.
        """
        first = self._occasions.first
        period = (self._rows.time_ms[first] - self._from_ms) // self._period_ms
        user, period = np.unique(np.stack([self._rows.user[first], period]), axis=1)
        return user, self._from_ms + period * self._period_ms - 1

    def _learn_schema(self) -> FeatureSchema:
        """The schema, its number bins learned from requests and snapshots of the training time."""
        until, user_at = milliseconds(self.mapping.train_until), self._static
        early = np.flatnonzero(self._rows.time_ms[self._occasions.first] < until)
        if not len(early):
            raise MappingError(f"train_until: no request between requests_from and {until} ms")
        which = early[:: -(-len(early) // BIN_SAMPLE)]
        item, counts, _ = self._candidates(which, self.mapping.negatives)
        cross = self._cross(np.repeat(self._occasions.first[which], counts), item)
        known = user_at[1] < until
        profile = self._profile(user_at[0][known], user_at[1][known])
        behaviour = self._behaviour(np.flatnonzero(self._rows.time_ms < until))
        return build_schema(self.mapping, self.words, profile, behaviour, cross)

    def write(self, directory: Path) -> None:
        """Write the logs, their vocabulary and the rejected rows."""
        with LogWriter(directory, self.schema) as writer:
            writer.write(self.snapshots())
            writer.write(self.events())
            with tqdm(total=len(self), unit="request", disable=None) as progress:
                for part in self.requests():
                    writer.write(part)
                    progress.update(len(part.request_id))
        self.words.write(directory / VOCABULARY)
        self.rejects.write(directory / REJECTS)


def _joined(parts: Iterable[Requests]) -> Requests:
    columns = zip(*([getattr(p, f.name) for f in fields(Requests)] for p in parts), strict=True)
    return Requests(*(np.concatenate(column) for column in columns))


def _take(features: Features, which: Integers) -> Features:
    return {name: values[which] for name, values in features.items()}


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """starts[0], starts[0] + 1, ... counts[0] of them; then those of starts[1]; and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + counts, counts)


@click.command("import")
@click.argument("mapping", type=click.Path(path_type=Path))
@click.option("--source", type=click.Path(path_type=Path), required=True, help="Tables' folder.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Log directory.")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="An earlier import's log directory, whose category codes and number bins are kept.",
)
def import_(mapping: Path, source: Path, out: Path, like: Path | None) -> None:
    """Turn your own tables into training logs, as the file MAPPING says."""
    try:
        imported = Importer(read_mapping(mapping), source, like)
    except (MappingError, LogError) as error:
        raise click.ClickException(str(error)) from error
    imported.write(out)
    click.echo(f"{len(imported)} requests -> {out}")
    for (file, reason), rows in sorted(imported.rejects.counts.items()):
        click.echo(f"{rows} rows of {file} not used: {reason} (see {out / REJECTS})")
