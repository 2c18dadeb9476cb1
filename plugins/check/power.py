"""What the card draws, and at which clock it runs, while one attention problem is alone on it.

    python plugins/check/power.py build/plugins/mtgr_check

Each problem runs three times: as briefly as in `mtgr_check bench`, over and over for six seconds,
and with rest between graphs of ten calls, so that the mean power stays far below the card's limit
and its clock at the top. nvidia-smi is asked every 20 ms. Clocks a call are the time of a call by
the median clock: where they are the same with and without rest, the clock alone makes the
difference. Changes no setting of the card.
"""

import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from statistics import median
from typing import NamedTuple

PROBLEMS = [(8, 3, 100), (32, 3, 500)]  # requests, heads, candidates
SECONDS, BRIEF, RESTED, REST_MS = 6, 60, 60, 50
SETTLED = timedelta(seconds=0.3)  # from the first replay to the first sample that counts
FIELDS = "timestamp,clocks.sm,power.draw.instant,clocks_event_reasons.active"
REASONS = {0x4: "power cap", 0x8: "hw slowdown", 0x20: "sw thermal", 0x40: "hw thermal",
           0x80: "power brake"}  # bits of NVML's nvmlClocksEventReason*  # fmt: skip


class Sample(NamedTuple):
    """One line of nvidia-smi: clock in MHz, power in watts, reasons as NVML's bits."""

    at: datetime
    clock: float
    power: float
    reasons: int


def parse(lines: Iterable[str]) -> list[Sample]:
    """The samples of nvidia-smi's csv; a line that is none, like its last, cut one, is left out."""
    samples = []
    for line in lines:
        try:
            at, clock, power, reasons = line.strip().split(", ")
            moment = datetime.strptime(at, "%Y/%m/%d %H:%M:%S.%f")
            samples.append(Sample(moment, float(clock), float(power), int(reasons, 16)))
        except ValueError:
            continue
    return samples


def describe(us: float, samples: list[Sample]) -> str:
    """One line: time of a call in microseconds, power, clock, shares of samples by reason."""
    clock = median(sample.clock for sample in samples)
    powers = [sample.power for sample in samples]
    shares = {
        name: sum(bool(sample.reasons & bit) for sample in samples) / len(samples)
        for bit, name in REASONS.items()
    }
    held = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share) or "none"
    return (
        f"{us:7.2f} us, power median {median(powers):.0f} W, max {max(powers):.0f} W, "
        f"clock median {clock:.0f} MHz, min {min(s.clock for s in samples):.0f} MHz, "
        f"{us * clock / 1000:.1f} thousand clocks a call, held back by {held}, "
        f"{len(samples)} samples"
    )


def watch(check: str, problem: tuple[int, int, int], *loop: int) -> tuple[float, list[Sample]]:
    """Runs `mtgr_check run` with nvidia-smi beside it; microseconds a call, samples in the loop.

    Exits with what either program said if there is no time or no sample.
    """
    smi = ["nvidia-smi", "--id=0", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    command = [check, "run", *map(str, problem), *map(str, loop)]
    with (
        subprocess.Popen([*smi, "--loop-ms=20"], stdout=subprocess.PIPE, text=True) as watcher,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run,
    ):
        assert run.stdout is not None
        begin, us, said = datetime.now(), 0.0, ""
        for line in run.stdout:
            said += line
            if line.startswith("error"):  # printed right before the first replay
                begin = datetime.now()
            elif line.startswith("median"):
                end, us = datetime.now(), float(line.split()[1])
        watcher.terminate()
        log = watcher.communicate()[0]
    if us == 0:
        sys.exit(f"{' '.join(command)}: {said}")
    every = parse(log.splitlines())
    samples = [sample for sample in every if begin + SETTLED <= sample.at <= end]
    if not samples and loop[0] != BRIEF:
        sys.exit(f"nvidia-smi: {len(every)} samples, none in the loop: {log[:300]}")
    return us, samples


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(check: str) -> None:
    limits = "name,enforced.power.limit,clocks.max.sm"
    subprocess.run(["nvidia-smi", "--id=0", f"--query-gpu={limits}", "--format=csv"], check=True)
    for problem in PROBLEMS:
        brief, _ = watch(check, problem, BRIEF)
        say(f"{problem} briefly: {brief:7.2f} us")
        steady = watch(check, problem, int(SECONDS * 1e6 / (10 * brief)))
        say(f"{problem} looped:  {describe(*steady)}")
        rested = watch(check, problem, RESTED, REST_MS)
        say(f"{problem} rested:  {describe(*rested)}")


if __name__ == "__main__":
    main(sys.argv[1])
