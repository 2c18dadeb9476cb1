"""What training minimizes, in shares of an optimizer step: a batch's sum over the step's counts.

So the step is the same however its samples are split into batches, and a batch of few long
samples weighs what its rows weigh. Source: paper section 5, "Load balance".
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Counts:
    """Labelled rows and positives [tasks] of a step, at least 1 each."""

    labelled: Tensor
    positives: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> "Counts":
        """Of labels [rows, tasks]: 1, 0, or NaN where not labelled."""
        labelled, positives = (~labels.isnan()).sum(0), (labels == 1).sum(0)
        return cls(labelled.clamp(min=1), positives.clamp(min=1))


def task_loss(logits: Tensor, labels: Tensor, counts: Counts | None = None) -> Tensor:
    """Sum over tasks of the mean cross-entropy over the rows labelled for the task, in nats.

    Without `counts` these rows are a step of their own.
    """
    counts = counts or Counts.of(labels)
    losses = binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return ((losses * ~labels.isnan()).sum(0) / counts.labelled).sum()


def listwise_loss(
    logits: Tensor, labels: Tensor, request: Tensor, counts: Counts | None = None
) -> Tensor:
    """Sum over tasks of the mean over positives of -log softmax among their request's candidates.

    Only the order within a request matters to it, as to GAUC; the cross-entropy beside it keeps
    the probabilities calibrated. Source: Cao et al., "Learning to Rank: From Pairwise Approach to
    Listwise Approach" (top-one probability). `request` is int64 [rows]; only labelled rows count.
    """
    counts = counts or Counts.of(labels)
    shifted = logits - logits.detach()[~labels.isnan()].max()
    exponentials = shifted.masked_fill(labels.isnan(), -torch.inf).exp()
    sums = logits.new_zeros(int(request.max()) + 1, logits.shape[1])
    sums = sums.index_add(0, request, exponentials)
    losses = sums.index_select(0, request).clamp(min=1e-37).log() - shifted
    return ((losses * (labels == 1)).sum(0) / counts.positives).sum()
