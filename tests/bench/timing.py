"""Side-by-side timing: interleaved runs, so that a noisy machine disturbs both sides alike."""

import time
from collections.abc import Callable
from statistics import median


def seconds(functions: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median seconds of each function over `rounds` interleaved rounds, after one warm-up."""
    for function in functions.values():
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


def report(what: str, measured: float, bar: float, *, at_least: bool = True) -> bool:
    """Print one line of a benchmark against its bar; True if it holds."""
    held = measured >= bar if at_least else measured <= bar
    sign = ">=" if at_least else "<="
    print(f"{'ok  ' if held else 'MISS'}  {what}: {measured:.2f} (bar {sign} {bar:g})")  # noqa: T201  # a benchmark's output
    return held
