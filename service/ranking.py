"""What a request's story is told with: its nouns, and the seams to the feature store and the
backends. Knows nothing of HTTP, Redis or any engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from model_def.batch import Events, PackedBatch, Rows, Sample, Static
from model_def.config import ScoreFormula
from model_def.schema import FeatureSchema
from service.deadline import Deadline

Floats = NDArray[np.floating]


class RankRequest(Struct, frozen=True):
    """A request that has passed every check: K candidates for one user at one time."""

    request_id: str
    user_id: str
    time_ms: int
    top_k: int
    item_ids: NDArray[np.int64]
    candidates: Rows
    """[K] of the schema's `candidate` layout."""
    context: Rows
    """[1] of the `context` layout, carrying the request's time."""
    recall_scores: Floats | None = None
    """[K], NaN where the caller gave none."""
    absent: Mapping[str, NDArray[np.bool_]] = {}
    """Item features that the caller left out: for each, the rows [K] without it."""


class Ages(NamedTuple):
    """Of what is known of a user, in seconds; None where there is nothing."""

    snapshot: float | None
    event: float | None


class UserFeatures(Struct, frozen=True):
    """What the store knows of a user; an unknown user has defaults and empty sequences."""

    stored_ms: int | None
    """When the profile and the lifelong sequence were written; None where there are none."""
    event_ms: int | None
    """The last real-time event; None where there is none."""
    snapshot_ms: int
    profile: Rows
    lifelong: Rows
    realtime: Rows
    static: Static | None = None
    """Profile and lifelong sequence as they are packed, if they have been."""
    events: Events | None = None
    """The real-time sequence likewise."""
    missing: Mapping[str, str] = {}
    """Reason by part (profile, lifelong, realtime) for each part that could not be had."""

    def ages_s(self, time_ms: int) -> "Ages":
        """How old this is at a time."""
        stored_ms, event_ms = self.stored_ms, self.event_ms
        return Ages(
            None if stored_ms is None else (time_ms - stored_ms) / 1e3,
            None if event_ms is None else (time_ms - event_ms) / 1e3,
        )


class Features(Protocol):
    """The feature store, as ranking sees it: it never fails, it says what is missing."""

    async def user(self, user_id: str, time_ms: int, deadline: Deadline) -> UserFeatures:
        """The user's profile and sequences."""

    async def complete(
        self, request: RankRequest, deadline: Deadline
    ) -> tuple[Rows, Mapping[str, str]]:
        """Candidate rows with the features in `request.absent` filled in, and what is missing."""

    async def popularity(self, item_ids: NDArray[np.int64], deadline: Deadline) -> Floats:
        """[K] popularity, NaN where it is unknown."""


@dataclass(frozen=True)
class Run:
    """A run of an engine that several requests shared."""

    requests: tuple[PackedBatch, ...]
    position: int
    """Of the request among them."""
    tasks: Mapping[str, Floats]
    """Probability [T_c] by task of all of them, in order."""
    bucket: Mapping[str, int] | None = None
    """Rows by segment that the batch was padded to, where it was."""


class Shared(dict[str, Floats]):
    """Probability [K] by task of a request that shared its run with others."""

    def __init__(self, tasks: Mapping[str, Floats], run: Run):
        super().__init__(tasks)
        self.run = run


class Backend(Protocol):
    """Whatever turns a batch into probabilities, in this process or beyond a network."""

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """Probability [T_c] by task; raises DependencyFailed. Where there are several servers,
        `user_id` picks the one. Where it batches, it gives `Shared`: what was run together may
        have to be run again together."""


class Freshness(Protocol):
    """How old a user's features may be."""

    @property
    def snapshot_s(self) -> float | None: ...
    @property
    def event_s(self) -> float | None: ...
    @property
    def then(self) -> Literal["mark", "refuse"]: ...


class Model(Struct, frozen=True):
    """How one scene is ranked: which backend over which schema, and what to do without it."""

    version: str
    schema: FeatureSchema
    backend: Backend
    formula: ScoreFormula
    fallback: tuple[str, ...]
    freshness: Freshness


class Ranking(Struct, frozen=True):
    """What an answer was made of, all candidates in the request's order: the request log's."""

    sample: Sample
    scores: Floats
    """[K] what they were ordered by; NaN where nothing is known of an item."""
    tasks: Mapping[str, Floats]
    """Probability [K] by task; empty unless the model ranked."""
    order: NDArray[np.int64]
    """Positions of the answered candidates, best first."""


class RankedItems(Struct, frozen=True):
    """The answer, best first: at most top_k items."""

    item_ids: NDArray[np.int64]
    scores: Floats
    """What they were ordered by; NaN where nothing is known of an item."""
    tasks: Mapping[str, Floats]
    """Probability by task; empty unless the model ranked."""
    ranked_by: str
    reason: str | None
    """Why the answer is degraded; None when it is not."""
    missing: Mapping[str, str]
    whole: Ranking
    ages_s: Ages
    payload_bytes: int = 0
