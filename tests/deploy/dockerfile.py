"""The Dockerfile as data: its stages and instructions, and the paths that they name."""

import json
import re
import shlex
from dataclasses import dataclass, field
from io import BytesIO

from dockerfile_parse import DockerfileParser

from tests.conftest import ROOT


@dataclass
class Stage:
    """One FROM and what follows it, in order."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """Instruction and its value, build arguments and line ends resolved."""

    def value(self, instruction: str) -> str:
        """Of the last such instruction."""
        return [value for name, value in self.steps if name == instruction][-1]

    def exec_form(self, instruction: str) -> list[str]:
        """The words of an ENTRYPOINT, CMD or HEALTHCHECK in exec form."""
        words = self.value(instruction)
        found: list[str] = json.loads(words[words.index("[") :])
        return found

    def environment(self) -> dict[str, str]:
        """What ENV sets, shell quoting resolved."""
        words = [word for name, value in self.steps if name == "ENV" for word in shlex.split(value)]
        return dict(word.split("=", 1) for word in words)


def stages() -> dict[str, Stage]:
    """By name."""
    parser = DockerfileParser(fileobj=BytesIO((ROOT / "Dockerfile").read_bytes()))
    arguments: dict[str, str] = {}
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for step in parser.structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "COMMENT":
            continue
        if instruction == "ARG":
            name, _, default = value.partition("=")
            arguments.setdefault(name, default.strip('"'))
            continue
        if instruction in ("FROM", "RUN", "COPY"):
            value = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], m[0]), value)
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            current = found[name] = Stage(name, base)
        else:
            assert current is not None
            current.steps.append((instruction, value))
    return found


def copies(stage: Stage) -> list[tuple[str, list[str], str]]:
    """(stage copied from or "", sources, target) of each COPY."""
    found = []
    for name, value in stage.steps:
        if name == "COPY":
            *sources, target = value.split()
            origin = ""
            if sources[0].startswith("--from="):
                origin = sources.pop(0).removeprefix("--from=")
            found.append((origin, sources, target))
    return found
