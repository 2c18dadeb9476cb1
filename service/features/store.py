"""Features of users and items in Redis: one MGET a request, one script to append behaviour.

A user that was read lately is served from memory until Redis tells that it has changed, and what it
tells again unchanged is not checked again. Reading never fails: when Redis does, what it said of
the user last is used again; a part that is absent, unreadable or out of reach becomes its default.
Either is named. Writing raises DependencyFailed unless Redis has acknowledged it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from model_def.batch import Rows
from model_def.schema import FeatureSchema
from service.breaker import Breaker
from service.deadline import Deadline
from service.errors import DependencyFailed
from service.features.codec import ItemCodec
from service.features.items import ItemCache
from service.features.reader import Reader
from service.features.remembered import RememberedUsers
from service.features.users import PARTS, StoredUser, UserCodec, Values
from service.ranking import Floats, RankRequest, UserFeatures
from service.settings import StoreSettings

Taken = TypeVar("Taken")

KEPT_TIMES_CAP = 4
"""A real-time sequence keeps this many times its cap: events may come late and out of order."""


def connect(url: str, connections: int) -> "Redis":
    """A client of `url` (redis://, rediss:// or unix://) with a bounded pool.

    One retry, at once, for a connection that went stale; waiting is the deadline's business. A
    new connection is one round trip: a request that needs one pays for it.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=None,
        retry=Retry(NoBackoff(), 1),
        protocol=2,
        driver_info=None,
    )
    return Redis.from_pool(pool)


async def connect_ahead(redis: "Redis", count: int, deadline: Deadline) -> bool:
    """Open connections before the first requests need them; whether Redis answered on all."""
    try:
        with deadline.bound("redis"):
            answers = await asyncio.gather(
                *[redis.ping() for _ in range(count)], return_exceptions=True
            )
    except DependencyFailed:
        return False
    return not any(isinstance(answer, BaseException) for answer in answers)


def key(schema: FeatureSchema, part: str, name: str | int) -> str:
    """`mtgr:schema:part:{name}`; the braces make a user's keys one slot of a cluster."""
    return _key(schema, part, quoted(name))


def _key(schema: FeatureSchema, part: str, quoted_name: str) -> str:
    return f"mtgr:{schema.name}:{part}:{{{quoted_name}}}"


def quoted(name: str | int) -> str:
    """A name as it stands in keys, without the signs that divide them."""
    text = str(name)
    return text if text.isascii() and text.isalnum() else quote(text, safe="")


class FeatureStore:
    """The features of one schema. Implements `service.ranking.Features`."""

    def __init__(
        self,
        redis: "Redis",
        schema: FeatureSchema,
        settings: StoreSettings,
        breaker: Breaker | None = None,
    ):
        """`breaker` is the server's, shared by every store over it."""
        self._redis, self._schema = redis, schema
        self.settings = settings
        self._breaker = breaker or Breaker("redis")
        self._remembered = RememberedUsers(
            settings.remembered_users_bytes, settings.user_cache_ttl_s
        )
        self.reader = Reader(redis.connection_pool, self._changed)
        layouts = schema.layouts
        self._codec = UserCodec(schema)
        self._prefixes = [_key(schema, part, "").removesuffix("}") for part in PARTS.values()]
        self._item = ItemCodec(layouts["item"], schema.layout_hash)
        self._cache = ItemCache(settings.item_cache_items, settings.item_cache_ttl_s)
        self._append = redis.register_script(
            files("service.features").joinpath("append.lua").read_text()
        )
        self._places = {
            feature.name: (carrier, position, getattr(layouts["item"], carrier).index(feature))
            for carrier in ("ids", "categories", "numbers")
            for position, feature in enumerate(getattr(layouts["candidate"], carrier))
            if feature in schema.item
        }

    async def user(self, user_id: str, time_ms: int, deadline: Deadline) -> UserFeatures:
        """Everything known of a user, in one round trip."""
        name = quoted(user_id)
        stored = self._remembered.current(name)
        missing: Mapping[str, str] = {} if stored is None else stored.missing
        if stored is None:
            keys = [f"{prefix}{name}}}" for prefix in self._prefixes]
            try:
                stored = await self._values(keys, deadline, partial(self._take, name))
                missing = stored.missing
            except DependencyFailed as failure:
                stored = self._remembered.get(name)
                missing = dict.fromkeys(PARTS, "remembered" if stored else failure.reason)
                stored = stored or self._codec.stranger
        return UserFeatures(
            snapshot_ms=time_ms if stored.snapshot_ms is None else stored.snapshot_ms,
            stored_ms=stored.stored_ms,
            event_ms=stored.event_ms,
            profile=stored.profile,
            lifelong=stored.lifelong,
            realtime=stored.realtime,
            static=stored.static,
            events=stored.events,
            missing=missing,
        )

    def _take(self, name: str, values: Values) -> StoredUser:
        """A user's stored values decoded, and remembered."""
        user = self._codec.decode(values, before=self._remembered.get(name))
        self._remembered.keep(name, user)
        return user

    def _changed(self, changed: bytes | None) -> None:
        """A key, or any where None, holds another value than it did."""
        if changed is None:
            self._remembered.any_changed()
            return
        _, _, part, name = changed.decode().split(":")
        if part == "item":
            self._cache.changed(int(name[1:-1]))
        else:
            self._remembered.changed(name[1:-1])

    async def complete(
        self, request: RankRequest, deadline: Deadline
    ) -> tuple[Rows, Mapping[str, str]]:
        """The request's candidates with absent item features taken from the item records."""
        if not request.absent:
            return request.candidates, {}
        wanted = np.logical_or.reduce(list(request.absent.values()))
        positions = np.flatnonzero(wanted)
        records, known, why = await self._items(request.item_ids[positions], deadline)
        rows = request.candidates.copy()
        for name, without in request.absent.items():
            carrier, column, source = self._places[name]
            found = known & without[positions]
            rows[carrier][positions[found], column] = records["features"][carrier][found, source]
        return rows, {"item": why} if why else {}

    async def popularity(self, item_ids: NDArray[np.int64], deadline: Deadline) -> Floats:
        """[K] popularity from the item records, NaN where there is none."""
        records, known, _ = await self._items(item_ids, deadline)
        return np.where(known, records["popularity"], np.nan)

    async def _items(
        self, item_ids: NDArray[np.int64], deadline: Deadline
    ) -> tuple[NDArray[np.void], NDArray[np.bool_], str | None]:
        """Records [K] (zero where unknown), which are known, and why the others are not."""
        ids = item_ids.tolist()
        values, unknown = self._cache.split(ids)
        why = None
        if unknown:
            try:
                keys = [key(self._schema, "item", item_id) for item_id in unknown]
                values |= await self._values(keys, deadline, partial(self._take_items, unknown))
            except DependencyFailed as failure:
                why = failure.reason
                values |= self._cache.outdated(unknown)
        found = [values.get(item_id) for item_id in ids]
        whole = np.array([v is not None and len(v) == self._item.record_bytes for v in found])
        decoded, good = self._item.decode([v for v, w in zip(found, whole, strict=True) if w and v])
        known = whole.copy()
        known[whole] = good
        records = np.zeros(len(ids), decoded.dtype)
        records[known] = decoded[good]
        if not why and not known.all():
            stored = np.array([v is not None for v in found])
            torn = (stored & ~whole).any()
            why = "corrupt" if not good.all() else "truncated" if torn else "absent"
        return records, known, why

    def _take_items(self, item_ids: Sequence[int], values: Values) -> dict[int, bytes | None]:
        fresh = dict(zip(item_ids, values, strict=True))
        self._cache.keep(fresh)
        return fresh

    async def put_user(
        self, user_id: str, snapshot_ms: int, profile: Rows, lifelong: Rows, deadline: Deadline
    ) -> int:
        """Replace a user's profile and lifelong sequence, both or neither; lifelong rows kept."""
        kept = lifelong[max(0, len(lifelong) - self._schema.lifelong_cap) :]
        values = {
            key(self._schema, "profile", user_id): self._codec.profile.encode(snapshot_ms, profile),
            key(self._schema, "static", user_id): self._codec.lifelong.encode(snapshot_ms, kept),
        }
        await self._tell(lambda: self._redis.mset(values), deadline)
        self._remembered.changed(quoted(user_id))
        return len(kept)

    async def append(self, user_id: str, events: Rows, deadline: Deadline) -> int:
        """Append behaviour, each event id once; how many were new."""
        if not len(events):
            return 0
        arguments: list[bytes | int] = [
            self._codec.realtime.header,
            self._codec.realtime.record_bytes,
            KEPT_TIMES_CAP * self._schema.realtime_cap,
            1000 * self.settings.realtime_ttl_s,
            *self._codec.realtime.encode(events),
        ]
        keys = [key(self._schema, "rt", user_id)]
        new = int(await self._tell(lambda: self._append(keys, arguments), deadline))
        self._remembered.changed(quoted(user_id))
        return new

    async def put_items(self, items: Rows, popularity: Floats, deadline: Deadline) -> None:
        """Replace the records of items (rows of the `item` layout, `item_id` among them)."""
        names = [feature.name for feature in self._schema.layouts["item"].ids]
        ids = items["ids"][:, names.index("item_id")].tolist()
        keys = [key(self._schema, "item", item_id) for item_id in ids]
        values = dict(zip(keys, self._item.encode(items, popularity), strict=True))
        await self._tell(lambda: self._redis.mset(values), deadline)

    async def label(self, labels: Sequence[dict[str, Any]], deadline: Deadline) -> None:
        """Write outcomes of ranked requests to the label stream, for joining with what was served.

        At least once: a caller that retries may write one twice, under the same `event_id`.
        """
        if not labels:
            return
        pipeline = self._redis.pipeline(transaction=True)
        stream, most = f"mtgr:{self._schema.name}:labels", self.settings.label_stream_entries
        for entry in labels:
            pipeline.xadd(stream, cast(Any, entry), maxlen=most, approximate=True)
        await self._tell(pipeline.execute, deadline)

    async def _values(
        self, keys: Sequence[str], deadline: Deadline, take: Callable[[Values], Taken]
    ) -> Taken:
        """What `take` makes of the keys' values, read at once."""
        deadline = deadline.within(self.settings.redis_timeout_ms / 1e3)
        with self._breaker.call(deadline):
            taken: Taken = await self._do(lambda: self.reader.mget(keys, take), deadline)
            return taken

    async def _tell(self, command: Callable[[], Any], deadline: Deadline) -> Any:
        self._breaker.check()
        return await self._do(command, deadline)

    async def _do(self, command: Callable[[], Awaitable[Any]], deadline: Deadline) -> Any:
        with deadline.bound("redis"):
            try:
                return await command()
            except (RedisConnectionError, RedisTimeoutError, OSError):
                raise DependencyFailed("redis", "unavailable") from None
            except (RedisError, ValueError):
                # ValueError: an answer that the client cannot make sense of
                raise DependencyFailed("redis", "error") from None
