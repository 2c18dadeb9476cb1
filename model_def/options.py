"""How to train: every choice that changes the weights, saved with the checkpoint."""

import math
from typing import Literal

from pydantic import Field

from model_def.schema import Frozen


class TrainingOptions(Frozen):
    """Choices of one training. Equal options, samples and threads give equal weights."""

    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0, description="its peak; see `rate_at`")
    warm_up: float = Field(
        default=0.05, ge=0, lt=1, description="share of the steps until the rate's peak"
    )
    batch_tokens: int = Field(default=4096, ge=1, description="tokens of a batch, at most")
    accumulate: int = Field(default=1, ge=1, description="batches of an optimizer step")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the layers' products; weights and logits are float32"
    )
    min_id_count: int = Field(
        default=2, ge=1, description="an id seen less often shares the unknown id's row"
    )
    max_ids: int | None = Field(
        default=None, ge=1, description="of a table, at most; those seen longest ago give way"
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
        default=0.0,
        ge=0,
        description="decoupled weight decay of the embeddings, per unit of rate; an id's, in the "
        "steps that read it",
    )
    seed: int = Field(default=0, ge=0)

    def rate_at(self, done: float) -> float:
        """Learning rate at a share `done` of all steps: linear up to its peak, then cosine to 0."""
        if done < self.warm_up:
            return self.learning_rate * (done + 1e-3) / (self.warm_up + 1e-3)
        left = (1 - done) / (1 - self.warm_up)
        return self.learning_rate * 0.5 * (1 - math.cos(math.pi * left))
