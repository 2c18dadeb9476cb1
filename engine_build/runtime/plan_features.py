"""A segment's features and the product over them, as the kernel that encodes them wants both.

The kernel (`plugins/tokens`) writes rows of vectors of eight columns. So each embedding is widened
with zeros to a multiple of eight, numbers are grouped in eights, and the product's weight gets its
columns in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from model_def.schema import CategoryFeature, IdFeature, Layout
from model_def.tokens import Embeddings, NumberEncoding, ProfileTokenizer, SegmentEncoding
from plugins import abi
from plugins.fused import Descriptors, on_device

PLAIN, LOG, BIN, CONSTANT = range(4)
"""`mtgr_number_kind`."""

VECTOR = 8
"""Columns of one vector."""

CARRIERS = ("ids", "categories", "numbers")
"""A segment's arrays, in the order of its sources; those of the request's context follow."""


class Tables:
    """Every embedding table of a model on a device, in 16 bits, each by the name of its values."""

    def __init__(self, embeddings: Embeddings, dtype: torch.dtype, device: torch.device):
        self.embedding = embeddings.width
        """Width of an embedding in the model."""
        self.vectors = -(-embeddings.width // VECTOR)
        """Vectors that hold one."""
        self._index: dict[str, int] = {}
        self._kept: list[Tensor] = []
        structs: list[abi.Table] = []
        for name, values in embeddings.values.items():
            columns = self.vectors * VECTOR
            table = pad(values.detach(), (0, columns - embeddings.width)).to(device, dtype)
            self._kept.append(table)
            keys = rows = None
            if name in embeddings.schema.id_tables:
                keys = embeddings.get_buffer(f"keys_{name}").to(device)
                rows = embeddings.get_buffer(f"rows_{name}").to(device)
                self._kept += keys, rows
            self._index[name] = len(structs)
            structs.append(
                abi.Table(
                    None if keys is None else keys.data_ptr(),
                    None if rows is None else rows.data_ptr(),
                    table.data_ptr(),
                    0 if keys is None else len(keys).bit_length() - 1,
                    embeddings.max_probe,
                    len(table),
                    columns,
                )
            )
        self.structs = on_device(structs, device)

    def of(self, feature: IdFeature | CategoryFeature) -> int:
        """Index of the feature's table."""
        return self._index[feature.values_name]


@dataclass
class FeatureRows:
    """What one segment's rows are made of, gathered part by part with the weight [d, columns]."""

    tables: Tables
    vectors: list[abi.Vector] = field(default_factory=list)
    numbers: list[abi.Number] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def add_embedding(
        self,
        feature: IdFeature | CategoryFeature,
        source: int,
        column: int,
        weight: Tensor,
        token: int = -1,
    ) -> None:
        """The vector of an id at `column` of a source; weight [d, embedding]."""
        table = self.tables.of(feature)
        for i in range(self.tables.vectors):
            self.vectors.append(abi.Vector(source, table, column, i * VECTOR, token))
        self._add_weight(weight)

    def add_numbers(
        self, numbers: Sequence[abi.Number], source: int, weight: Tensor, token: int = -1
    ) -> None:
        """Encoded numbers of one source; weight [d, numbers]."""
        for first in range(0, len(numbers), VECTOR):
            eight = list(numbers[first : first + VECTOR])
            eight += [abi.Number(CONSTANT, 0, 0.0, 0.0)] * (VECTOR - len(eight))
            self.vectors.append(abi.Vector(source, -1, 0, len(self.numbers), token))
            self.numbers += eight
        self._add_weight(weight)

    def add_segment(self, encoding: SegmentEncoding, layout: Layout, first_source: int) -> None:
        """All features of a layout; its arrays are the sources from `first_source` on."""
        weight, at = encoding.projection.weight.detach(), 0
        for carrier, features in enumerate((layout.ids, layout.categories)):
            for column, feature in enumerate(features):
                part = weight[:, at : at + self.tables.embedding]
                self.add_embedding(feature, first_source + carrier, column, part)
                at += self.tables.embedding
        if encoding.numbers:
            self.add_numbers(numbers_of(encoding.numbers), first_source + 2, weight[:, at:])

    def add_profile(self, profile: ProfileTokenizer, layout: Layout) -> None:
        """Each scalar in the columns of its own token, the bias of its projection too."""
        one = abi.Number(CONSTANT, 0, 1.0, 0.0)
        for token, (feature, linear) in enumerate(zip(layout.ids, profile.vectors, strict=True)):
            assert isinstance(linear, nn.Linear)
            self.add_embedding(feature, 0, token, linear.weight.detach(), token)
            self.add_numbers([one], 0, linear.bias.detach()[:, None], token)
        for column, (encode, linear) in enumerate(
            zip(profile.encodings, profile.numbers, strict=True)
        ):
            assert isinstance(encode, NumberEncoding)
            assert isinstance(linear, nn.Linear)
            weight = torch.cat((linear.weight, linear.bias[:, None]), 1).detach()
            numbers = [*numbers_of(encode, column), one]
            self.add_numbers(numbers, 2, weight, len(layout.ids) + column)

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Descriptors, Tensor]:
        """Descriptors and weight in device memory."""
        made = Descriptors(
            len(self.vectors),
            on_device(self.vectors, device),
            on_device(self.numbers, device),
            self.tables.structs,
        )
        return made, torch.cat(self.weights, 1).to(device, dtype).contiguous()

    def _add_weight(self, weight: Tensor) -> None:
        self.weights.append(pad(weight, (0, -weight.shape[1] % VECTOR)))


def numbers_of(encoding: NumberEncoding, first_column: int = 0) -> list[abi.Number]:
    """An encoding's values, in its order: plain ones, then bins."""
    plain = zip(
        encoding.plain_at.tolist(),
        encoding.logarithmic.tolist(),
        encoding.mean.tolist(),
        encoding.inv_std.tolist(),
        strict=True,
    )
    bins = zip(
        encoding.bin_at.tolist(),
        encoding.bin_low.tolist(),
        encoding.bin_scale.tolist(),
        strict=True,
    )
    return [
        *(
            abi.Number(LOG if log else PLAIN, first_column + at, mean, inv_std)
            for at, log, mean, inv_std in plain
        ),
        *(abi.Number(BIN, first_column + at, low, scale) for at, low, scale in bins),
    ]
