"""Labels of /v1/events become files: each once, in order, and what the stream lost is told."""

from pathlib import Path
from uuid import uuid4

import httpx
import pyarrow.parquet as pq
from click.testing import CliRunner
from redis import Redis

from service.cli import labels
from service.labels import export_labels
from tests.service.world import NOW_MS


def rows(directory: Path) -> list[dict[str, object]]:
    """Every label of the files, in the order of their names."""
    return [row for path in sorted(directory.glob("*.parquet")) for row in read(path)]


def read(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(path).to_pylist()
    return found


def send(client: httpx.Client, *actions: str) -> None:
    label = {"request_id": "r1", "item_id": -7}
    events = [
        {"event_id": f"e {a}", "timestamp": NOW_MS, "label": label | {"action": a}} for a in actions
    ]
    client.post("/v1/events", json={"user_id": "ü", "events": events}).raise_for_status()


def test_each_export_continues_after_the_last(
    client: httpx.Client, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    """Through the command: a new label is written once, and nothing when there is none."""
    redis.delete("mtgr:market:labels")
    for actions in (("exposure", "click"), ("order",), ()):
        if actions:
            send(client, *actions)
        result = CliRunner().invoke(labels, [str(tmp_path), "--redis-url", redis_url])
        assert result.exit_code == 0, result.output
        assert f"market: {len(actions)} labels" in result.output
    found = rows(tmp_path / "market")
    assert [row["action"] for row in found] == ["exposure", "click", "order"]
    assert found[0] == {
        "request_id": "r1",
        "event_id": "e exposure",
        "user_id": "ü",
        "item_id": -7,
        "time_ms": NOW_MS,
        "action": "exposure",
    }


def test_labels_that_the_stream_dropped_are_counted(redis: Redis, tmp_path: Path) -> None:
    """Between two exports, and before the first one."""
    schema = f"s-{uuid4().hex}"
    stream = f"mtgr:{schema}:labels"

    def add(count: int) -> None:
        for _ in range(count):
            redis.xadd(stream, {"item_id": 1, "time_ms": 2, "action": "click"})

    add(5)
    redis.xtrim(stream, maxlen=3, approximate=False)
    assert vars(export_labels(redis, schema, tmp_path)) == {"written": 3, "lost": 2}
    add(6)
    redis.xtrim(stream, maxlen=4, approximate=False)
    assert vars(export_labels(redis, schema, tmp_path)) == {"written": 4, "lost": 2}
    assert vars(export_labels(redis, schema, tmp_path)) == {"written": 0, "lost": 0}
