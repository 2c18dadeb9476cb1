"""Every benchmark that runs on a CPU, one after the other; the exit status counts missed bars."""

import sys

from tests.bench import engine_scaling, load_client, model, payload

if __name__ == "__main__":
    sys.exit(sum(benchmark.main() for benchmark in (model, payload, engine_scaling, load_client)))
