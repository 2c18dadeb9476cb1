"""The open-loop generator: requests go out when they are due, and waiting counts from then.

A closed loop (Locust's users, or any caller that waits for its answer) sends less while the
server stalls, so a stall costs it one slow sample: *coordinated omission*. Here the schedule is
fixed before the run, and every request that was due during a stall shows it.

The generator watches itself: `lag`, from due to handed to a connection or its queue, is its own
fault alone; a run whose lag's p99 exceeds `max_lag_ms` says that its numbers are not the server's.
"""

import asyncio
import gc
import select
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, process_time
from typing import Protocol

import numpy as np

from loadtest.client import Client, Exchange
from loadtest.outcome import Outcome, Reply
from loadtest.request import Request
from loadtest.run import Generator, Latency
from loadtest.samples import Floats, Samples
from loadtest.schedule import Schedule

LEAD_S = 0.05
"""From the start of the loop to the first request that may be due."""


class PreciseSelector(selectors.DefaultSelector):
    """Waits as exactly as `select`, which costs more with each connection that is open; epoll,
    which does not, and uvloop round a wait up to a millisecond."""

    waited_s = 0.0
    """CPU time that waiting took: none."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As of any selector."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], (), (), timeout)
            timeout = 0
        return super().select(timeout)


class BusySelector(selectors.DefaultSelector):
    """Waits in a loop: no latency has our own way out of sleep in it, for a whole core.

    At few requests a second that way, and memory gone cold in it, is a tenth of a millisecond on
    the way out and as much on the way back, which a server cannot help.
    """

    waited_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As of any selector."""
        cpu, until = process_time(), float("inf") if timeout is None else monotonic() + timeout
        while not (ready := super().select(0)) and monotonic() < until:
            pass
        self.waited_s += process_time() - cpu
        return ready


class Supply(Protocol):
    """Where requests come from."""

    def request(self, session: int, turn: int) -> Request:
        """Request `turn` of session `session`."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the generator."""

    connections: int = 256
    give_up_ms: float = 5000
    """A request without an answer for so long after it was due is late, and dropped."""
    max_lag_ms: float = 5
    """p99 of the generator's own lag above which it is the bottleneck."""
    busy_wait: bool = False
    """Wait as `BusySelector` does."""


@dataclass(frozen=True)
class Measured:
    """What came back, and how the generator did."""

    samples: Samples
    generator: Generator
    waited: int
    """Requests that found every connection busy: their wait is in their latency."""
    start: float
    """When the schedule began, in seconds on the monotonic clock."""


def generate(
    url: str,
    supply: Supply,
    schedule: Schedule,
    limits: Limits,
    headers: tuple[tuple[str, str], ...] = (),
) -> Measured:
    """Run the schedule to its end, and until each request has its outcome."""
    gc.collect()
    gc.freeze()  # what is loaded stays: a full collection would stall the schedule
    selector = BusySelector() if limits.busy_wait else PreciseSelector()

    def worked_s() -> float:
        return process_time() - selector.waited_s

    try:
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            return runner.run(_run(url, supply, schedule, limits, headers, worked_s))
    finally:
        gc.unfreeze()


async def _run(
    url: str,
    supply: Supply,
    schedule: Schedule,
    limits: Limits,
    headers: tuple[tuple[str, str], ...],
    worked_s: Callable[[], float],
) -> Measured:
    loop, client, samples = (
        asyncio.get_running_loop(),
        Client(url, limits.connections, headers),
        Samples(),
    )
    due_s, sessions, turns = (
        column.tolist() for column in (schedule.due_s, schedule.session, schedule.turn)
    )
    lags_ms = np.zeros(len(due_s))
    finished = asyncio.Event()
    start, cpu = loop.time() + LEAD_S, worked_s()

    def send(i: int) -> None:
        request, due = supply.request(sessions[i], turns[i]), due_s[i]

        def done(result: Reply | str) -> None:
            latency_ms = 1e3 * (loop.time() - start - due)
            if isinstance(result, Reply):
                samples.reply(request, due, latency_ms, result, lag_ms)
            else:
                outcome = Outcome.LATE if result == "no answer" else Outcome.FAILED
                samples.add(request, due, latency_ms, outcome, result, lag_ms)
            if len(samples) == len(due_s):
                finished.set()

        lag_ms = lags_ms[i] = 1e3 * (loop.time() - start - due)
        client.send(Exchange(request, done), start + due + limits.give_up_ms / 1e3)

    for i, due in enumerate(due_s):
        await asyncio.sleep(max(0.0, start + due - loop.time()))
        send(i)
    if due_s:
        await finished.wait()
    await client.close()
    spent = worked_s() - cpu
    elapsed = max(loop.time() - start, 1e-9)
    return Measured(samples, _verdict(lags_ms, spent / elapsed, limits), client.waited, start)


def _verdict(lags_ms: Floats, cpu_share: float, limits: Limits) -> Generator:
    """Whose numbers these are, by the lag of each request."""
    lag = Latency.of(lags_ms)
    if lag is None:
        return Generator("open", 0.0, 0.0, round(cpu_share, 3), None)
    limited = None
    if lag.p99 > limits.max_lag_ms:
        cause = "the generator was too slow" if cpu_share > 0.5 else "the machine was too busy"
        limited = (
            f"{cause}: requests went out {lag.p99:.1f} ms late (p99), {limits.max_lag_ms:g} ms "
            f"allowed, with {cpu_share:.0%} of a core used by the generator"
        )
    return Generator("open", lag.p99, lag.max, round(cpu_share, 3), limited, lag.p50)
