"""docs/request-path.svg from the code: the stages that a request marks, in the order of the code.

python -m tests.docs.request_path
"""

import ast
import itertools
from html import escape
from pathlib import Path

from tests.conftest import ROOT

PICTURE = ROOT / "docs" / "request-path.svg"

CAPTIONS = {
    "read": "the body's bytes",
    "queue": "least slack first",
    "decode": "to columns",
    "validate": "every path of it",
    "features": "one MGET",
    "pack": "ONE sequence",
    "backend": "the engine",
    "fallback": "by what is left",
    "order": "top k",
    "explain": "if asked for",
    "encode": "the answer",
}
BELOW = {"features": "Redis", "backend": "Triton, or here"}
"""What a stage waits for."""

WIDTH, GAP, TOP, HIGH = 108, 20, 66, 52


def stages() -> tuple[list[str], list[str]]:
    """(stages of a request that succeeds, those of one whose engine fails), in order.

    From the calls of `stages.mark` in the endpoint, and in `rank` where the endpoint calls it.
    """
    rank = _marks(ROOT / "service" / "rank.py", "rank", [])
    endpoint = _marks(ROOT / "service" / "http" / "endpoints.py", "rank_candidates", rank)
    good, failed = [], []
    for name, handler in endpoint:
        if handler:
            failed.append(name)
        else:
            good.append(name)
    return good, [name for name in failed if name not in good]


def _marks(path: Path, function: str, inside: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """(stage, whether in an exception handler); `inside` stands for a call of `rank`."""
    tree = ast.parse(path.read_text())
    (found,) = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.AsyncFunctionDef) and node.name == function
    ]  # fmt: skip
    calls = [node for node in ast.walk(found) if isinstance(node, ast.Call)]
    handlers = [node for node in ast.walk(found) if isinstance(node, ast.ExceptHandler)]
    marks: list[tuple[str, bool]] = []
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "mark":
            (argument,) = call.args
            assert isinstance(argument, ast.Constant)
            handled = any(h.lineno <= call.lineno <= (h.end_lineno or 0) for h in handlers)
            marks.append((str(argument.value), handled))
        elif isinstance(call.func, ast.Name) and call.func.id == "rank":
            marks += inside
    return marks


def picture() -> str:
    """The SVG: a row of stages, what they wait for below, the way of a failing engine above."""
    good, failed = stages()
    step = WIDTH + GAP
    width, height = 20 + step * len(good) + 10, TOP + HIGH + 92
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<style>.box{fill:#eef4fb;stroke:#5a87b8}.bad{fill:#fdf0e3;stroke:#d08a3c}"
        ".dep{fill:#eef7ee;stroke:#6aa36a}.soft{fill:#5b6675;font-size:10.5px}"
        ".line{stroke:#7b8794;fill:none;marker-end:url(#to)}</style>",
        '<defs><marker id="to" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto">'
        '<path d="M0 0 L6 3 L0 6 z" fill="#7b8794"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    lefts = {name: 20 + step * i for i, name in enumerate(good)}
    for before, after in itertools.pairwise(good):
        y = TOP + HIGH / 2
        parts.append(
            f'<path class="line" d="M{lefts[before] + WIDTH} {y} L{lefts[after] - 1} {y}"/>'
        )
    for name, x in lefts.items():
        parts.append(_box("box", x, TOP, name, CAPTIONS.get(name, "")))
        if name in BELOW:
            y = TOP + HIGH + 34
            parts.append(
                f'<path class="line" d="M{x + WIDTH / 2} {TOP + HIGH} L{x + WIDTH / 2} {y - 1}"/>'
            )
            parts.append(_box("dep", x, y, BELOW[name], "within the deadline"))
    for name in failed:
        x, end = lefts["order"], lefts["encode"] + WIDTH / 2
        start = lefts["backend"] + WIDTH / 2
        parts.append(f'<path class="line" d="M{start} {TOP} L{start} 32 L{x - 1} 32"/>')
        parts.append(_box("bad", x, 6, name, CAPTIONS.get(name, "")))
        parts.append(f'<path class="line" d="M{x + WIDTH} 32 L{end} 32 L{end} {TOP - 1}"/>')
        parts.append(f'<text class="soft" x="{start + 6}" y="26">fails, late</text>')
    return "\n".join([*parts, "</svg>", ""])


def _box(css: str, x: float, y: float, title: str, caption: str) -> str:
    middle = x + WIDTH / 2
    return (
        f'<rect class="{css}" x="{x}" y="{y}" width="{WIDTH}" height="{HIGH}" rx="6"/>'
        f'<text x="{middle}" y="{y + 22}" text-anchor="middle">{escape(title)}</text>'
        f'<text class="soft" x="{middle}" y="{y + 38}" text-anchor="middle">'
        f"{escape(caption)}</text>"
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())
