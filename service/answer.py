"""A ranked answer as text for people."""

from collections.abc import Mapping
from typing import Any

import click
import httpx


def show(response: httpx.Response) -> None:
    """Print the answer of `POST /v1/rank` and its timings."""
    click.echo(ranked_table(response.json(), response.headers["server-timing"]))


def ranked_table(answer: Mapping[str, Any], server_timing: str) -> str:
    """Items best first with score, CTR and CTCVR; what was missing; where the time went."""
    by = answer["ranked_by"]
    lines = [f"request {answer['request_id']}, model {answer['model_version']}, ranked by {by}"]
    if answer["degraded"]:
        lines.append(f"degraded: {answer['reason']}")
    lines += [f"missing {part}: {reason}" for part, reason in answer["missing"].items()]
    lines += ["", f"{'rank':>4}  {'item_id':>20}  {'score':>9}  {'CTR':>9}  {'CTCVR':>9}"]
    for place, item in enumerate(answer["items"], 1):
        numbers = "  ".join(_number(item[name]) for name in ("score", "ctr", "ctcvr"))
        lines.append(f"{place:>4}  {item['item_id']:>20}  {numbers}")
    lines += ["", "time in the server, milliseconds"]
    stages = [part.split(";dur=") for part in server_timing.split(", ")]
    lines += [f"  {stage:<10} {float(taken):>8.3f}" for stage, taken in stages]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.6f}"
