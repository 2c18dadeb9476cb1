"""Laws of the soak's arithmetic: what grows is seen, noise is not, counts are compared fairly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.soak import BURST, server_counts, slope, waves


def series(growth_per_hour: float, seed: int) -> list[tuple[float, float]]:
    """Twenty minutes of 200 MiB with noise, and growth."""
    at = np.arange(0, 1200, 2.0)
    noise = np.random.default_rng(seed).normal(0, 2, len(at))
    return list(zip(at.tolist(), (200 + growth_per_hour * at / 3600 + noise).tolist(), strict=True))


@given(st.integers(0, 1000))
def test_a_leak_is_not_flat_and_noise_is(seed: int) -> None:
    """40 MiB an hour show in twenty minutes, and lie in the interval; noise alone is flat, and what
    falls does not grow."""
    leak, calm = slope(series(40, seed), 1200), slope(series(0, seed), 1200)
    assert not leak.flat
    assert abs(leak.per_hour - 40) < 10
    assert calm.flat
    assert slope(series(-40, seed), 1200).flat


@pytest.mark.parametrize("minutes", [1, 5])
def test_bursts_keep_the_mean_rate(minutes: int) -> None:
    """Stages last as long as asked, at the mean rate that was asked, above it in bursts."""
    stages = waves(50, 60.0 * minutes)
    assert sum(stage.seconds for stage in stages) == pytest.approx(60 * minutes)
    sent = sum(stage.seconds * stage.level for stage in stages)
    assert sent == pytest.approx(50 * 60 * minutes)
    assert max(stage.level for stage in stages) == BURST * 50


def test_the_servers_counts_are_those_since_the_start() -> None:
    """Events are answers; labels in them are not; what was counted before does not count."""
    before = {'mtgr_requests_total{outcome="answered",scene="home"}': 5.0}
    after = {
        'mtgr_requests_total{outcome="answered",scene="home"}': 9.0,
        'mtgr_requests_total{outcome="degraded",scene="home"}': 2.0,
        'mtgr_events_total{outcome="appended",scene="home"}': 3.0,
        'mtgr_events_total{outcome="labels",scene="home"}': 7.0,
        'mtgr_refused_total{reason="overloaded",scene="none"}': 4.0,
        'mtgr_invalid_total{reason="missing",scene="home"}': 1.0,
    }
    counts = server_counts(before, after)
    assert counts == {"answered": 7, "degraded": 2, "refused": 4, "invalid": 1}
