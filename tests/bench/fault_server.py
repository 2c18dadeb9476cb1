"""`mtgr serve` by its environment, in a process whose wall clock jumps (an hour ahead on SIGUSR1,
an hour back on SIGUSR2) and whose engine fails (see `tests.bench.fault_engine`)."""

import signal
import time

real, jumped_s = time.time, 0.0


def jump(number: int, frame: object) -> None:
    """Move the wall clock."""
    global jumped_s
    jumped_s += 3600.0 if number == signal.SIGUSR1 else -3600.0


if __name__ == "__main__":
    time.time = lambda: real() + jumped_s  # before any of ours binds it
    signal.signal(signal.SIGUSR1, jump)
    signal.signal(signal.SIGUSR2, jump)

    from service import logs
    from service.backends import opening
    from service.serve import run
    from service.setting_sources import load_settings
    from service.settings import Settings
    from tests.bench.fault_engine import EngineFault

    logs.configure()
    settings, fault = load_settings({}, Settings), EngineFault()
    in_process = all(model.backend == "inprocess" for model in settings.models.values())
    run(settings, open_model=fault.open_model if in_process else opening.open_model)
