"""The model's forward pass planned as few launches for Hopper GPUs, from the weights of a `MTGR`.

What PyTorch's modules do in separate passes happens within the products here: bias, SiLU, residual,
a token's place among the rows. One launch encodes all features, one product each makes all hidden
layers and all tokens; then three launches a layer, or five. Weights are rearranged once. The scores
are those of `Serving` up to rounding; `MTGR` stays the definition, and what trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from engine_build.runtime.plan_features import CARRIERS, FeatureRows, Tables
from engine_build.runtime.plan_layer import PlannedLayer, Rows, Weights
from model_def.attention import CANDIDATE, STATIC
from model_def.model import MTGR, TOKEN_SEGMENTS, Layer
from model_def.tokens import Tokenizer
from plugins.fused import Descriptors, Features, Frame, products, task_scores, tokens
from plugins.loader import Library

SEQUENCES = ("lifelong", "realtime", "candidate")


def refusal(model: MTGR, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the model cannot be planned for this device; None if it can."""
    config = model.config
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        return f"compute capability {major}.{minor}, expected 9.0"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"precision {dtype}, expected 16 bits"
    if config.embedding_source != "engine":
        return "embeddings are gathered before the engine"
    if config.mask != "dynamic":
        return f"mask {config.mask}, expected dynamic"
    for name, width in (("d_model", config.d_model), ("head_hidden", config.head_hidden)):
        if width % 16:
            return f"{name} {width} is no multiple of 16"
    return None


@dataclass(frozen=True)
class Segment:
    """How one sequence's tokens are made: features -> hidden -> tokens."""

    descriptors: Descriptors
    hidden: Weights
    out: Weights


class Plan:
    """The arrays of a serving batch on the GPU, by name -> probabilities float32 [tasks, T_c]."""

    def __init__(self, model: MTGR, dtype: torch.dtype, library: Library, device: torch.device):
        like = torch.empty(0, dtype=dtype, device=device)
        self._library, self._like, self._config = library, like, model.config
        self._layouts = model.schema.layouts
        tables = Tables(model.embeddings, dtype, device)
        self._tables = tables  # owns what the descriptors point to
        self._segments = {
            "lifelong": self._planned(model, model.lifelong, tables),
            "realtime": self._planned(model, model.realtime, tables),
            "candidate": self._planned(model, model.candidate, tables),
        }
        profile = FeatureRows(tables)
        profile.add_profile(model.profile, self._layouts["profile"])
        self._profile_tokens = model.profile.tokens
        self._profile, weight = profile.on(device, dtype)
        self._profile_out = Weights(weight, weight.new_zeros(len(weight)), like)
        self._layers = [
            PlannedLayer(layer, like, library, last=layer is model.layers[-1])
            for layer in model.layers
            if isinstance(layer, Layer)
        ]
        heads = [model.heads[task] for task in model.config.tasks]
        first, last = ([linear_of(head, at) for head in heads] for at in (0, 2))
        self._hidden = Weights(
            torch.cat([f.weight for f in first]), torch.cat([f.bias for f in first]), like
        )
        self._head_weight = torch.cat([f.weight for f in last]).detach().float().to(device)
        self._head_bias = torch.cat([f.bias for f in last]).detach().float().to(device)

    def _planned(self, model: MTGR, tokenizer: Tokenizer, tables: Tables) -> Segment:
        rows, hidden = FeatureRows(tables), tokenizer.hidden
        rows.add_segment(hidden, self._layouts[hidden.segment], 0)
        bias: Tensor = hidden.projection.bias
        if hidden.segment == "candidate":
            # The context's features in each candidate's row: the sum that the module makes.
            rows.add_segment(model.context, self._layouts["context"], len(CARRIERS))
            bias = bias + model.context.projection.bias
        descriptors, weight = rows.on(self._like.device, self._like.dtype)
        out = Weights(tokenizer.out.weight, tokenizer.out.bias, self._like)
        return Segment(descriptors, Weights(weight, bias, self._like), out)

    def __call__(self, arrays: Mapping[str, Tensor]) -> Tensor:
        x, frame, rows = self._tokens(arrays)
        rows_of = Rows(frame, arrays["rt_offsets"], arrays["candidate_offsets"])
        n = self._layers[0].begin(x, frame.group)
        for layer, after in pairwise(self._layers):
            x, n = layer.run(x, n, rows_of, STATIC, after)
        last, skip = self._layers[-1], len(x) - rows["candidate"]
        x, _ = last.run(x, n, rows_of, CANDIDATE, None, skip)
        tasks, width = self._head_weight.shape
        hidden = x.new_empty(len(x), tasks * width, dtype=torch.float32)
        products(self._library, self._hidden.product(x, hidden), silu=True)
        return task_scores(self._library, hidden, self._head_weight, self._head_bias)

    def _tokens(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Frame, dict[str, int]]:
        """All tokens [T, d] in the order of the layers' rows, and the frame."""
        requests = len(arrays["lifelong_offsets"]) - 1
        rows = {
            "profile": requests * self._profile_tokens,
            "lifelong": self._rows(arrays, "lifelong"),
            "realtime": len(arrays["rt_visible"]),
            "candidate": len(arrays["candidate_visible"]),
        }
        groups = [self._config.group_of(segment) for segment in TOKEN_SEGMENTS]
        frame = Frame(
            self._profile_tokens,
            (groups[0], groups[1], groups[2], groups[3]),
            rows["lifelong"],
            arrays["lifelong_offsets"],
            arrays["rt_visible"],
            arrays["candidate_visible"],
        )
        features = {
            name: self._features(name, arrays, segment.descriptors, rows[name])
            for name, segment in self._segments.items()
        }
        profile = self._features("profile", arrays, self._profile, rows["profile"])
        tokens(self._library, self._like.dtype, [*features.values(), profile], frame)

        d, hidden = self._config.d_model, {}
        for name in self._segments:
            hidden[name] = self._like.new_empty(rows[name], d)
        products(
            self._library,
            *(
                segment.hidden.product(features[name].out, hidden[name])
                for name, segment in self._segments.items()
            ),
            silu=True,
        )
        x = self._like.new_empty(sum(rows.values()), d)
        static, recent = rows["profile"] + rows["lifelong"], rows["realtime"]
        of_profile = frame.static_rows[: rows["profile"]]
        of_lifelong = frame.static_rows[rows["profile"] :]
        made = self._segments
        products(
            self._library,
            made["lifelong"].out.product(hidden["lifelong"], x, out_rows=of_lifelong),
            made["realtime"].out.product(hidden["realtime"], x[static : static + recent]),
            made["candidate"].out.product(hidden["candidate"], x[static + recent :]),
            self._profile_out.product(profile.out, x, out_rows=of_profile),
        )
        return x, frame, rows

    def _rows(self, arrays: Mapping[str, Tensor], segment: str) -> int:
        # Each of its rows has a time among its numbers.
        return len(arrays[f"{segment}_numbers"]) // (len(self._layouts[segment].numbers) + 1)

    def _features(
        self, segment: str, arrays: Mapping[str, Tensor], of: Descriptors, rows: int
    ) -> Features:
        sources = self._sources(segment, arrays, of_request=False)
        if segment == "candidate":
            sources += self._sources("context", arrays, of_request=True)
        offsets = {"realtime": "rt_offsets", "candidate": "candidate_offsets"}
        return Features(
            of,
            sources,
            arrays[offsets.get(segment, "lifelong_offsets")],
            self._profile_tokens if segment == "profile" else 1,
            self._like.new_empty(rows, of.vectors * 8),
        )

    def _sources(
        self, segment: str, arrays: Mapping[str, Tensor], *, of_request: bool
    ) -> list[tuple[Tensor | None, int, bool]]:
        layout = self._layouts[segment]
        timed = int("time_ms" in (layout.record.names or ()))
        widths = (len(layout.ids), len(layout.categories), len(layout.numbers) + timed)
        return [
            (arrays.get(f"{segment}_{carrier}"), width, of_request)
            for carrier, width in zip(CARRIERS, widths, strict=True)
        ]


def linear_of(head: nn.Module, at: int) -> nn.Linear:
    """The head's linear layer at this position."""
    layer = head[at] if isinstance(head, nn.Sequential) else None
    assert isinstance(layer, nn.Linear)
    return layer
