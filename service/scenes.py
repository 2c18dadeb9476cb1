"""Which model ranks a scene: packages of different schemas, served side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from redis.asyncio import Redis

from model_def.batch import PackedBatch, Sample, pack
from model_def.config import PackageConfig
from model_def.rows import empty_rows
from model_def.schema import FeatureSchema
from service.backends.generation import Generation
from service.backends.switching import OpenModel
from service.breaker import Breaker
from service.errors import BadSetting, InvalidRequest
from service.features.store import FeatureStore
from service.http.wire import Formats, Wire, peek_scene
from service.metrics import Metrics
from service.ranking import Model
from service.settings import SceneSettings, Settings


@dataclass
class Served:
    """An alias: the engine that serves it now, with everything that its schema decides."""

    alias: str
    live: Generation
    features: FeatureStore
    wire: Wire

    @property
    def config(self) -> PackageConfig:
        """Of the engine that serves now; its features are the same for all that may."""
        return self.live.config


@dataclass(frozen=True)
class Scene:
    """What a request of one scene is ranked with."""

    name: str
    served: Served
    settings: SceneSettings

    @property
    def model(self) -> Model:
        """What serves now."""
        live = self.served.live
        return Model(
            version=live.config.version,
            schema=live.config.features,
            backend=live,
            formula=self.settings.score or live.config.model.score,
            fallback=self.settings.fallback,
            freshness=self.settings.freshness,
        )

    @property
    def top_k(self) -> int:
        """Items answered by default."""
        return self.settings.top_k


class Scenes:
    """Every scene by name; one of them is for requests that name none."""

    def __init__(
        self,
        served: Mapping[str, Served],
        settings: Settings,
        open_model: OpenModel,
        metrics: Metrics,
    ):
        self.served, self.open_model, self.metrics = served, open_model, metrics
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Other scenes over the same engines, and other waits for the features."""
        self.by_name = {
            name: Scene(name, self.served[scene.model], scene)
            for name, scene in settings.scenes.items()
        }
        self.default = settings.default_scene or next(iter(self.by_name))
        for served in self.served.values():
            served.features.settings = settings

    def pick(self, name: str | None) -> Scene:
        """The scene of that name, or the default one; raises InvalidRequest."""
        scene = self.by_name.get(self.default if name is None else name)
        if scene is None:
            raise InvalidRequest(
                "no such scene", path="$.scene", expected=f"one of {sorted(self.by_name)}"
            )
        return scene

    def read(
        self, kind: Literal["rank", "events", "user"], body: bytes, format: Formats
    ) -> tuple[Scene, Any]:
        """The scene that a body is for, and the body decoded by that scene's schema."""
        if len(self.served) == 1:
            (only,) = self.served.values()
            decoded = getattr(only.wire, kind).decode(body, format)
            return self.pick(decoded.scene), decoded
        scene = self.pick(peek_scene(body, format))
        return scene, getattr(scene.served.wire, kind).decode(body, format)


def build_scenes(settings: Settings, redis: "Redis", open_model: OpenModel) -> Scenes:
    """Open every package of the settings; engines are loaded later, by their `start`."""
    served: dict[str, Served] = {}
    metrics = Metrics()
    breaker = Breaker("redis", watch=metrics.watch("redis"))
    for alias, model in settings.models.items():
        config, backend = open_model(model)
        schema = config.features
        for other in served.values():
            theirs = other.config.features
            if theirs.name == schema.name and theirs.layout_hash != schema.layout_hash:
                raise BadSetting(
                    f"models.{alias}, models.{other.alias}: two layouts of records under one "
                    f"schema name {schema.name!r}; rename one schema"
                )
        features = FeatureStore(redis, schema, settings, breaker)
        live = Generation(config, backend, metrics.watch(alias))
        served[alias] = Served(alias, live, features, Wire(schema))
    return Scenes(served, settings, open_model, metrics)


def warm_up(schema: FeatureSchema, max_candidates: int) -> tuple[PackedBatch, ...]:
    """The smallest and the largest request: full sequences, one candidate and the most."""
    layouts = schema.layouts
    realtime = empty_rows(layouts["realtime"], schema.realtime_cap)
    realtime["time_ms"] = realtime["event_id"] = np.arange(schema.realtime_cap) + 1
    context = empty_rows(layouts["context"], 1)
    context["time_ms"] = schema.realtime_cap + 1
    return tuple(
        pack(
            schema,
            Sample(
                snapshot_ms=0,
                profile=empty_rows(layouts["profile"], 1),
                lifelong=empty_rows(layouts["lifelong"], schema.lifelong_cap),
                realtime=realtime,
                context=context,
                candidates=empty_rows(layouts["candidate"], count),
                context_candidates=np.array([count], np.int32),
            ),
        )
        for count in (1, max_candidates)
    )
