"""A gateway in a process of its own, to be killed: `gateway_process REDIS_DIR PORT`."""

import sys
from pathlib import Path

from service.serve import run
from service.settings import ModelSettings, Settings
from tests.service.world import SCHEMA, opener

if __name__ == "__main__":
    directory, port = sys.argv[1:]
    run(
        Settings(
            models={"home": ModelSettings(package=Path("unused"))},
            redis_dir=Path(directory),
            port=int(port),
        ),
        opener(SCHEMA),
    )
