"""Features -> tokens: embeddings of ids and categories, encodings of numbers, an MLP a group.

Source: paper section 4.1. Each profile scalar is one token; a behaviour is one token; a candidate
is one token of its item and cross features and its request's context.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from model_def.id_table import IdTable
from model_def.schema import (
    CategoryFeature,
    FeatureSchema,
    IdFeature,
    Layout,
    Log1p,
    NumberFeature,
    Piecewise,
    Standardize,
)

TIME_EDGES = tuple(float(edge) for edge in range(24))
"""Bins of log1p(seconds): e^23 s is 308 years."""

SEGMENTS = ("profile", "context", "lifelong", "realtime", "candidate")


class Embeddings(nn.Module):
    """Ids and categories -> vectors. The seam `embedding_source`: in the engine, or before it.

    An id table's key store (frozen open addressing) stands apart from its value store (rows of
    the weight); unknown ids share row 0. While a table grows, training looks its ids up itself
    (`model_def.growing_table`) and gives what it found.
    """

    def __init__(self, schema: FeatureSchema, tables: Mapping[str, IdTable], width: int):
        super().__init__()
        self.schema, self.width = schema, width
        self.values = nn.ParameterDict()
        self.max_probe = 1
        for name in schema.id_tables:
            self.install(name, tables[name], torch.randn(len(tables[name]), width) * 0.05)
        for layout in schema.layouts.values():
            for feature in layout.features:
                if not isinstance(feature, CategoryFeature) or feature.values_name in self.values:
                    continue
                values = torch.randn(feature.size, width) * 0.05
                self.values[feature.values_name] = nn.Parameter(values)

    def install(self, name: str, table: IdTable, values: Tensor) -> None:
        """Make `table` and its embeddings [len(table), width] those of table `name`."""
        frozen = table.freeze()
        self.values[name] = nn.Parameter(values)
        self.register_buffer(f"keys_{name}", torch.from_numpy(frozen.keys), persistent=False)
        self.register_buffer(f"rows_{name}", torch.from_numpy(frozen.rows), persistent=False)
        self.max_probe = max(self.max_probe, frozen.max_probe)

    def forward(
        self, tensors: Mapping[str, Tensor], found: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Replace each `<segment>_ids` and `_categories` by `<segment>_vectors` [rows, n * width].

        Vectors are ordered as ids then categories of the layout. With `found`, vectors [U, width]
        by table, the ids in `tensors` are places in them.
        """
        out = dict(tensors)
        for segment in SEGMENTS:
            layout, vectors = self.schema.layouts[segment], []
            for carrier, features in (("ids", layout.ids), ("categories", layout.categories)):
                if not features:
                    continue
                columns = out.pop(f"{segment}_{carrier}").view(-1, len(features))
                vectors += [self._embed(f, columns[:, i], found) for i, f in enumerate(features)]
            if vectors:
                out[f"{segment}_vectors"] = torch.cat(vectors, 1)
        return out

    def _embed(
        self,
        feature: IdFeature | CategoryFeature,
        column: Tensor,
        found: Mapping[str, Tensor] | None,
    ) -> Tensor:
        if isinstance(feature, CategoryFeature):
            return embedding(column.int(), self.values[feature.values_name])
        if found is not None:
            return embedding(column, found[feature.table])
        keys = self.get_buffer(f"keys_{feature.table}")
        rows = self.get_buffer(f"rows_{feature.table}")
        row = torch.ops.mtgr.id_lookup(column.contiguous(), keys, rows, self.max_probe)
        return embedding(row, self.values[feature.table])


class NumberEncoding(nn.Module):
    """Raw numbers [rows, n] -> float32 [rows, width], each by its transform, the time by bins."""

    plain_at: Tensor
    logarithmic: Tensor
    mean: Tensor
    inv_std: Tensor
    bin_at: Tensor
    bin_low: Tensor
    bin_scale: Tensor

    def __init__(self, numbers: tuple[NumberFeature, ...], *, timed: bool):
        super().__init__()
        self.columns = len(numbers) + timed
        plain: list[tuple[int, bool, float, float]] = []
        bins: list[tuple[int, float, float]] = []
        transforms = [f.transform for f in numbers]
        transforms += [Piecewise(edges=TIME_EDGES)] if timed else []
        for at, transform in enumerate(transforms):
            match transform:
                case Piecewise(edges=edges):
                    bins += [(at, low, 1 / (high - low)) for low, high in pairwise(edges)]
                case Standardize(mean=mean, std=std):
                    plain.append((at, False, mean, 1 / std))
                case _:
                    plain.append((at, isinstance(transform, Log1p), 0.0, 1.0))
        self.width = len(plain) + len(bins)
        self.any_logarithmic = any(row[1] for row in plain)
        for names, table in (
            (("plain_at", "logarithmic", "mean", "inv_std"), plain),
            (("bin_at", "bin_low", "bin_scale"), bins),
        ):
            for position, name in enumerate(names):
                column = torch.tensor([row[position] for row in table])
                column = column.long() if name.endswith("_at") else column
                self.register_buffer(name, column, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        x = numbers.view(-1, self.columns).float()
        encoded = []
        if len(self.plain_at):
            plain = x.index_select(1, self.plain_at)
            if self.any_logarithmic:
                logs = plain.sign() * plain.abs().log1p()
                plain = torch.where(self.logarithmic, logs, plain)
            encoded.append((plain - self.mean) * self.inv_std)
        if len(self.bin_at):
            binned = x.index_select(1, self.bin_at)
            encoded.append(((binned - self.bin_low) * self.bin_scale).clamp(0, 1))
        return torch.cat(encoded, 1)


class SegmentEncoding(nn.Module):
    """One segment's rows -> [rows, d]: vectors and encoded numbers, concatenated and projected."""

    def __init__(self, layout: Layout, segment: str, embedding: int, d_model: int):
        super().__init__()
        self.segment = segment
        timed = "time_ms" in (layout.record.names or ())
        vectors = (len(layout.ids) + len(layout.categories)) * embedding
        self.columns = len(layout.numbers) + timed
        self.numbers = NumberEncoding(layout.numbers, timed=timed) if self.columns else None
        self.projection = nn.Linear(vectors + (self.numbers.width if self.numbers else 0), d_model)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        parts = []
        if (vectors := tensors.get(f"{self.segment}_vectors")) is not None:
            parts.append(vectors)
        if self.numbers:
            numbers = self.numbers(tensors[f"{self.segment}_numbers"])
            parts.append(numbers.to(self.projection.weight.dtype))
        projected: Tensor = self.projection(torch.cat(parts, 1))
        return projected


class Tokenizer(nn.Module):
    """One segment's rows -> tokens [rows, d], by an MLP of one hidden layer.

    `shared` is added to the hidden layer: a part of the features encoded once elsewhere (a
    candidate's request context), which equals concatenating them to each row.
    """

    def __init__(self, layout: Layout, segment: str, embedding: int, d_model: int):
        super().__init__()
        self.hidden = SegmentEncoding(layout, segment, embedding, d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, tensors: Mapping[str, Tensor], shared: Tensor | None = None) -> Tensor:
        hidden = self.hidden(tensors)
        tokens: Tensor = self.out(silu(hidden if shared is None else hidden + shared))
        return tokens


class ProfileTokenizer(nn.Module):
    """Each scalar of the profile -> a token of its own, by a projection of its own."""

    def __init__(self, layout: Layout, embedding: int, d_model: int):
        super().__init__()
        self.embedding, self.tokens = embedding, len(layout.ids) + len(layout.numbers)
        self.vectors = nn.ModuleList(nn.Linear(embedding, d_model) for _ in layout.ids)
        encodings = [NumberEncoding((f,), timed=False) for f in layout.numbers]
        self.encodings = nn.ModuleList(encodings)
        self.numbers = nn.ModuleList(nn.Linear(e.width, d_model) for e in encodings)

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """[B * tokens, d], the tokens of one user together."""
        tokens = []
        if self.vectors:
            vectors = torch.split(tensors["profile_vectors"], self.embedding, 1)
            tokens += [linear(v) for linear, v in zip(self.vectors, vectors, strict=True)]
        if self.numbers:
            columns = tensors["profile_numbers"].view(-1, len(self.numbers)).unbind(1)
            for column, encode, linear in zip(columns, self.encodings, self.numbers, strict=True):
                tokens.append(linear(encode(column).to(linear.weight.dtype)))
        return torch.stack(tokens, 1).flatten(0, 1)
