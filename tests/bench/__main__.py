"""Every benchmark that runs on a CPU, one after the other; the exit status counts missed bars."""

import sys

from tests.bench import engine_scaling, load_client, model, payload, training

if __name__ == "__main__":
    benchmarks = (model, training, payload, engine_scaling, load_client)
    sys.exit(sum(benchmark.main() for benchmark in benchmarks))
