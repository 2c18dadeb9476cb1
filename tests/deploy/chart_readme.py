"""helm/README.md from the chart's values: `python -m tests.deploy.chart_readme`.

A value's row is its path, default and the comment `# -- ` above it.
"""

import json
import re
from pathlib import Path

import yaml

from tests.conftest import ROOT

CHART = ROOT / "helm"
HEAD = """# The chart `mtgr`

Gateways and Triton as deployments that scale by themselves, engines built on the GPU that serves
them, and what watches over all of it.

    helm install mtgr ./helm -f helm/examples/laptop.yaml      # a trial: no GPU, all inside
    helm install mtgr ./helm -f helm/examples/one-gpu.yaml
    helm install mtgr ./helm -f helm/examples/fleet.yaml

What is not one of the values below is refused, with its path. One release serves one model alias,
`home`; several models are several releases.

**A new model.** Put the package beside the others, set `engine.package`, `helm upgrade`: with
`delivery: volume` a job builds its engine, then gateways roll over one by one, each ready only once
the engine has passed its golden requests. `helm rollback` goes back the same way. **A canary** is a
second set of gateways with another package behind weights of an HTTPRoute; Triton serves both
engines.

Made by `make observability` from values.yaml:

| value | default | |
|---|---|---|
"""


def readme() -> str:
    """The whole document."""
    rows = []
    for path, about in described():
        value: object = yaml.safe_load((CHART / "values.yaml").read_text())
        for part in path.split("."):
            assert isinstance(value, dict)
            value = value[part]
        if not isinstance(value, dict) or not value or path.endswith(".resources"):
            rows.append(f"| `{path}` | `{json.dumps(value)}` | {about} |")
    return HEAD + "\n".join(rows) + "\n"


def described() -> list[tuple[str, str]]:
    """(path, comment) of every value, in order."""
    found, above, comment = [], [], ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        if about := re.fullmatch(r" *# -- (.*)", line):
            comment = about[1]
        elif key := re.match(r"( *)(\w+):", line):
            depth = len(key[1]) // 2
            above[depth:] = [key[2]]
            found.append((".".join(above), comment))
            comment = ""
    leaves = [path for path, _ in found]
    inside = {path for path in leaves if ".resources." in path}
    return [(path, about) for path, about in found if path not in inside]


def write() -> None:
    """Replace the file."""
    Path(CHART / "README.md").write_text(readme())


if __name__ == "__main__":
    write()
