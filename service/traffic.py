"""Live traffic: the simulated marketplace's users ask, look at what is ranked, and react.

Everything crosses HTTP as it would from an application: `/v1/rank`, then `/v1/events` with what
was shown, clicked and ordered, so that dashboards, calibration and label joining have food.
"""

import asyncio
import math
from time import time
from typing import Any

import click
import httpx
import numpy as np

from model_def.data.past import Past
from model_def.data.simulator import CLICK, HOME, Marketplace
from model_def.data.traffic import Asked, Traffic, latest_snapshot
from service.cli import faults_explained
from service.demo import load
from service.setting_sources import load_settings
from service.settings import StoreSettings

SHOWN = 10
"""Items asked for, and shown to the user."""

PATIENCE_S = 10.0
"""For an answer, seconds."""


class LiveTraffic:
    """Users of one marketplace, at a rate."""

    def __init__(self, url: str, candidates: int, seed: int = 0):
        self._url, self._candidates = url, candidates
        market = Marketplace()
        self.past = Past(market, latest_snapshot(_now_ms()))
        self._traffic = Traffic(self.past, seed)
        self._rng = np.random.default_rng(seed)
        self._shares = market.activity / market.activity.sum()
        self._run = _now_ms()
        self.answered = self.failed = 0

    async def drive(self, rate_per_s: float, seconds: float) -> None:
        """Send requests at random moments, on average `rate_per_s`, for so long."""
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE_S) as client:
            tasks = set()
            ends = time() + seconds
            while time() < ends:
                await asyncio.sleep(self._rng.exponential(1 / rate_per_s))
                task = asyncio.create_task(self._visit(client))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    def ask(self) -> tuple[Asked, dict[str, Any]]:
        """Somebody's request, and its body."""
        user = int(self._rng.choice(len(self._shares), p=self._shares))
        asked = self._traffic.ask(user, _now_ms(), HOME, self._candidates)
        body = self._traffic.body(asked)
        body |= {"request_id": f"live-{self._run}-{body['request_id']}", "top_k": SHOWN}
        return asked, body

    async def _visit(self, client: httpx.AsyncClient) -> None:
        asked, body = self.ask()
        try:
            answer = await client.post("/v1/rank", json=body)
            if answer.status_code != httpx.codes.OK:
                self.failed += 1
                return
            self.answered += 1
            items = [item["item_id"] for item in answer.json()["items"]]
            events = self._react(asked, items, body["request_id"])
            await client.post("/v1/events", json={"user_id": body["user_id"], "events": events})
        except httpx.TransportError:
            self.failed += 1

    def _react(self, asked: Asked, item_ids: list[int], request_id: str) -> list[dict[str, Any]]:
        """Exposures of what is shown, and what became of them."""
        market, past = self._traffic.market, self.past
        positions = {item: i for i, item in enumerate(market.item_id[asked.items].tolist())}
        shown = np.array([positions[item] for item in item_ids])
        reaction = self._traffic.react(asked, shown)
        columns = past.item_columns(asked.items[shown])
        events: list[dict[str, Any]] = []

        def happened(position: int, action: str, features: dict[str, Any] | None = None) -> None:
            item = item_ids[position]
            label = {"request_id": request_id, "item_id": item, "action": action}
            event = {"event_id": f"{request_id}-{item}-{action}", "timestamp": _now_ms()}
            events.append(event | {"label": label} | ({"features": features} if features else {}))

        for position in range(len(item_ids)):
            happened(position, "exposure")
            if reaction.click[position]:
                behaviour = {
                    name: columns[name][position].item()
                    for name in ("item_id", "category", "price")
                }
                happened(position, "click", behaviour | {"action": CLICK})
            if reaction.order[position]:
                happened(position, "order")
        return events


def _now_ms() -> int:
    return int(time() * 1000)


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="of the gateway")
@click.option("--rate", default=10.0, show_default=True, help="requests a second")
@click.option("--seconds", default=math.inf, help="stop after so long  [at Ctrl-C]")
@click.option("--candidates", default=100, show_default=True, help="candidates of a request")
@click.option(
    "--load-features", is_flag=True, help="first write the users and items to MTGR_REDIS_URL"
)
def traffic(url: str, rate: float, seconds: float, candidates: int, load_features: bool) -> None:
    """Have the demo's users ask, look, click and order, at a rate."""
    live = LiveTraffic(url, candidates)
    if load_features:
        with faults_explained():
            settings = load_settings({}, StoreSettings)
            asyncio.run(load(live.past, settings.redis_url))
    asyncio.run(live.drive(rate, seconds))
    click.echo(f"{live.answered} requests answered, {live.failed} not")
