"""`mtgr load-features` and `mtgr rank` against real logs, a real Redis and a real gateway."""

from pathlib import Path

import httpx
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from redis import Redis

from model_def.batch import realtime_window
from model_def.data.parquet import write_logs
from model_def.data.stored import items_of, users_of
from service.cli import load_features, rank
from service.features.codec import ItemCodec, LogCodec, TableCodec
from service.features.store import key
from tests.model_def.log_examples import SCHEMA, random_logs
from tests.service.world import request

UNTIL_MS = 1500


def loaded(redis: Redis, part: str, name: str | int) -> bytes:
    value = redis.get(key(SCHEMA, part, name))
    assert isinstance(value, bytes)
    return value


def test_logs_are_loaded_as_they_were_at_a_time(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Each user's newest snapshot by then, the events between, and items as last shown."""
    logs = random_logs(7)
    write_logs(tmp_path, logs)
    arguments = [str(tmp_path), "--redis-url", redis_url, "--until-ms", str(UNTIL_MS)]
    result = CliRunner().invoke(load_features, arguments)
    assert result.exit_code == 0, result.output
    assert "3 users and" in result.output

    layouts, layout_hash = SCHEMA.layouts, SCHEMA.layout_hash
    for user in sorted(set(logs.snapshots.user_id.tolist())):
        row = np.flatnonzero(logs.snapshots.user_id == user)[-1]
        codec = TableCodec(layouts["profile"], layout_hash)
        snapshot_ms, profile = codec.decode(loaded(redis, "profile", user))
        assert snapshot_ms == logs.snapshots.snapshot_ms[row] == 1000
        assert profile.tobytes() == logs.snapshots.profile[row : row + 1].tobytes()
        stored, damage = LogCodec(layouts["realtime"], layout_hash).decode(
            redis.get(key(SCHEMA, "rt", user))  # type: ignore[arg-type] # bytes: no decoding
        )
        theirs = logs.events.rows[logs.events.user_id == user]
        expected = realtime_window(theirs, 1000, UNTIL_MS, cap=100)
        assert damage is None
        assert stored.tobytes() == expected.tobytes()

    times = np.repeat(logs.requests.context["time_ms"], logs.requests.candidate_counts)
    shown = logs.requests.candidates[(times < UNTIL_MS)]
    item = ItemCodec(layouts["item"], layout_hash)
    for item_id in set(shown["ids"][:, 0].tolist()):
        records, good = item.decode([loaded(redis, "item", item_id)])
        assert good.all()
        mine = (logs.requests.candidates["ids"][:, 0] == item_id) & (times < UNTIL_MS)
        last = np.flatnonzero(mine & (times == times[mine].max()))
        prices = logs.requests.candidates["numbers"][last, 0]
        assert records["features"]["numbers"][0, 0] in prices
        assert records["popularity"][0] == (logs.requests.click[mine] == 1).sum()


def test_nothing_of_the_future_is_loaded() -> None:
    """A user whose first snapshot is later is not there yet, nor an item not yet shown."""
    logs = random_logs(7)
    assert list(users_of(logs, -1)) == []
    assert [len(part) for part in items_of(logs, 0)] == [0, 0]


@pytest.mark.parametrize("format", ["json", "msgpack"])
def test_rank_prints_the_table(client: httpx.Client, tmp_path: Path, format: str) -> None:
    """Every item with its score, CTR and CTCVR, best first, and every stage's time."""
    path = tmp_path / f"request.{format}"
    path.write_bytes(getattr(msgspec, format).encode(request(5, top_k=3, request_id="r7")))
    result = CliRunner().invoke(rank, [str(path), "--url", str(client.base_url)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("request r7, model v1, ranked by model")
    table = lines.index(next(line for line in lines if "CTCVR" in line))
    assert [line.split()[0] for line in lines[table + 1 : table + 4]] == ["1", "2", "3"]
    assert lines[table + 4] == ""
    assert any(line.split()[:1] == ["backend"] for line in lines)


def test_rank_prints_what_was_wrong(client: httpx.Client, tmp_path: Path) -> None:
    """A refused request ends in the field's path and a failing status."""
    path = tmp_path / "request.json"
    path.write_bytes(msgspec.json.encode(request(top_k=0)))
    result = CliRunner().invoke(rank, [str(path), "--url", str(client.base_url)])
    assert result.exit_code == 1
    assert "at $.top_k, expected 1 to 2000" in result.output
