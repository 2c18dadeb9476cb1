"""What a request costs the load generator: its own client beside httpx, in CPU time.

python -m tests.bench.load_client
"""

import asyncio
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import httpx

from loadtest.material import MARKETPLACE, read_material
from loadtest.open_loop import Limits, generate
from loadtest.outcome import Reply
from loadtest.samples import Samples
from loadtest.schedule import Schedule, Stage, schedule
from loadtest.traffic import Mix, Traffic
from tests.bench.timing import report
from tests.loadtest.server import Behaviour, serving

ROUNDS = 5
RATE, SECONDS = 250, 2
BAR = 2.0


def _serve(urls: "multiprocessing.Queue[str]", stop: "multiprocessing.synchronize.Event") -> None:
    with serving(Behaviour()) as url:
        urls.put(url)
        stop.wait()


@contextmanager
def elsewhere() -> Iterator[str]:
    """The URL of a server in a process of its own: its CPU time is not the client's."""
    context = multiprocessing.get_context("spawn")
    urls, stop = context.Queue(), context.Event()
    process = context.Process(target=_serve, args=(urls, stop))
    process.start()
    try:
        yield urls.get(timeout=60)
    finally:
        stop.set()
        process.join()


async def with_httpx(url: str, traffic: Traffic, plan: Schedule) -> Samples:
    """The same schedule, judged alike, with a task and an httpx call for each request."""
    samples = Samples()
    async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=256)) as client:
        start = time.perf_counter()

        async def ask(due: float, session: int) -> None:
            request = traffic.request(session, 0)
            headers = {"content-type": request.content_type}
            answer = await client.post(request.path, content=request.body, headers=headers)
            latency_ms = 1e3 * (time.perf_counter() - start - due)
            reply = Reply(answer.status_code, dict(answer.headers), answer.content)
            samples.reply(request, due, latency_ms, reply)

        async with asyncio.TaskGroup() as tasks:
            for due, session in zip(plan.due_s.tolist(), plan.session.tolist(), strict=True):
                await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
                tasks.create_task(ask(due, session))
    return samples


def main() -> int:
    """Print milliseconds of CPU a request for both; 1 if the ratio misses its bar."""
    traffic = Traffic(read_material(MARKETPLACE), Mix(bad=0, events=0, deadline_ms=60_000))
    plan = schedule([Stage(SECONDS, RATE)], "fixed", most=RATE * SECONDS)
    taken: dict[str, list[float]] = {"ours": [], "httpx": []}
    with elsewhere() as url:
        for _ in range(ROUNDS):
            for name, spent in taken.items():
                before = time.process_time()
                if name == "ours":
                    samples = generate(url, traffic, plan, Limits(give_up_ms=60_000)).samples
                else:
                    samples = asyncio.run(with_httpx(url, traffic, plan))
                spent.append(1e3 * (time.process_time() - before) / len(samples))
                if samples.outcomes()["answered"] != len(plan.due_s):
                    raise SystemExit(f"{name}: {samples.reasons()}")
    ours, theirs = median(taken["ours"]), median(taken["httpx"])
    print(f"      CPU a request: ours {ours:.3f} ms, httpx {theirs:.3f} ms")  # noqa: T201  # a benchmark's output
    return int(not report("load generator: httpx over our client, CPU time", theirs / ours, BAR))


if __name__ == "__main__":
    sys.exit(main())
