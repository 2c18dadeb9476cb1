"""Rules and dashboards -> the files that the chart and compose.yaml ship (`make observability`)."""

import yaml

from service.observability.files import FILES
from service.observability.rules import rules


def write() -> None:
    """Replace the files by what the code says now."""
    text = yaml.safe_dump(rules(), sort_keys=False, width=1000)
    (FILES / "rules.yaml").write_text(f"# Made by 'make observability'.\n{text}")


if __name__ == "__main__":
    write()
