"""Settings of the gateway: environment variables `MTGR_<NAME>`, a file, or flags of the same names.

Every description carries its unit. What is unknown or contradicts itself is refused before the
server starts.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model_def.config import ScoreFormula
from model_def.schema import Frozen

PREFIX = "MTGR_"

SceneName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]


def _address(text: str) -> str:
    if re.fullmatch(r"([^\s:/]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}", text) is None:
        raise ValueError(f"{text!r}: expected host:port, as in triton:8001")
    return text


Address = Annotated[str, AfterValidator(_address)]
"""host:port; an IPv6 address in brackets."""

Rung = Literal["recall_score", "popularity"]


class ModelSettings(Frozen):
    """One engine in memory, under an alias that scenes refer to."""

    package: Path = Field(description="a package, or a link to one: moving it switches engines")
    engine: Literal["onnx-cpu", "cuda-graph", "tensorrt"] = "onnx-cpu"
    backend: Literal["inprocess", "triton"] = "inprocess"
    threads: int = Field(default=1, ge=1, description="inprocess: threads for one batch")
    workers: int = Field(default=1, ge=1, description="inprocess: batches run at a time")
    queue: int = Field(default=64, ge=1, description="batches run or waiting at most")
    triton: tuple[Address, ...] = Field(
        default=(), description="triton: host:port of each server's gRPC; a user stays with one"
    )
    triton_http: tuple[Address, ...] = Field(
        default=(), description="host:port of the same servers' HTTP: requests go there, and faster"
    )
    shared_requests: int = Field(
        default=0, ge=0, description="triton on this host: requests in shared memory; 0: none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.backend == "triton") != bool(self.triton):
            raise ValueError("triton: needed by backend 'triton', and by no other")
        if self.triton_http and len(self.triton_http) != len(self.triton):
            raise ValueError("triton_http: one for each of triton, in its order, or none")
        return self


class FreshnessSettings(Frozen):
    """What to do where a user's features are too old. Without features there is no age."""

    snapshot_s: float | None = Field(
        default=None, gt=0, description="age of profile and lifelong sequence at most, seconds"
    )
    event_s: float | None = Field(
        default=None, gt=0, description="age of the last real-time event at most, seconds"
    )
    then: Literal["mark", "refuse"] = Field(
        default="mark", description="mark: rank, degraded by features_stale; refuse: 503"
    )


class SceneSettings(Frozen):
    """How requests of one scene are ranked."""

    model: str
    top_k: int = Field(default=50, ge=1, description="items answered by default")
    score: ScoreFormula | None = Field(default=None, description="in place of the package's")
    fallback: tuple[Rung, ...] = Field(
        default=("recall_score", "popularity"), description="then input order"
    )
    freshness: FreshnessSettings = Field(
        default=FreshnessSettings(), description="by default any age is served"
    )


class StoreSettings(BaseSettings):
    """Where features are, and how long to keep and to wait for them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False
    )

    redis_url: str = Field(
        default="", description="redis://, rediss:// or unix:// URL; empty: a server of our own"
    )
    redis_dir: Path = Field(
        default=Path("var/redis"), description="directory where our own Redis server keeps its data"
    )
    redis_connections: int = Field(
        default=16, ge=1, description="connections to Redis for writing, all opened at the start"
    )
    redis_timeout_ms: int = Field(
        default=20, ge=1, description="longest wait for an answer of Redis, milliseconds"
    )
    redis_write_timeout_ms: int = Field(
        default=1000, ge=1, description="longest wait for Redis to acknowledge, milliseconds"
    )
    realtime_ttl_s: int = Field(
        default=7 * 24 * 3600, ge=1, description="life of a real-time sequence, seconds"
    )
    item_cache_items: int = Field(default=100_000, ge=0, description="item records kept, items")
    item_cache_ttl_s: int = Field(default=60, ge=0, description="age of a kept record, seconds")
    remembered_users_bytes: int = Field(
        default=64 << 20,
        ge=0,
        description="users' features kept, until they change and for when Redis fails, bytes",
    )
    user_cache_ttl_s: int = Field(
        default=0,
        ge=0,
        description="a kept user is not asked for again for so long unless Redis tells that it "
        "changed, seconds; 0: asked for each time",
    )
    label_stream_entries: int = Field(
        default=1_000_000, ge=1, description="length of the label stream, entries"
    )

    @model_validator(mode="after")
    def _one_redis(self) -> Self:
        if self.redis_url and "redis_dir" in self.model_fields_set:
            raise ValueError("redis_url and redis_dir exclude each other")
        if self.redis_url and not self.redis_url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("redis_url: expected redis://, rediss:// or unix://")
        return self


class Settings(StoreSettings):
    """All of them, with defaults that serve one package on one machine."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port; 0 picks a free one")
    workers: int = Field(
        default=1, ge=1, description="processes, each with engines and bounds of its own"
    )
    models: dict[SceneName, ModelSettings] = Field(
        description='JSON, engines by alias: {"home": {"package": "DIR", "threads": 2}}'
    )
    scenes: dict[SceneName, SceneSettings] = Field(
        default={},
        description='JSON, how scenes are ranked: {"feed": {"model": "home", "top_k": 50}}; '
        "by default one scene for each model, of its name",
    )
    default_scene: str = Field(
        default="", description="scene of a request that names none; needed if there are several"
    )
    settings_file: Path | None = Field(
        default=None,
        description="TOML file of settings, over the environment and under flags; read again on "
        "SIGHUP",
    )
    max_connections: int = Field(default=2048, ge=1, description="open connections at most")
    read_timeout_ms: int = Field(
        default=10_000, ge=1, description="longest time a request takes to arrive, milliseconds"
    )
    keep_alive_s: int = Field(
        default=75, ge=1, description="life of a silent connection, seconds; callers close sooner"
    )
    drain_s: int = Field(
        default=20, ge=0, description="after SIGTERM, time to finish what was accepted, seconds"
    )
    max_body_bytes: int = Field(default=8 << 20, ge=1024, description="largest body, bytes")
    max_candidates: int = Field(default=2000, ge=1, description="most candidates of a request")
    max_events: int = Field(default=1000, ge=1, description="most events of a request")
    clock_skew_ms: int = Field(
        default=300_000, ge=0, description="how far ahead a caller's clock may be, milliseconds"
    )
    default_deadline_ms: int = Field(
        default=200, ge=1, description="deadline of a request that gives none, milliseconds"
    )
    max_deadline_ms: int = Field(
        default=60_000, ge=1, description="longest deadline accepted, milliseconds"
    )
    answer_reserve_ms: int = Field(
        default=15, ge=0, description="kept of each deadline for writing the answer, milliseconds"
    )
    admin_token: str = Field(
        default="", description="bearer token that may switch engines over HTTP; empty: nobody"
    )
    max_in_flight: int = Field(
        default=256, ge=1, description="requests worked on at a time at most; fewer where more wait"
    )
    max_waiting: int = Field(
        default=1024, ge=1, description="requests waiting for their turn at most"
    )
    api_keys_file: Path | None = Field(
        default=None, description="JSON, callers' keys (see 'mtgr key'); none: everybody may call"
    )
    caller_header: str = Field(
        default="", description="header that tells callers apart without keys; empty: by address"
    )
    request_log_dir: str = Field(
        default="", description="directory for a log of what was served; empty: none"
    )
    request_log_share: float = Field(
        default=1.0, ge=0, le=1, description="share of the requests that are logged"
    )
    request_log_queue: int = Field(
        default=1000, ge=1, description="requests waiting to be written at most; more are dropped"
    )
    request_log_file_bytes: int = Field(
        default=32 << 20, ge=1, description="rows of one log file, bytes before compression"
    )
    request_log_file_s: float = Field(
        default=60.0, gt=0, description="longest wait for a log file to fill, seconds"
    )
    request_log_bytes: int = Field(
        default=10 << 30, ge=1, description="size of the log; the oldest files go first, bytes"
    )

    capture_dir: str = Field(
        default="", description="directory for slow and degraded requests; empty: none are kept"
    )
    capture_slow_ms: int = Field(
        default=100, ge=0, description="time in the server from which one is slow, milliseconds"
    )
    capture_every_s: float = Field(
        default=1.0, ge=0, description="least time between two captures of one reason, seconds"
    )
    capture_files: int = Field(default=1000, ge=1, description="captures kept; the oldest go first")
    capture_bytes: int = Field(
        default=1 << 30, ge=1, description="size of all captures; the oldest go first, bytes"
    )

    otel_endpoint: str = Field(
        default="", description="OTLP/HTTP URL to send traces to (.../v1/traces); empty: none"
    )
    otel_share: float = Field(
        default=0.01, ge=0, le=1, description="share of requests traced where callers do not say"
    )

    @model_validator(mode="before")
    @classmethod
    def _scene_a_model(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("scenes"):
            models = data.get("models")
            if isinstance(models, dict):
                return {**data, "scenes": {alias: {"model": alias} for alias in models}}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.models:
            raise ValueError("models: at least one package is needed")
        for name, scene in self.scenes.items():
            if scene.model not in self.models:
                raise ValueError(
                    f"scenes.{name}.model: {scene.model!r} is not one of {sorted(self.models)}"
                )
        if self.default_scene and self.default_scene not in self.scenes:
            raise ValueError(f"default_scene: not one of the scenes {sorted(self.scenes)}")
        if not self.default_scene and len(self.scenes) > 1:
            raise ValueError(f"default_scene: needed, one of {sorted(self.scenes)}")
        if self.default_deadline_ms > self.max_deadline_ms:
            raise ValueError("default_deadline_ms exceeds max_deadline_ms")
        return self
