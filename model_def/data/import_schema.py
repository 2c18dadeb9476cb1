"""The feature schema of an import: what its mapping says, with the values and bins it learned."""

from collections.abc import Mapping as Columns
from typing import Any

from numpy.typing import NDArray

from model_def.data.encoding import Vocabulary, learn_bins
from model_def.data.mapping import (
    CategoryColumn,
    ClockColumn,
    IdColumn,
    Mapping,
    NumberColumn,
    PastNumber,
)
from model_def.schema import CategoryFeature, Feature, FeatureSchema, IdFeature, NumberFeature

Source = IdColumn | CategoryColumn | ClockColumn | NumberColumn | PastNumber
Values = Columns[str, NDArray[Any]]

CLOCK_SIZES = {"hour": 24, "weekday": 7}


def build_schema(
    mapping: Mapping, words: Vocabulary, profile: Values, behaviour: Values, cross: Values
) -> FeatureSchema:
    """The schema of `mapping`; numbers get piecewise bins from the sampled columns given."""

    def features(group: str, sources: Columns[str, Source], values: Values) -> tuple[Feature, ...]:
        return tuple(
            _feature(name, source, words, f"{group}.{name}", values)
            for name, source in sources.items()
        )

    item = (IdFeature(name="item_id"), *features("item", mapping.item, behaviour))
    return FeatureSchema(
        name=mapping.name,
        profile=features("profile", mapping.profile, profile),
        behaviour=(*item, *features("event", mapping.event, behaviour)),
        item=item,
        cross=features("cross", mapping.cross, cross),
        context=features("context", mapping.context, {}),
        lifelong_cap=mapping.lifelong_cap,
        realtime_cap=mapping.realtime_cap,
    )


def _feature(name: str, source: Source, words: Vocabulary, word: str, values: Values) -> Feature:
    match source:
        case IdColumn():
            return IdFeature(name=name, table=source.table or name)
        case CategoryColumn():
            return CategoryFeature(name=name, size=words.size(word))
        case ClockColumn():
            return CategoryFeature(name=name, size=CLOCK_SIZES[source.clock])
        case NumberColumn() | PastNumber():
            return NumberFeature(name=name, transform=learn_bins(values[name], source.bins))
