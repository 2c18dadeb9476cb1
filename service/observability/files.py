"""Rules and dashboards -> the files that the chart and compose.yaml ship (`make observability`)."""

from pathlib import Path

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from service.observability.boards import boards
from service.observability.rules import rules

FILES = Path(__file__).parents[2] / "helm" / "files"


def files() -> dict[Path, str]:
    """What each file is to hold."""
    text = yaml.safe_dump(rules(), sort_keys=False, width=1000)
    found = {FILES / "rules.yaml": f"# Made by 'make observability'.\n{text}"}
    for board in boards():
        built = board.build()
        json = JSONEncoder(sort_keys=True, indent=2).encode(built)
        found[FILES / "dashboards" / f"{built.uid}.json"] = json + "\n"
    return found


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
