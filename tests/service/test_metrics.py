"""The catalogue says what is exported, and its names follow Prometheus's conventions."""

from urllib.parse import quote

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.catalogue import Entry, table
from service.histogram import GatheringHistogram
from service.metrics import DEADLINE_S, LATENCY_OBJECTIVE_S, SECONDS, Metrics
from tests.service.world import SCHEMA, event, opener, profile, request, running, settings

ENTRIES = Metrics().catalogue.entries
BASE_UNITS = ("seconds", "bytes", "ratio", "info")


def test_everything_exported_is_in_the_catalogue_and_the_other_way() -> None:
    """A scrape of a fresh gateway has exactly the catalogue's families, with its types, beside
    what every process tells of itself."""
    text = generate_latest(Metrics().registry).decode()
    exported = {
        family.name + "_total" * (family.type == "counter"): family.type
        for family in text_string_to_metric_families(text)
        if not family.name.startswith("process_")
    }
    assert exported == {entry.name: entry.type for entry in ENTRIES}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_names_follow_the_conventions(entry: Entry) -> None:
    """A base unit ends the name, of counters before `_total`; the meaning is a sentence; no label
    is an id."""
    stem = entry.name.removesuffix("_total")
    assert stem.startswith("mtgr_")
    for unit in BASE_UNITS:
        assert stem.endswith(f"_{unit}") == (entry.unit == unit)
    assert entry.meaning.endswith(".")
    assert not {"user_id", "item_id", "request_id"} & set(entry.labels)


def test_objectives_are_bucket_edges() -> None:
    """So the share of answers within the objective is counted, not interpolated."""
    assert {LATENCY_OBJECTIVE_S, DEADLINE_S} <= set(SECONDS)
    assert list(SECONDS) == sorted(SECONDS)


def test_histograms_count_as_prometheus_clients_own() -> None:
    """The same numbers, at bucket edges and beyond the last one too, make the same samples, however
    often they were counted meanwhile."""
    numbers = [0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 7.0]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    gathered = GatheringHistogram("h", "Of numbers.", ["of"], registry=ours, buckets=(1, 2))
    plain = Histogram("h", "Of numbers.", ["of"], registry=theirs, buckets=(1, 2))
    for number in numbers:
        gathered.labels("a").observe(number)
        plain.labels("a").observe(number)
        if number == 1.5:
            gathered.count()
    assert generate_latest(ours) == generate_latest(theirs)


def series(client: httpx.Client) -> set[str]:
    """Names and labels that a scrape tells."""
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_an_answer_is_counted_in_what_is_there(redis_url: str, user_id: str) -> None:
    """The first answer makes no series: its buckets would be made while it, and all that came with
    it, wait."""
    with running(settings(redis_url), opener(SCHEMA)) as client:
        client.put(f"/v1/users/{quote(user_id, safe='')}", json=profile())
        client.post("/v1/events", json={"user_id": user_id, "events": [event("e1")]})
        before = series(client)
        assert client.post("/v1/rank", json=request(user_id=user_id)).json()["degraded"] is False
        one = 'mtgr_requests_total{outcome="answered",scene="home"} 1.0'
        while one not in client.get("/metrics").text:
            pass
        assert series(client) == before


def test_table_has_a_row_for_each_metric() -> None:
    """`mtgr metrics` prints all of it."""
    lines = table(ENTRIES).splitlines()
    assert len(lines) == len(ENTRIES) + 2
    assert "| `mtgr_ready` | gauge | boolean | - |" in "\n".join(lines)
