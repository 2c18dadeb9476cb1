"""Trains an MTGR on packed samples: binary cross-entropy of each labelled task, Adam.

Deterministic: the same samples, options and number of threads give the same weights bit for bit.
Knows nothing of where the samples came from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from model_def.config import ModelConfig
from model_def.data.samples import TrainingSample, joined, token_batches
from model_def.id_table import IdTable
from model_def.model import MTGR, to_tensors
from model_def.schema import FeatureSchema, Frozen, IdFeature


class TrainingOptions(Frozen):
    """How to train; saved with the checkpoint."""

    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0, description="its peak; see `rate_at`")
    batch_tokens: int = Field(default=4096, ge=1, description="tokens of a batch, at most")
    min_id_count: int = Field(
        default=2, ge=1, description="an id seen less often shares the unknown id's row"
    )
    embedding_std: float | None = Field(
        default=None, gt=0, description="spread of the embeddings at the start; none: the model's"
    )
    branch_gain: float = Field(
        default=1.0, gt=0, description="scales W_o at the start: small begins near the identity"
    )
    listwise: float = Field(
        default=0.0, ge=0, description="weight of `listwise_loss` beside the cross-entropy"
    )
    embedding_decay: float = Field(
        default=0.0, ge=0, description="decoupled weight decay of the embeddings, per unit of rate"
    )
    seed: int = Field(default=0, ge=0)


@dataclass
class Trained:
    """What training returns: the model, its id tables, and the mean loss of each step."""

    model: MTGR
    id_tables: dict[str, IdTable]
    losses: list[float] = field(default_factory=list)


def train(
    config: ModelConfig,
    schema: FeatureSchema,
    samples: Sequence[TrainingSample],
    labels: NDArray[np.float32],
    options: TrainingOptions,
    progress: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train a new model; `labels` are `task_labels` [N, tasks], NaN where not labelled.

    `progress(step, steps, loss)` is called after each step. Raises ValueError when there is
    nothing to learn from.
    """
    check_labels(config, labels, samples)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    id_tables = grow_id_tables(schema, samples, options.min_id_count)
    model = MTGR(config, schema, id_tables)
    start_at_base_rates(model, labels)
    if options.embedding_std is not None:
        spread_embeddings(model, options.embedding_std)
    for layer in range(config.layers):
        model.get_parameter(f"layers.{layer}.out_weight").data.mul_(options.branch_gain)
    optimizer = _optimizer(model, options)
    trained = Trained(model, id_tables)
    tokens = np.array([sample.tokens for sample in samples], np.int64)
    epochs = [token_batches(tokens, options.batch_tokens, rng) for _ in range(options.epochs)]
    batches = [batch for epoch in epochs for batch in epoch]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * rate_at(step / len(batches))
        sample = joined([samples[i] for i in batch], schema)
        tensors, known = to_tensors(sample.batch), torch.from_numpy(labels[sample.rows])
        logits = model(tensors)
        loss = task_loss(logits, known)
        if options.listwise:
            request = tensors["candidate_context"].long()
            loss = loss + options.listwise * listwise_loss(logits, known, request)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        trained.losses.append(loss.item())
        if progress:
            progress(step + 1, len(batches), trained.losses[-1])
    return trained


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over tasks of the mean cross-entropy over the rows labelled for the task, in nats."""
    known = ~labels.isnan()
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return ((losses * known).sum(0) / known.sum(0).clamp(min=1)).sum()


def listwise_loss(logits: Tensor, labels: Tensor, request: Tensor) -> Tensor:
    """Sum over tasks of the mean over positives of -log softmax among their request's candidates.

    Only the order within a request matters to it, as to GAUC; the cross-entropy beside it keeps
    the probabilities calibrated. Source: Cao et al., "Learning to Rank: From Pairwise Approach to
    Listwise Approach" (top-one probability). `request` is int64 [rows]; only labelled rows count.
    """
    shifted = logits - logits.detach()[~labels.isnan()].max()
    exponentials = shifted.masked_fill(labels.isnan(), -torch.inf).exp()
    sums = logits.new_zeros(int(request.max()) + 1, logits.shape[1])
    sums = sums.index_add(0, request, exponentials)
    positive = labels == 1
    losses = sums.index_select(0, request).clamp(min=1e-37).log() - shifted
    return ((losses * positive).sum(0) / positive.sum(0).clamp(min=1)).sum()


def rate_at(done: float, warm_up: float = 0.05) -> float:
    """Learning rate over its peak, at a share `done` of all steps: linear up, then cosine to 0."""
    if done < warm_up:
        return (done + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _optimizer(model: MTGR, options: TrainingOptions) -> torch.optim.Optimizer:
    """Adam; with decoupled weight decay of the embeddings alone."""
    embeddings = list(model.embeddings.parameters())
    own = {id(parameter) for parameter in embeddings}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups = [
        {"params": embeddings, "weight_decay": options.embedding_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)


def grow_id_tables(
    schema: FeatureSchema, samples: Sequence[TrainingSample], min_count: int = 1
) -> dict[str, IdTable]:
    """The ids that the samples hold, by table."""
    seen: dict[str, list[NDArray[np.int64]]] = {name: [] for name in schema.id_tables}
    for segment in ("profile", "context", "lifelong", "realtime", "candidate"):
        features = schema.layouts[segment].ids
        if not features or not samples:
            continue
        ids = np.concatenate([sample.batch.arrays[f"{segment}_ids"] for sample in samples])
        for position, feature in enumerate(features):
            if isinstance(feature, IdFeature):
                seen[feature.table].append(ids[position :: len(features)])
    tables = {name: IdTable() for name in schema.id_tables}
    for name, columns in seen.items():
        if columns:
            tables[name].add(np.concatenate(columns), min_count)
    return tables


def start_at_base_rates(model: MTGR, labels: NDArray[np.float32]) -> None:
    """Set each head's last bias to the log-odds of its task, so that training starts calibrated."""
    for task, rate in zip(model.config.tasks, np.nanmean(labels, 0).tolist(), strict=True):
        odds = min(max(rate, 1e-6), 1 - 1e-6)
        bias: Tensor = model.heads[task][-1].bias  # type: ignore[index]  # a Sequential
        torch.nn.init.constant_(bias, math.log(odds / (1 - odds)))


def spread_embeddings(model: MTGR, std: float) -> None:
    """Draw the embeddings anew, wide enough that products of features are learnt early.

    The unknown id starts at zero: where none is seen in training, it stays without an opinion.
    """
    for name, values in model.embeddings.values.items():
        torch.nn.init.normal_(values, std=std)
        if name in model.schema.id_tables:
            torch.nn.init.zeros_(values[0])


def check_labels(
    config: ModelConfig, labels: NDArray[np.float32], samples: Sequence[TrainingSample]
) -> None:
    """Raise ValueError unless each task has labels of both classes."""
    if not samples:
        raise ValueError("no exposures to train on")
    for task, column in zip(config.tasks, labels.T, strict=True):
        rows, positives = int((~np.isnan(column)).sum()), int((column == 1).sum())
        if not 0 < positives < rows:
            raise ValueError(
                f"task {task}: {positives} positives of {rows} labelled exposures; "
                "expected some of both classes"
            )
