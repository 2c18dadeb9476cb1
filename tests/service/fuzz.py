"""Bodies, records and requests that nobody meant: refused in words, whatever they are.

python -m tests.service.fuzz [--cases 100000] [--only NAME]

Four targets: the JSON and the MessagePack decoder with validation behind them, the parsers of what
Redis holds, and the whole gateway over HTTP with cases that schemathesis makes from its OpenAPI
document, good and bad. Each case that is made is also mangled, byte by byte, nine times. Prints
cases by outcome, seconds, and resident memory before and after.
`tests/service/test_fuzz.py` runs a few thousand of each.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from os import sysconf
from pathlib import Path
from time import monotonic
from typing import Any

import click
import httpx
import msgspec
import numpy as np
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from model_def.rows import columns_from_rows
from service.errors import InvalidRequest
from service.features.codec import ItemCodec, LogCodec, TableCodec, Unreadable
from service.http.validate import behaviour, deadline_ms, rank_request, user_snapshot
from service.http.wire import Formats, Wire
from tests.service.gateway_process import gateway_process
from tests.service.test_decoders import (
    LIMITS,
    column_snapshots,
    columns,
    damaged,
    event_bodies,
    rows,
    snapshots,
)
from tests.service.world import NOW_MS, SCHEMA

MOST_WORDS = 10_000
"""Characters of a refusal: it must not be as long as what it refuses."""

VARIANTS = 10
"""Cases made of one that hypothesis or schemathesis has made: itself, and the rest mangled."""

ROUND = 100
"""Draws of one run of hypothesis, which remembers every draw that it has made."""

SETTINGS = settings(
    max_examples=ROUND,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Fuzzed:
    """What came of the cases of one target."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: tuple[float, float] = (0.0, 0.0)
    """MiB resident before and after; before is once the first round is done."""

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.outcomes.most_common())
        before, after = self.memory
        return (
            f"{self.name}: {self.outcomes.total()} cases in {self.seconds:.0f} s: {counts}; "
            f"resident {before:.0f} MiB before, {after:.0f} after"
        )


def fuzz(
    name: str,
    strategy: st.SearchStrategy[Any],
    check: Callable[[Any], Iterable[str]],
    cases: int,
    pid: int | str = "self",
) -> Fuzzed:
    """Run `check`, which gives an outcome for each variant and raises what must not be, on draws
    of `strategy` until there are so many cases."""
    done = Fuzzed(name)
    start = monotonic()

    def once(case: Any) -> None:
        done.outcomes.update(check(case))

    before = 0.0
    while done.outcomes.total() < cases:
        SETTINGS(given(strategy)(once))()
        before = before or resident_mib(pid)
    done.seconds, done.memory = monotonic() - start, (before, resident_mib(pid))
    return done


def resident_mib(pid: int | str) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * sysconf("SC_PAGE_SIZE") / (1 << 20)


# Bodies


def variants(content: bytes, seed: int) -> list[bytes]:
    """As it is, and with bytes flipped, cut out, repeated or put in."""
    rng = np.random.default_rng(seed)
    return [content, *(mangled(content, rng) for _ in range(VARIANTS - 1))]


def mangled(content: bytes, rng: np.random.Generator) -> bytes:
    """With up to three changes."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(data) + 1))
        length = int(rng.integers(1, 9))
        match rng.integers(0, 4):
            case 0:
                data[at : at + length] = rng.bytes(min(length, len(data) - at))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case _:
                data[at:at] = rng.bytes(length)
    return bytes(data)


KINDS = {
    "rank": rows | columns,
    "events": event_bodies,
    "user": snapshots | column_snapshots,
}
SEEDS = st.integers(0, 1 << 32)
WIRE = Wire(SCHEMA)


def encoded(format: Formats, document: Any) -> bytes:
    """Bytes of a document; what MessagePack cannot say is its JSON, and so malformed."""
    try:
        encode = msgspec.json.encode if format == "json" else msgspec.msgpack.encode
        return encode(document)
    except OverflowError:
        return msgspec.json.encode(document)


def bodies(format: Formats) -> st.SearchStrategy[tuple[str, bytes, int]]:
    """(kind, bytes, seed): documents with damage, as text and as values, and plain noise."""

    def of(kind: str) -> st.SearchStrategy[tuple[str, bytes, int]]:
        documents = damaged(KINDS[kind]).map(partial(encoded, format))
        return st.tuples(st.just(kind), documents | st.binary(max_size=64), SEEDS)

    return st.sampled_from(sorted(KINDS)).flatmap(of)


def read_bodies(format: Formats, case: tuple[str, bytes, int]) -> list[str]:
    """Outcomes of the variants."""
    kind, content, seed = case
    return [read_body(format, kind, body) for body in variants(content, seed)]


def read_body(format: Formats, kind: str, body: bytes) -> str:
    """As the endpoints do it."""
    try:
        decoded = getattr(WIRE, kind).decode(body, format)
        if kind == "rank":
            deadline_ms(decoded, LIMITS)
            request = rank_request(decoded, SCHEMA, LIMITS, NOW_MS, "r", 3)
            assert len(request.candidates) == len(request.item_ids) <= LIMITS.max_candidates
        elif kind == "events":
            behaviour(decoded, SCHEMA, LIMITS, NOW_MS)
        else:
            user_snapshot(decoded, SCHEMA, LIMITS, NOW_MS)
    except InvalidRequest as invalid:
        refused = invalid
    else:
        return "taken"
    assert refused.path
    assert len(refused.problem) < MOST_WORDS
    return refused.type


# Records

LAYOUTS = SCHEMA.layouts
HASH = SCHEMA.layout_hash
TABLE, LOG = TableCodec(LAYOUTS["lifelong"], HASH), LogCodec(LAYOUTS["realtime"], HASH)
ITEM = ItemCodec(LAYOUTS["item"], HASH)


def stored(kind: str, seed: int) -> bytes:
    """A good value of random records."""
    rng = np.random.default_rng(seed)

    def rows_of(segment: str) -> Any:
        dtype, count = LAYOUTS[segment].record, int(rng.integers(0, 9))
        return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype)

    if kind == "table":
        return TABLE.encode(int(rng.integers(0, 1 << 62)), rows_of("lifelong"))
    if kind == "log":
        return LOG.header + b"".join(LOG.encode(rows_of("realtime")))
    items = rows_of("item")
    return b"".join(ITEM.encode(items, rng.random(len(items))))


def read_records(case: tuple[str, bytes, int]) -> list[str]:
    """Outcomes of the variants."""
    kind, content, seed = case
    return [read_record(kind, value) for value in variants(content, seed)]


def read_record(kind: str, value: bytes) -> str:
    """As the feature store does it: rows of the schema's ranges, or a word for why not."""
    segment = {"table": "lifelong", "log": "realtime", "item": "item"}[kind]
    try:
        if kind == "table":
            _, decoded = TABLE.decode(value)
            word = "whole"
        elif kind == "log":
            decoded, reason = LOG.decode(value)
            word = reason or "whole"
        else:
            size = ITEM.record_bytes
            whole = [value[i : i + size] for i in range(0, len(value) - size + 1, size)]
            records, good = ITEM.decode(whole)
            decoded, word = records["features"][good], "whole" if good.all() else "corrupt"
    except Unreadable as unreadable:
        return unreadable.reason
    if kind != "item":
        sizes = {f.name: f.size for f in LAYOUTS[segment].features if f.kind == "category"}
        for name, column in columns_from_rows(LAYOUTS[segment], decoded).items():
            assert ((column >= 0) & (column < sizes.get(name, np.inf))).all() or name not in sizes
    return word


RECORDS = st.sampled_from(["table", "log", "item"]).flatmap(
    lambda kind: st.tuples(
        st.just(kind), SEEDS.map(partial(stored, kind)) | st.binary(max_size=200), SEEDS
    )
)


# The whole gateway


@schemathesis.serializer("application/msgpack")
def _messagepack(context: Any, value: Any) -> bytes:
    return encoded("msgpack", value)


def over_http(url: str, cases: int, pid: int | str) -> list[Fuzzed]:
    """Good and bad cases of every operation of the OpenAPI document, over HTTP."""
    document = httpx.get(f"{url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    targets = [
        (f"{operation.method.upper()} {operation.path}, {mode.value} cases", strategy)
        for operation in operations
        if operation.body or operation.path_parameters
        for mode in modes
        for strategy in [operation.as_strategy(generation_mode=mode)]
    ]
    with requests.Session() as session:

        def ask(case: Any) -> Iterator[str]:
            sent = requests.Request(**case.as_transport_kwargs(base_url=url)).prepare()
            content = sent.body or b""
            for body in variants(content if isinstance(content, bytes) else content.encode(), 0):
                sent.prepare_body(body, None)
                answer = session.send(sent)
                refused = answer.status_code < 500 or "retry-after" in answer.headers
                assert refused, answer.content
                assert b"Traceback" not in answer.content
                yield str(answer.status_code)

        return [fuzz(name, s, ask, -(-cases // len(targets)), pid) for name, s in targets]


def decoders_and_records(cases: int) -> dict[str, Callable[[], list[Fuzzed]]]:
    """Targets that need no server, by name."""
    return {
        "json": lambda: [fuzz("JSON", bodies("json"), partial(read_bodies, "json"), cases)],
        "messagepack": lambda: [
            fuzz("MessagePack", bodies("msgpack"), partial(read_bodies, "msgpack"), cases)
        ],
        "records": lambda: [fuzz("records of Redis", RECORDS, read_records, cases)],
    }


def gateway(cases: int) -> list[Fuzzed]:
    """The gateway in a process of its own: its memory is not the fuzzer's."""
    with (
        tempfile.TemporaryDirectory(prefix="mtgr-") as name,
        gateway_process(Path(name)) as (client, process),
    ):
        found = over_http(str(client.base_url).rstrip("/"), cases, process.pid)
        process.terminate()
        assert process.wait(60) == 0
        return found


@click.command()
@click.option("--cases", default=100_000, show_default=True, help="of each target")
@click.option("--only", type=click.Choice(["json", "messagepack", "records", "gateway"]))
def main(cases: int, only: str | None) -> None:
    """Fuzz every target."""
    targets = {**decoders_and_records(cases), "gateway": lambda: gateway(cases)}
    for name, run in targets.items():
        if only in (None, name):
            for done in run():
                click.echo(str(done))
                sys.stdout.flush()


if __name__ == "__main__":
    main()
