"""What a model *is*: its sizes and fixed choices, saved with its schema beside its weights."""

import math
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from model_def.schema import FeatureSchema, Frozen, Name

Segment = Literal["profile", "lifelong", "realtime", "candidate"]


class TokenGroup(Frozen):
    """A GroupLN group: the segments that share one affine (paper section 4.2)."""

    name: Name
    segments: tuple[Segment, ...] = Field(min_length=1)


PAPER_GROUPS = (
    TokenGroup(name="profile", segments=("profile",)),
    TokenGroup(name="lifelong", segments=("lifelong",)),
    TokenGroup(name="realtime", segments=("realtime",)),
    TokenGroup(name="candidate", segments=("candidate",)),
)


ONE_GROUP = (TokenGroup(name="all", segments=("profile", "lifelong", "realtime", "candidate")),)
"""A plain layer norm: what GroupLN is compared with."""

TOKEN_GROUPS = {"paper": PAPER_GROUPS, "one": ONE_GROUP}


class ScoreFormula(Frozen):
    """score = ctr^ctr_power * ctcvr^ctcvr_power; with one task, that task's probability."""

    ctr_power: float = Field(default=0.0, ge=0)
    ctcvr_power: float = Field(default=1.0, ge=0)

    def __call__(self, probabilities: Mapping[str, NDArray[np.floating]]) -> NDArray[np.floating]:
        """Scores [K] from each task's probabilities [K]."""
        if len(probabilities) == 1:
            return next(iter(probabilities.values()))
        ctr, ctcvr = probabilities["ctr"], probabilities["ctcvr"]
        if (self.ctr_power, self.ctcvr_power) == (0, 1):
            return ctcvr
        return ctr**self.ctr_power * ctcvr**self.ctcvr_power


class ModelConfig(Frozen):
    """Sizes and fixed choices of one model. Whatever changes a score is recorded here."""

    layers: int = Field(ge=1, le=64)
    d_model: int = Field(ge=8)
    heads: int = Field(ge=1)
    embedding_dim: int = Field(default=16, ge=1, description="width of one feature's embedding")
    head_hidden: int = Field(default=64, ge=1, description="hidden width of each task's MLP")
    token_groups: tuple[TokenGroup, ...] = PAPER_GROUPS
    tasks: tuple[Literal["ctr", "ctcvr"], ...] = Field(default=("ctr", "ctcvr"), min_length=1)
    score: ScoreFormula = ScoreFormula()
    inv_n: float = Field(
        default=1 / 1024, gt=0, description="attention's average factor (Eq. 5), never from a batch"
    )
    eps: float = Field(default=1e-6, gt=0, description="of the input GroupLN")
    eps_gated: float = Field(default=1e-12, gt=0, description="of the gated GroupLN, in fp32")
    embedding_source: Literal["engine", "host"] = "engine"
    mask: Literal["dynamic", "causal"] = Field(
        default="dynamic",
        description="causal: the order of the sequence alone, so a training window shows each "
        "exposure the real-time events that followed it too. For ablation: it leaks",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"heads {self.heads} must divide d_model {self.d_model}")
        segments = sorted(s for group in self.token_groups for s in group.segments)
        if segments != sorted(("profile", "lifelong", "realtime", "candidate")):
            raise ValueError(f"token_groups: each segment belongs in one group, got {segments}")
        return self

    @property
    def head_dim(self) -> int:
        """Width of one attention head, in values."""
        return self.d_model // self.heads

    @property
    def alpha(self) -> float:
        """Scale of q k^T."""
        return 1.0 / math.sqrt(self.head_dim)

    def group_of(self, segment: Segment) -> int:
        """Index of the GroupLN group that `segment` belongs to."""
        return next(i for i, g in enumerate(self.token_groups) if segment in g.segments)

    def attention_gflops(self, tokens: int) -> float:
        """Dense GFLOPs of the encoder at `tokens` tokens, as the paper's Table 2 counts them."""
        n, d = tokens, self.d_model
        return self.layers * 2 * (5 * d * d * n + 2 * n * n * d) / 1e9


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(layers=2, d_model=64, heads=2, embedding_dim=8, head_hidden=32),
    "small": ModelConfig(layers=3, d_model=512, heads=2, embedding_dim=32, head_hidden=128),
    "medium": ModelConfig(layers=5, d_model=768, heads=3, embedding_dim=48, head_hidden=192),
    "large": ModelConfig(layers=15, d_model=768, heads=3, embedding_dim=48, head_hidden=192),
}


class PackageConfig(Frozen):
    """`config.json` of a model package or checkpoint: the model, its schema, its version."""

    version: str = Field(min_length=1, max_length=128)
    model: ModelConfig
    features: FeatureSchema
