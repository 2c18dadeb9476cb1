"""MTGR: tokens -> HSTU layers with GroupLN and the dynamic mask -> CTR and CTCVR logits.

`forward` and `score(encode_user(...))` are one model: static rows never read the others, so the
user's half can be encoded first, and the two halves compose exactly. All sizes come from the
shapes of the inputs, so the module exports as it is. Source: paper section 4, Eq. 4-6.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

import model_def.ops  # noqa: F401  # registers the operators as torch.ops.mtgr
from model_def.attention import CANDIDATE, REALTIME, STATIC
from model_def.batch import PackedBatch
from model_def.config import ModelConfig, Segment
from model_def.id_table import IdTable
from model_def.schema import FeatureSchema
from model_def.tokens import Embeddings, ProfileTokenizer, SegmentEncoding, Tokenizer

TOKEN_SEGMENTS: tuple[Segment, ...] = ("profile", "lifelong", "realtime", "candidate")


@dataclass(frozen=True)
class Frame:
    """Which row is whose, as the attention op takes it, segment-major.

    `rows`: T_s, T_r, T_c. `group`: int32 [T], each row's GroupLN group.
    `static_source`: [T_s], each static row's place among profile tokens, then lifelong tokens.
    """

    rows: tuple[int, int, int]
    static_offsets: Tensor
    rt_offsets: Tensor
    candidate_offsets: Tensor
    rt_visible: Tensor
    candidate_visible: Tensor
    group: Tensor
    static_source: Tensor

    def first_row(self, segment: int) -> int:
        """Row at which `segment` starts."""
        return sum(self.rows[:segment])


class KeysValues(NamedTuple):
    """k and v [T_s, H, D] of a layer's static rows."""

    k: Tensor
    v: Tensor


class Layer(nn.Module):
    """One HSTU layer: u, v, q, k = split(silu(GLN(x) W + b)); x + GLN(attention * u) W_o + b_o."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, groups = config.d_model, len(config.token_groups)
        self.config = config
        self.ln_in_weight = nn.Parameter(torch.ones(groups, d))
        self.ln_in_bias = nn.Parameter(torch.zeros(groups, d))
        self.uvqk_weight = nn.Parameter(torch.empty(4 * d, d))
        self.uvqk_bias = nn.Parameter(torch.zeros(4 * d))
        self.ln_out_weight = nn.Parameter(torch.ones(groups, d))
        self.ln_out_bias = nn.Parameter(torch.zeros(groups, d))
        self.out_weight = nn.Parameter(torch.empty(d, d))
        self.out_bias = nn.Parameter(torch.zeros(d))
        nn.init.xavier_uniform_(self.out_weight)
        for block in self.uvqk_weight.data.chunk(4):
            nn.init.xavier_uniform_(block)

    def forward(
        self, x: Tensor, frame: Frame, query: int = STATIC, static: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Rows of `x` -> the next layer's rows of segments >= `query`, and the keys and values.

        `x` holds all rows, or with a given `static` those of real-time and candidates. Rows before
        `query` are keys only: their u, q and output are skipped, which changes nothing else.
        """
        config, first = self.config, STATIC if static is None else REALTIME
        group = frame.group[frame.first_row(first) :]
        skip = frame.first_row(query) - frame.first_row(first)
        n = torch.ops.mtgr.group_layer_norm(
            x, group, self.ln_in_weight, self.ln_in_bias, config.eps
        )
        if query == first:
            uq = vk = self._project(n, slice(None), 4)
        else:
            uq = self._project(n[skip:], slice(0, None, 2), 2)
            vk = self._project(n, slice(1, None, 2), 2)
        u, q = uq.select(1, 0), uq.select(1, uq.shape[1] // 2)
        v, k = vk.select(1, vk.shape[1] // 4), vk.select(1, vk.shape[1] - 1)
        if static is not None:
            k, v = torch.cat((static.k, k)), torch.cat((static.v, v))
        attended = torch.ops.mtgr.hstu_attention(
            q,
            k,
            v,
            frame.static_offsets,
            frame.rt_offsets,
            frame.candidate_offsets,
            frame.rt_visible,
            frame.candidate_visible,
            config.alpha,
            config.inv_n,
            query,
        )
        gated = torch.ops.mtgr.gated_group_layer_norm(
            attended.flatten(1),
            u.flatten(1),
            group[skip:],
            self.ln_out_weight,
            self.ln_out_bias,
            config.eps_gated,
        )
        return linear(gated, self.out_weight, self.out_bias) + x[skip:], KeysValues(k, v)

    def _project(self, n: Tensor, blocks: slice, count: int) -> Tensor:
        """silu(n W + b) for the given blocks of u, v, q, k: [rows, count, H, D]."""
        d, heads = self.config.d_model, self.config.heads
        weight = self.uvqk_weight.view(4, d, d)[blocks].reshape(count * d, d)
        bias = self.uvqk_bias.view(4, d)[blocks].reshape(count * d)
        return silu(linear(n, weight, bias)).view(-1, count, heads, self.config.head_dim)


class MTGR(nn.Module):
    """The model of one `ModelConfig` over one `FeatureSchema`.

    Its input is a packed batch as named tensors (`to_tensors`); with `embedding_source` "host",
    that after `embeddings` ran on it elsewhere.
    """

    def __init__(
        self, config: ModelConfig, schema: FeatureSchema, id_tables: Mapping[str, IdTable]
    ):
        super().__init__()
        self.config, self.schema = config, schema
        width, d = config.embedding_dim, config.d_model
        self.embeddings = Embeddings(schema, id_tables, width)
        self.profile = ProfileTokenizer(schema.layouts["profile"], width, d)
        self.lifelong = Tokenizer(schema.layouts["lifelong"], "lifelong", width, d)
        self.realtime = Tokenizer(schema.layouts["realtime"], "realtime", width, d)
        self.candidate = Tokenizer(schema.layouts["candidate"], "candidate", width, d)
        self.context = SegmentEncoding(schema.layouts["context"], "context", width, d)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.heads = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Linear(d, config.head_hidden), nn.SiLU(), nn.Linear(config.head_hidden, 1)
                )
                for task in config.tasks
            }
        )

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits [T_c, tasks] of every candidate, equal to `score(encode_user(...), ...)`."""
        return self.logits(self.candidate_rows(self._embedded(tensors)))

    def whole(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """`forward` of a packed batch, wherever its embeddings are gathered."""
        return self.logits(self.candidate_rows(self.embeddings(tensors)))

    def candidate_rows(self, embedded: Mapping[str, Tensor]) -> Tensor:
        """The encoder's output [T_c, d] for every candidate, from what `embeddings` returned."""
        frame = self._frame(embedded)
        x = torch.cat((self._static_tokens(embedded, frame), self._dynamic_tokens(embedded)))
        for layer in self.layers[:-1]:
            x, _ = layer(x, frame)
        rows: Tensor = self.layers[-1](x, frame, CANDIDATE)[0]
        return rows

    def encode_user(self, tensors: Mapping[str, Tensor]) -> list[KeysValues]:
        """The static half: each layer's keys and values. Depends on profile and lifelong only."""
        tensors = self._embedded(tensors)
        frame = self._frame(tensors)
        none = frame.rt_visible[:0]
        empty = torch.zeros_like(frame.rt_offsets)
        frame = replace(
            frame,
            rows=(frame.rows[0], 0, 0),
            rt_offsets=empty,
            candidate_offsets=empty,
            rt_visible=none,
            candidate_visible=none,
            group=frame.group[: frame.rows[0]],
        )
        x, user = self._static_tokens(tensors, frame), []
        for layer in self.layers:
            x, static = layer(x, frame, STATIC if layer is not self.layers[-1] else REALTIME)
            user.append(static)
        return user

    def score(self, user: list[KeysValues], tensors: Mapping[str, Tensor]) -> Tensor:
        """Logits [T_c, tasks] from an encoded user, the real-time sequence and the candidates."""
        tensors = self._embedded(tensors)
        frame, x = self._frame(tensors), self._dynamic_tokens(tensors)
        for layer, static in zip(self.layers, user, strict=True):
            x, _ = layer(x, frame, REALTIME if layer is not self.layers[-1] else CANDIDATE, static)
        return self.logits(x)

    def _embedded(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.config.embedding_source == "host":
            return tensors
        embedded: Mapping[str, Tensor] = self.embeddings(tensors)
        return embedded

    def _frame(self, tensors: Mapping[str, Tensor]) -> Frame:
        lifelong_offsets = tensors["lifelong_offsets"]
        users, profile = lifelong_offsets.shape[0] - 1, self.profile.tokens
        order = torch.arange(users + 1, dtype=torch.int32, device=lifelong_offsets.device)
        static_offsets = lifelong_offsets + profile * order
        lifelong = tensors["lifelong_numbers"].shape[0] // self.lifelong.hidden.columns
        rt_visible, candidate_visible = self._visible(tensors)
        rows = (users * profile + lifelong, rt_visible.shape[0], candidate_visible.shape[0])
        groups = [self.config.group_of(s) for s in TOKEN_SEGMENTS]
        static_rows = torch.arange(rows[0], dtype=torch.int32, device=order.device)
        owner = owners(static_offsets, rows[0])
        start = static_offsets.index_select(0, owner)
        is_profile = static_rows - start < profile
        # Within a user's static rows the profile's come first, then the lifelong sequence's;
        # the tokens are made per segment, all profiles before all sequences.
        source = torch.where(
            is_profile,
            owner * profile + static_rows - start,
            (users - 1 - owner) * profile + static_rows,
        )
        return Frame(
            rows,
            static_offsets,
            tensors["rt_offsets"],
            tensors["candidate_offsets"],
            rt_visible.int(),
            candidate_visible.int(),
            torch.cat(
                (
                    torch.where(is_profile, groups[0], groups[1]).int(),
                    order.new_full((rows[1],), groups[2]),
                    order.new_full((rows[2],), groups[3]),
                )
            ),
            source,
        )

    def _visible(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """How many leading real-time tokens each real-time and candidate row sees."""
        rt, candidate = tensors["rt_visible"], tensors["candidate_visible"]
        if self.config.mask == "dynamic":
            return rt, candidate
        offsets = tensors["rt_offsets"]
        before = torch.arange(rt.shape[0], dtype=torch.int32, device=rt.device)
        before = before - offsets.index_select(0, owners(offsets, rt.shape[0]))
        owner = owners(tensors["candidate_offsets"], candidate.shape[0])
        return before, offsets.diff().index_select(0, owner)

    def _static_tokens(self, tensors: Mapping[str, Tensor], frame: Frame) -> Tensor:
        tokens = torch.cat((self.profile(tensors), self.lifelong(tensors)))
        return tokens.index_select(0, frame.static_source)

    def _dynamic_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        context = self.context(tensors).index_select(0, tensors["candidate_context"])
        return torch.cat((self.realtime(tensors), self.candidate(tensors, context)))

    def logits(self, x: Tensor) -> Tensor:
        """Logits [T_c, tasks] from the encoder's candidate rows."""
        # The heads may keep float32 weights where the layers' are of 16 bits.
        x = x.to(next(self.heads.parameters()).dtype)
        return torch.cat([self.heads[task](x) for task in self.config.tasks], 1).float()


def owners(offsets: Tensor, rows: int) -> Tensor:
    """int64 [rows]: which of the B requests owns each row; padding rows go to the last one."""
    row = torch.arange(rows, dtype=offsets.dtype, device=offsets.device)
    return (row[:, None] >= offsets[1:-1]).sum(1)


def to_tensors(batch: PackedBatch, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The model's input: each array of the batch by name, and `candidate_context` int32 [T_c]."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.arrays.items()}
    tensors["candidate_context"] = torch.from_numpy(batch.candidate_context)
    del tensors["context_candidates"]
    return {name: tensor.to(device) for name, tensor in tensors.items()}
