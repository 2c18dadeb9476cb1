"""Threads for calls that may never return."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")


class Threads:
    """`count` threads that run calls in the order they came.

    As a ThreadPoolExecutor's, but daemons: a call that never returns keeps neither `close` nor the
    process from ending.
    """

    def __init__(self, count: int, name: str):
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._serve, name=name, daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Start them, once."""
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """What the call will give."""
        future: Future[Result] = Future()
        self._calls.put((future, call))
        return future

    def close(self, patience_s: float) -> bool:
        """Drop what waits and let what runs finish; whether it did within the patience."""
        while True:
            try:
                waiting = self._calls.get_nowait()
            except Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        until = monotonic() + patience_s
        started = [thread for thread in self._threads if thread.ident is not None]
        for thread in started:
            thread.join(max(0.0, until - monotonic()))
        return not any(thread.is_alive() for thread in started)

    def _serve(self) -> None:
        while (work := self._calls.get()) is not None:
            future, call = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del work, future, call  # what they hold is large, and the next may be long in coming
