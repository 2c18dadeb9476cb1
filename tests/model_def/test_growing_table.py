"""Growing id tables: a map that never moves its values, admission, eviction, Adam by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_def.chunks import CHUNK_ROWS, Chunks
from model_def.growing_table import Admission, GrowingTable, deduplicated, unit_noise
from model_def.id_table import KeyStore

ids = st.integers(-(1 << 63), (1 << 63) - 1)


def array(*values: int) -> np.ndarray:
    """int64 ids."""
    return np.array(values, np.int64)


def table(min_count: int = 1, max_ids: int | None = None, reserve: int = 0) -> GrowingTable:
    """Four values a row."""
    return GrowingTable(4, 0.5, 3, Admission(min_count, max_ids), reserve)


def values(growing: GrowingTable, *wanted: int) -> np.ndarray:
    """Embeddings [N, 4] of ids."""
    found = growing.look_up(array(*wanted))
    return found.records[:, 0][found.places]


@settings(max_examples=40)
@given(st.lists(st.lists(ids, max_size=60), max_size=6), st.lists(ids, max_size=20))
def test_key_store_is_a_map(parts: list[list[int]], others: list[int]) -> None:
    """However it grows, a key store finds the row of every id it was given, and of no other."""
    store, expected = KeyStore(), {}
    for part in parts:
        new = [value for value in dict.fromkeys(part) if value not in expected]
        rows = np.arange(len(expected) + 1, len(expected) + 1 + len(new), dtype=np.int32)
        store.insert(array(*new), rows)
        expected |= dict(zip(new, rows.tolist(), strict=True))
    queries = [*expected, *others, 0]
    assert store.find(array(*queries)).tolist() == [expected.get(q, 0) for q in queries]
    assert len(store) == len(expected)
    assert store.rows().tolist() == sorted(expected.values())


def test_growth_moves_no_values() -> None:
    """Growing past a chunk's end leaves every chunk and every value where it was."""
    chunks = Chunks(np.float32, (2,))
    chunks.reserve(10)
    first = chunks._chunks[0]
    rows = np.array([3, 9])
    chunks.put(rows, np.ones((2, 2), np.float32))
    chunks.reserve(3 * CHUNK_ROWS)
    assert chunks._chunks[0] is first
    assert len(chunks._chunks) == 3
    far = np.array([2 * CHUNK_ROWS + 5, 3, CHUNK_ROWS, 9])
    chunks.put(far[[0, 2]], np.full((2, 2), 7, np.float32))
    assert chunks.take(far)[:, 0].tolist() == [7, 1, 7, 1]


def test_an_id_is_looked_up_once_and_read_everywhere() -> None:
    """Distinct rows are as many as distinct known ids, and each id reads its own."""
    growing = table()
    growing.look_up(array(5, 7), at_ms=1)
    found = growing.look_up(array(7, 5, 7, 99, 98, 5))
    assert len(found.rows) == 3
    assert found.rows[found.places].tolist() == [2, 1, 2, 0, 0, 1]
    unique = deduplicated(array(4, 4, -1, 4))
    assert unique.ids.tolist() == [4, -1]
    assert unique.counts.tolist() == [3, 1]


@given(st.permutations([3, -8, 1 << 40, 77, 12]), st.integers(1, 5))
def test_an_id_starts_alike_whenever_it_comes(order: list[int], cut: int) -> None:
    """First values depend on the id and the seed alone: not on order, batch, or room reserved."""
    growing, other = table(), table(reserve=50)
    growing.look_up(array(*order), at_ms=1)
    for part in (sorted(order)[:cut], sorted(order)[cut:]):
        other.look_up(array(*part), at_ms=1)
    assert np.array_equal(values(growing, *order), values(other, *order))


def test_first_values_spread_as_asked() -> None:
    """Noise over many ids has mean 0 and spread 1, and another seed gives other noise."""
    noise = unit_noise(np.arange(20_000), 8, 0)
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    other = unit_noise(np.arange(20_000), 8, 1)
    between = np.corrcoef(noise, other, rowvar=False) - np.eye(16)
    assert float(np.abs(between).max()) < 0.05


def test_ids_seen_rarely_wait() -> None:
    """An id shares the unknown id's row until it was counted often enough."""
    growing = table(min_count=3)
    for batch in ([5, 7, 5], [7, 9]):
        assert set(growing.look_up(array(*batch), at_ms=1).rows.tolist()) == {0}
    assert growing.look_up(array(5, 9), at_ms=1).rows.tolist() == [0, 1]
    growing.look_up(array(5, 5, 5))  # without a time: not counted
    assert len(growing) == 1
    id_table, embeddings, uses = growing.frozen()
    assert id_table.ids.tolist() == [5]
    assert embeddings.shape == (2, 4)
    assert uses["count"].tolist() == [3]


def test_the_stalest_give_way() -> None:
    """At its limit a table drops the ids seen longest ago, reuses their rows, and one that comes
    back starts anew."""
    growing = table(max_ids=10)
    for at_ms in range(10):
        growing.look_up(array(100 + at_ms), at_ms)
    found = growing.look_up(array(100), at_ms=20)  # old, and seen again
    growing.update(found, np.ones((1, 4), np.float32), rate=0.1)
    before = values(growing, 100, 109)
    growing.look_up(array(7), at_ms=21)
    assert len(growing) == 9
    assert growing.look_up(array(101, 102)).rows.tolist() == [0]
    assert np.array_equal(values(growing, 100, 109), before)
    growing.look_up(array(101), at_ms=22)
    fresh = table()
    fresh.look_up(array(101), at_ms=0)
    assert np.array_equal(values(growing, 101), values(fresh, 101))
    for at_ms in range(30, 90):
        growing.look_up(array(at_ms, at_ms + 1, at_ms + 2), at_ms)
        assert len(growing) <= 10
    assert len(set(growing.look_up(array(*range(88, 92))).rows.tolist())) == 4


def test_updates_are_adams() -> None:
    """Rows read in every step move as PyTorch's AdamW moves them; rows not read stay."""
    growing = table()
    growing.look_up(array(1, 2, 3), at_ms=0)
    still = values(growing, 3)
    parameter = torch.nn.Parameter(torch.from_numpy(values(growing, 1, 2)))
    adam = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        gradient = rng.normal(size=(2, 4)).astype(np.float32)
        parameter.grad = torch.from_numpy(gradient)
        adam.step()
        growing.update(growing.look_up(array(1, 2)), gradient, rate=0.01, decay=0.1)
    np.testing.assert_allclose(values(growing, 1, 2), parameter.detach().numpy(), atol=2e-6)
    assert np.array_equal(values(growing, 3), still)


def test_a_restored_table_goes_on_alike() -> None:
    """A table restored from its state finds, admits, evicts and moves as the original does."""
    growing = table(min_count=2, max_ids=20)
    rng = np.random.default_rng(0)

    def use(one: GrowingTable, seed: int) -> None:
        some = np.random.default_rng(seed)
        found = one.look_up(some.integers(0, 60, 30), at_ms=seed)
        gradient = some.normal(size=(len(found.rows), 4)).astype(np.float32)
        one.update(found, gradient, rate=0.1)

    for seed in rng.integers(0, 1000, 8).tolist():
        use(growing, seed)
    again = table(min_count=2, max_ids=20)
    again.restore(growing.state())
    for seed in range(2000, 2010):
        use(growing, seed)
        use(again, seed)
    for left, right in zip(growing.frozen(), again.frozen(), strict=True):
        assert np.array_equal(getattr(left, "ids", left), getattr(right, "ids", right))
