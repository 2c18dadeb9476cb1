"""Why items stand where they do: what the model saw, and what each cross feature was worth.

A candidate never sees another, so copies of one, each without one of its cross features, may stand
beside it in the same request: one more run tells by how much each score would have changed. Knows
nothing of HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from model_def.batch import Rows, pack
from model_def.rows import columns_from_rows
from model_def.schema import Feature, FeatureSchema, Layout, NumberFeature
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.ranking import Floats, Model, RankedItems, RankRequest

Values = Mapping[str, float | int]


@dataclass(frozen=True)
class Explanation:
    """Of one answer; items in the answer's order."""

    tokens: Mapping[str, int]
    """Tokens of the request by group."""
    profile: Values
    context: Values
    features: tuple[Values, ...]
    """Of each item, as the model saw them: joined and with defaults."""
    neutral: Values
    """What stood in for each cross feature when it was taken out."""
    without: tuple[Mapping[str, float], ...]
    """Score without each cross feature, minus the score, for each item; empty where the model did
    not rank or could not be asked again."""
    why_not: str | None
    """Why `without` is empty."""


async def explain(
    request: RankRequest, ranked: RankedItems, model: Model, deadline: Deadline, most_rows: int
) -> Explanation:
    """Explain an answer before the deadline. `most_rows` are the candidates that one request may
    have: items beyond what that allows have features and no `without`."""
    schema, sample = model.schema, ranked.whole.sample
    layouts = schema.layouts
    answered = sample.candidates[ranked.whole.order]
    neutral = {
        f.name: neutral_value(f, layouts["candidate"], sample.candidates) for f in schema.cross
    }
    copies = 1 + len(neutral)
    items = min(len(answered), most_rows // copies)
    without: tuple[Mapping[str, float], ...] = ()
    why_not = None if ranked.ranked_by == "model" else f"ranked by {ranked.ranked_by}"
    if why_not is None:
        rows = variants(layouts["candidate"], answered[:items], neutral)
        counts = np.array([len(rows)], np.int32)
        batch = pack(schema, replace(sample, candidates=rows, context_candidates=counts))
        try:
            tasks = await model.backend.score(batch, deadline, request.user_id)
        except DependencyFailed as failure:
            why_not = f"{failure.dependency}_{failure.reason}"
        else:
            without = changes(model.formula(tasks).reshape(copies, items), tuple(neutral))
    return Explanation(
        tokens=tokens(schema, ranked),
        profile=values_of(layouts["profile"], sample.profile)[0],
        context=values_of(layouts["context"], sample.context)[0],
        features=values_of(layouts["candidate"], answered),
        neutral=neutral,
        without=without,
        why_not=why_not,
    )


def neutral_value(feature: Feature, layout: Layout, candidates: Rows) -> float | int:
    """What says nothing of one candidate more than of another: the feature's default; without
    one, 0 (unknown) of an id or category, and the median over the request's candidates of a
    number."""
    if feature.default is not None:
        return feature.default
    if not isinstance(feature, NumberFeature):
        return 0
    # NumPy's would import masked arrays at its first use, and every request wait for that.
    return float(median(columns_from_rows(layout, candidates)[feature.name].tolist()))


def variants(layout: Layout, rows: Rows, neutral: Values) -> Rows:
    """`rows` as they are, then once for each of `neutral`, with that feature so."""
    every = np.tile(rows, 1 + len(neutral))
    blocks = every.reshape(1 + len(neutral), len(rows))
    for block, (name, value) in zip(blocks[1:], neutral.items(), strict=True):
        columns_from_rows(layout, block)[name][:] = value
    return every


def changes(scores: Floats, names: tuple[str, ...]) -> tuple[Mapping[str, float], ...]:
    """[1 + features, items] scores -> for each item, by feature, the change without it."""
    table = (scores[1:] - scores[0]).T.tolist()
    return tuple(dict(zip(names, row, strict=True)) for row in table)


def tokens(schema: FeatureSchema, ranked: RankedItems) -> dict[str, int]:
    """Tokens by group of the request as it was ranked."""
    arrays = pack(schema, ranked.whole.sample).arrays
    return {
        "profile": len(schema.profile),
        "lifelong": int(arrays["lifelong_offsets"][-1]),
        "realtime": int(arrays["rt_offsets"][-1]),
        "candidate": int(arrays["candidate_offsets"][-1]),
    }


def values_of(layout: Layout, rows: Rows) -> tuple[Values, ...]:
    """Feature values by name of each row."""
    columns = columns_from_rows(layout, rows)
    names, lists = list(columns), [column.tolist() for column in columns.values()]
    return tuple(dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)) or tuple(
        {} for _ in rows
    )
