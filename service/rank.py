"""The whole story of a ranking request. Knows nothing of HTTP, Redis or any engine.

A validated request and the user's features become one packed batch; a backend scores it; the
scores order the candidates. Whatever fails on the way, the candidates are ranked by what is left.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model_def.batch import Sample, pack
from service.deadline import Deadline, Stages
from service.errors import DependencyFailed, FeaturesStale
from service.ranking import (
    Ages,
    Features,
    Floats,
    Freshness,
    Model,
    RankedItems,
    Ranking,
    RankRequest,
)


async def rank(
    request: RankRequest, model: Model, features: Features, deadline: Deadline, stages: Stages
) -> RankedItems:
    """Rank the candidates before the deadline; raises nothing for a failing dependency, and
    FeaturesStale where the scene would rather not."""
    user = await features.user(request.user_id, request.time_ms, deadline)
    candidates, missing_items = await features.complete(request, deadline)
    ages = user.ages_s(request.time_ms)
    missing = {**too_old(ages, model.freshness), **user.missing, **missing_items}
    stages.mark("features")

    sample = Sample(
        snapshot_ms=user.snapshot_ms,
        profile=user.profile,
        lifelong=user.lifelong,
        realtime=user.realtime,
        context=request.context,
        candidates=candidates,
        context_candidates=np.array([len(candidates)], np.int32),
    )
    batch = pack(model.schema, sample, user.static, user.events)
    stages.mark("pack")

    try:
        tasks = await model.backend.score(batch, deadline, request.user_id)
    except DependencyFailed as failure:
        stages.mark("backend")
        rung, scores = await fall_back(request, model.fallback, features, deadline)
        order = best(scores, request.top_k)
        reason = f"{failure.dependency}_{failure.reason}"
        stages.mark("fallback")
        whole = Ranking(sample, scores, {}, order)
        return RankedItems(
            request.item_ids[order], scores[order], {}, rung, reason, missing, whole, ages
        )
    stages.mark("backend")

    scores = model.formula(tasks)
    order = best(scores, request.top_k)
    stages.mark("order")
    return RankedItems(
        item_ids=request.item_ids[order],
        scores=scores[order],
        tasks={name: values[order] for name, values in tasks.items()},
        ranked_by="model",
        reason=degradation(missing),
        missing=missing,
        whole=Ranking(sample, scores, tasks, order),
        ages_s=ages,
        payload_bytes=batch.payload_bytes,
    )


def too_old(ages: Ages, freshness: Freshness) -> Mapping[str, str]:
    """ "stale" by part for what is older than the scene allows; raises FeaturesStale where its
    policy is to refuse."""
    stale: dict[str, str] = {}
    for age_s, most_s, parts in (
        (ages.snapshot, freshness.snapshot_s, ("profile", "lifelong")),
        (ages.event, freshness.event_s, ("realtime",)),
    ):
        if age_s is not None and most_s is not None and age_s > most_s:
            if freshness.then == "refuse":
                raise FeaturesStale(
                    f"{' and '.join(parts)} are {age_s:.0f} s old, the scene allows {most_s:g}",
                    retry_after_s=1,
                )
            stale |= dict.fromkeys(parts, "stale")
    return stale


async def fall_back(
    request: RankRequest, rungs: tuple[str, ...], features: Features, deadline: Deadline
) -> tuple[str, Floats]:
    """The first rung that knows anything of a candidate, and its scores [K] (NaN: unknown)."""
    for rung in rungs:
        scores = request.recall_scores
        if rung == "popularity":
            scores = await features.popularity(request.item_ids, deadline)
        if scores is not None and not np.isnan(scores).all():
            return rung, scores
    return "input_order", np.full(len(request.item_ids), np.nan)


def best(scores: Floats, top_k: int) -> NDArray[np.int64]:
    """Positions of the top_k scores, best first; equals keep their input order, NaN comes last."""
    keys = -scores  # NaN is sorted behind every number
    if top_k < len(keys):
        parted = keys.copy()
        parted.partition(top_k - 1)
        kept: NDArray[np.int64] = (~(keys > parted[top_k - 1])).nonzero()[0]  # NaN too: not above
        return kept[keys[kept].argsort(kind="stable")][:top_k]
    return keys.argsort(kind="stable")


def degradation(missing: Mapping[str, str]) -> str | None:
    """Why a model's answer is degraded: a part that exists could not be read.

    A part that nobody ever stored is no failure: a new user, an item sent without features.
    """
    return next((f"features_{why}" for why in missing.values() if why != "absent"), None)
