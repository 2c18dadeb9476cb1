"""Every benchmark that runs on a CPU, one after the other; the exit status counts missed bars."""

import sys

from tests.bench import engine_scaling, load_client, model

if __name__ == "__main__":
    sys.exit(sum(benchmark.main() for benchmark in (model, engine_scaling, load_client)))
