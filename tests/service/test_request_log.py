"""The request log: what was served is what is written, within bounds, and nobody waits for it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from model_def.batch import PackedBatch, pack
from model_def.schema import FeatureSchema
from model_def.served import SCHEMA_KEY, ServedRequest, from_record
from service import request_log
from service.errors import BadSetting
from service.metrics import Metrics
from service.request_log import RequestLog, open_request_log
from tests.service.world import (
    SCHEMA,
    Arithmetic,
    event,
    opener,
    profile,
    request,
    running,
    settings,
)


def logged(directory: Path) -> list[ServedRequest]:
    """Every request of the log's files, in the order they were written."""
    out = []
    for path in sorted(directory.rglob("requests-*.parquet")):
        table = pq.read_table(path)
        schema = FeatureSchema.model_validate_json(table.schema.metadata[SCHEMA_KEY])
        out += [from_record(schema, record) for record in table.to_pylist()]
    return out


class Recording(Arithmetic):
    """Keeps the bytes of every batch it ran."""

    def __init__(self) -> None:
        self.batches: list[bytes] = []

    def run(self, batch: PackedBatch) -> Any:
        self.batches.append(batch.buffer.tobytes())
        return super().run(batch)


def test_the_log_holds_what_the_engine_saw_and_said(redis_url: str, tmp_path: Path) -> None:
    """Packing a logged request again gives the served bytes; scores and ranks are the answer's."""
    engine = Recording()
    with running(settings(redis_url, request_log_dir=str(tmp_path)), opener(SCHEMA, engine)) as c:
        assert c.put("/v1/users/u1", json=profile(12)).status_code == 200
        events = [event(str(i), 1_759_999_000_000 + 1000 * i) for i in range(9)]
        assert c.post("/v1/events", json={"user_id": "u1", "events": events}).status_code == 200
        answers = [
            c.post("/v1/rank", json=request(7, request_id=f"r{i}", top_k=3)).json()
            for i in range(2)
        ]
    served = logged(tmp_path)
    assert [s.request_id for s in served] == ["r0", "r1"]
    packed = [pack(SCHEMA, s.sample).buffer.tobytes() for s in served]
    assert packed == engine.batches[-2:]
    for one, answer in zip(served, answers, strict=True):
        ids = one.sample.candidates["ids"][one.answered, 0].tolist()
        assert ids == [item["item_id"] for item in answer["items"]]
        for task in ("ctr", "ctcvr"):
            expected = np.float32([item[task] for item in answer["items"]])
            assert np.array_equal(one.tasks[task][one.answered], expected)
        assert (one.user_id, one.scene, one.model_version) == ("u1", "home", "v1")
        assert (one.ranked_by, one.reason, len(one.scores)) == ("model", None, 7)


def test_without_pyarrow_the_gateway_starts_unless_a_log_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str
) -> None:
    """Off by default; asked for, the missing package is named with its remedy."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert open_request_log(settings(redis_url), Metrics()) is None
    with pytest.raises(BadSetting, match=r"request_log_dir: needs pyarrow: pip install"):
        open_request_log(settings(redis_url, request_log_dir=str(tmp_path)), Metrics())


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> ServedRequest:
    """One request, as the log holds it."""
    directory = tmp_path_factory.mktemp("one")
    with running(settings(redis_url, request_log_dir=str(directory)), opener(SCHEMA)) as client:
        client.post("/v1/rank", json=request(5)).raise_for_status()
    return logged(directory)[0]


def new_log(directory: Path, redis_url: str, **more: Any) -> tuple[RequestLog, Metrics]:
    metrics = Metrics()
    log = open_request_log(settings(redis_url, request_log_dir=str(directory), **more), metrics)
    assert log is not None
    return log, metrics


def outcomes(metrics: Metrics) -> dict[str, float]:
    """Requests by outcome."""
    samples = metrics.request_log.collect()[0].samples
    return {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total")}


def test_more_than_the_queue_holds_is_dropped_and_counted(
    served: ServedRequest, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is stuck, offering returns at once: what waits is bounded."""
    stuck, writing = Event(), Event()
    whole = request_log.write_file

    def slow(*arguments: Any) -> int:
        writing.set()
        assert stuck.wait(30)
        return whole(*arguments)

    monkeypatch.setattr(request_log, "write_file", slow)
    log, metrics = new_log(tmp_path, redis_url, request_log_queue=3, request_log_file_bytes=1)
    log.start()
    log.offer(SCHEMA, served)
    assert writing.wait(30)
    for _ in range(5):
        log.offer(SCHEMA, served)
    assert outcomes(metrics) == {"overflow": 2}
    stuck.set()
    log.close()
    assert outcomes(metrics) == {"overflow": 2, "written": 4}
    assert len(logged(tmp_path)) == 4


def test_a_disk_that_hangs_does_not_keep_the_gateway_from_stopping(
    served: ServedRequest, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing gives up, whether the queue is full or the last file does not end."""
    stuck, writing = Event(), Event()

    def hang(*arguments: Any) -> int:
        writing.set()
        assert stuck.wait(30)
        return 0

    monkeypatch.setattr(request_log, "write_file", hang)
    monkeypatch.setattr(request_log, "CLOSE_S", 0.05)
    log, _ = new_log(tmp_path, redis_url, request_log_queue=1, request_log_file_bytes=1)
    log.start()
    log.offer(SCHEMA, served)
    assert writing.wait(30)
    log.close()
    log.close()  # the queue holds the first one's end
    stuck.set()


def test_a_request_that_cannot_be_written_down_ends_nothing(
    served: ServedRequest, redis_url: str, tmp_path: Path
) -> None:
    """Counted as an error; the next is logged."""
    log, metrics = new_log(tmp_path, redis_url)
    log.start()
    log.offer(SCHEMA, ServedRequest(**{**vars(served), "sample": None}))
    log.offer(SCHEMA, served)
    log.close()
    assert outcomes(metrics) == {"error": 1, "written": 1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("NOT CHECKED: needs the right to mount a small file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_counted_and_recovered_from(
    served: ServedRequest, redis_url: str, small_disk: Path
) -> None:
    """No part of a file is left behind; once there is room, files are written again."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(60_000))
    for expected in ({"disk_full": 2}, {"written": 2}):
        log, metrics = new_log(small_disk, redis_url)
        log.start()
        for _ in range(2):
            log.offer(SCHEMA, served)
        log.close()
        assert outcomes(metrics) == expected
        assert not list(small_disk.rglob("*.partial"))
        ballast.unlink(missing_ok=True)
    assert len(logged(small_disk)) == 2


def test_a_directory_taken_away_is_an_error_and_comes_back(
    served: ServedRequest, redis_url: str, tmp_path: Path
) -> None:
    """The same log writes again after its directory was in the way of a file."""
    log, metrics = new_log(tmp_path / "log", redis_url, request_log_file_bytes=1)
    (tmp_path / "log").rmdir()
    (tmp_path / "log").write_text("in the way")
    log.start()
    log.offer(SCHEMA, served)
    while not outcomes(metrics):
        pass
    (tmp_path / "log").unlink()
    log.offer(SCHEMA, served)
    log.close()
    assert outcomes(metrics) == {"error": 1, "written": 1}


def test_the_oldest_files_go_when_the_log_is_full(
    served: ServedRequest, redis_url: str, tmp_path: Path
) -> None:
    """On disk the log stays within its size, and the removed files are counted."""
    log, metrics = new_log(tmp_path, redis_url, request_log_file_bytes=1)
    log.start()
    log.offer(SCHEMA, served)
    log.close()
    (first,) = tmp_path.rglob("*.parquet")
    limit = int(2.5 * first.stat().st_size)
    log, metrics = new_log(tmp_path, redis_url, request_log_file_bytes=1, request_log_bytes=limit)
    log.start()
    for _ in range(4):
        log.offer(SCHEMA, served)
    log.close()
    assert not first.exists()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.parquet")) <= limit
    assert metrics.request_log_removed.collect()[0].samples[0].value == 3


def test_a_share_is_of_request_ids(served: ServedRequest, redis_url: str, tmp_path: Path) -> None:
    """About the share asked for, and the same requests wherever they are served."""
    kept = []
    for name in ("one", "other"):
        log, _ = new_log(tmp_path / name, redis_url, request_log_share=0.25)
        log.start()
        for i in range(400):
            log.offer(SCHEMA, ServedRequest(**{**vars(served), "request_id": f"request {i}"}))
        log.close()
        kept.append([one.request_id for one in logged(tmp_path / name)])
    assert kept[0] == kept[1]
    assert 60 < len(kept[0]) < 140


def test_a_degraded_answer_is_logged_with_its_reason(redis_url: str, tmp_path: Path) -> None:
    """What ranked instead of the model, its scores, and no probabilities."""

    class Broken(Arithmetic):
        def run(self, batch: PackedBatch) -> Any:
            if batch.candidates == 4:
                raise RuntimeError("broken")
            return super().run(batch)

    with running(settings(redis_url, request_log_dir=str(tmp_path)), opener(SCHEMA, Broken())) as c:
        body = request(4)
        for i, row in enumerate(body["candidates"]):
            row["recall_score"] = float(i)
        answer: httpx.Response = c.post("/v1/rank", json=body)
    (one,) = logged(tmp_path)
    assert answer.json()["reason"] == one.reason == "backend_error"
    assert (one.ranked_by, one.tasks, one.scores.tolist()) == ("recall_score", {}, [0, 1, 2, 3])
    assert one.answered.tolist() == [3, 2, 1, 0]
