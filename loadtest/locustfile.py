"""Locust users with the same traffic, judged and reported as open-loop runs are.

    locust -f loadtest/locustfile.py --headless --host http://127.0.0.1:8000 --stages 20:10,40:50

Each user is one session after another: requests with a short pause between them, then a longer
one. Locust is a closed loop: its users wait for their answers, so they ask less of a slow server;
for latency under a given rate see `loadtest.open_loop`. In one process only: the samples of
several would have to be merged.
"""

import logging
from argparse import Namespace
from dataclasses import fields
from functools import cache
from itertools import count
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

from locust import FastHttpUser, LoadTestShape, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import LocalRunner

from loadtest.goal import Goal
from loadtest.material import MARKETPLACE, read_material
from loadtest.outcome import Outcome, Reply
from loadtest.page import page
from loadtest.request import Request
from loadtest.run import Generator, summarize, write_run
from loadtest.samples import Samples
from loadtest.schedule import THINK_S, parse_stages
from loadtest.traffic import Mix, Traffic

log = logging.getLogger("load")


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator] # Locust's are
def add_flags(parser: LocustArgumentParser) -> None:
    """Our flags beside Locust's own; each is also an environment variable, `LOAD_<FLAG>`."""

    def flag(name: str, kind: type, default: Any, about: str) -> None:
        variable = f"LOAD_{name.upper().replace('-', '_')}"
        parser.add_argument(f"--{name}", type=kind, default=default, env_var=variable, help=about)

    flag("stages", str, "10:5,20:20", "SECONDS:USERS,...: how many users, for how long")
    flag("material", str, str(MARKETPLACE), "traffic file (.jsonl) or description (.json)")
    flag("seed", int, 0, "of the traffic")
    flag("give-up-ms", float, 5000.0, "no answer for so long: late, milliseconds")
    flag("most-requests", int, 1_000_000, "stop after so many requests")
    flag("p99-ms", float, 50.0, "goal: p99 of the served, milliseconds")
    flag("unserved", float, 0.01, "goal: share not answered in full, at most")
    flag("failed", float, 0.0, "goal: share that fails, at most")
    flag("name", str, "load test with Locust", "title of the report")
    flag("out", str, "var/load/locust.json", "JSON to write; the HTML page goes beside it")
    for field in fields(Mix):
        about = "of the traffic's mix, see loadtest.traffic.Mix"
        flag(field.name.replace("_", "-"), type(field.default), field.default, about)


class Test:
    """What the users of one run share."""

    def __init__(self, options: Namespace):
        self.options = options
        mix = Mix(**{f.name: getattr(options, f.name) for f in fields(Mix)})
        self.traffic = Traffic(read_material(Path(options.material)), mix, options.seed)
        self.sessions = count()
        self.samples = Samples()
        self.start, self.cpu = perf_counter(), process_time()


@events.init.add_listener  # type: ignore[untyped-decorator] # Locust's are
def prepare(environment: Environment, **_: Any) -> None:
    """Draw the traffic before the first user starts."""
    if not isinstance(environment.runner, LocalRunner):
        raise SystemExit("one process only: run without --processes, --master and --worker")
    assert environment.parsed_options is not None  # there is a command line
    environment.load_test = Test(environment.parsed_options)  # type: ignore[attr-defined]


@events.test_start.add_listener  # type: ignore[untyped-decorator] # Locust's are
def begin(environment: Environment, **_: Any) -> None:
    """The clock starts with the first user."""
    test: Test = environment.load_test  # type: ignore[attr-defined]
    test.samples = Samples()
    test.start, test.cpu = perf_counter(), process_time()


class Caller(FastHttpUser):
    """A recall service on behalf of one end user after another."""

    wait_time = between(0.2, 1.5)

    def __init__(self, environment: Environment):
        self._test: Test = environment.load_test  # type: ignore[attr-defined]
        self.connection_timeout = self.network_timeout = self._test.options.give_up_ms / 1e3
        super().__init__(environment)

    @task
    def session(self) -> None:
        """One session, as long as it was drawn."""
        number = next(self._test.sessions)
        for turn in range(self._test.traffic.turns(number)):
            if turn:
                sleep(THINK_S)  # Locust has made it cooperative
            self._ask(self._test.traffic.request(number, turn))

    def _ask(self, request: Request) -> None:
        test = self._test
        if len(test.samples) >= test.options.most_requests:
            log.info("%d requests were sent, the most allowed", len(test.samples))
            assert self.environment.runner is not None  # it runs us
            self.environment.runner.quit()
            return
        sent = perf_counter()
        headers = {"content-type": request.content_type, **dict(request.headers)}
        with self.client.post(
            request.path,
            data=request.body,  # type: ignore[arg-type] # bytes too, as its documentation says
            headers=headers,
            name=request.kind,
            catch_response=True,
        ) as response:
            body = response.content
            latency_ms = 1e3 * (perf_counter() - sent)
            if response.status_code:
                names = {name.lower(): value for name, value in response.headers.items()}
                reply = Reply(response.status_code, names, body or b"")
                outcome = test.samples.reply(request, sent - test.start, latency_ms, reply)
            else:
                late = latency_ms >= test.options.give_up_ms
                outcome = Outcome.LATE if late else Outcome.FAILED
                reason = "no answer" if late else f"no answer: {type(response.error).__name__}"
                test.samples.add(request, sent - test.start, latency_ms, outcome, reason)
            if outcome in (Outcome.LATE, Outcome.FAILED):
                response.failure(outcome.value)
            else:
                response.success()


class Stages(LoadTestShape):
    """As many users as the stages say, then the end."""

    def tick(self) -> tuple[int, float] | None:
        """(users, users to start a second) of now; None when the stages are over."""
        assert self.runner is not None  # Locust sets it
        test: Test = self.runner.environment.load_test  # type: ignore[attr-defined]
        elapsed = perf_counter() - test.start
        for stage in _stages(test.options.stages):
            if elapsed < stage.seconds:
                return int(stage.level), max(1.0, stage.level)
            elapsed -= stage.seconds
        return None


_stages = cache(parse_stages)


@events.quitting.add_listener  # type: ignore[untyped-decorator] # Locust's are
def finish(environment: Environment, **_: Any) -> None:
    """Write the document and the page; the exit code says whether the goal was met."""
    test: Test = environment.load_test  # type: ignore[attr-defined]
    options, seconds = test.options, perf_counter() - test.start
    share = (process_time() - test.cpu) / seconds
    limited = None
    if share > 0.9:
        limited = f"Locust was the bottleneck: it used {share:.0%} of its one core"
    stages = _stages(options.stages)
    run = summarize(
        test.samples,
        tool="locust",
        name=options.name,
        url=environment.host or "",
        seconds=seconds,
        generator=Generator("closed", None, None, round(share, 3), limited),
        goal=Goal(options.p99_ms, options.unserved, options.failed),
        settings={
            "stages": options.stages,
            "material": Path(options.material).name,
            "seed": options.seed,
            **test.traffic.describe(),
        },
        stages=[(f"{stage.level:g} users", stage.seconds) for stage in stages],
    )
    out = Path(options.out)
    write_run(run, out)
    out.with_suffix(".html").write_text(page(run))
    for what in run.missed:
        log.error("missed: %s", what)
    log.info("%s and %s", out, out.with_suffix(".html"))
    environment.process_exit_code = int(bool(run.missed))
