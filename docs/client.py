"""A client of the ranking service, in nothing but Python's own library.

python docs/client.py http://127.0.0.1:8000
"""

import json
import sys
from time import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen


class Refused(Exception):
    """The service's refusal: its status, type, path, problem, and when to come back."""

    def __init__(self, error: HTTPError):
        self.status = error.code
        self.retry_after_s = int(error.headers.get("retry-after", 0))
        self.detail: dict[str, Any] = json.load(error)["error"]
        super().__init__(f"{self.status} {self.detail}")


class Client:
    """One gateway, or whatever balances several."""

    def __init__(self, url: str, deadline_ms: int = 200):
        self._url, self._deadline_ms = url.rstrip("/"), deadline_ms

    def rank(self, user_id: str, context: dict[str, Any], candidates: Any) -> dict[str, Any]:
        """The answer; look at `degraded` and `reason`. Raises Refused, or OSError when late."""
        return self._post(
            "/v1/rank",
            {
                "user_id": user_id,
                "context": context,
                "candidates": candidates,
                "deadline_ms": self._deadline_ms,
            },
        )

    def shown(self, user_id: str, answer: dict[str, Any], clicked: set[int]) -> dict[str, Any]:
        """Report what became of an answer: training and calibration live by it."""
        request_id, now_ms = answer["request_id"], int(time() * 1000)
        labels = [(item["item_id"], "exposure") for item in answer["items"]]
        labels += [(item_id, "click") for item_id in sorted(clicked)]
        events = [
            {
                "event_id": f"{request_id}-{item_id}-{action}",
                "timestamp": now_ms,
                "label": {"request_id": request_id, "item_id": item_id, "action": action},
            }
            for item_id, action in labels
        ]
        return self._post("/v1/events", {"user_id": user_id, "events": events})

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        # A little more than the deadline: the service answers within it, the network takes some.
        patience_s = self._deadline_ms / 1e3 + 1
        try:
            with urlopen(Request(self._url + path, data, headers), timeout=patience_s) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except HTTPError as error:
            raise Refused(error) from None


if __name__ == "__main__":
    client = Client(sys.argv[1], deadline_ms=2000)
    cross = {
        "distance_km": [1.2, 4.0], "eta_minutes": [31, 48], "price_ratio": [0.9, 1.4],
        "category_share": [0.2, 0.0], "orders_at_item": [3, 0], "category_at_hour": [0.4, -0.2],
    }  # fmt: skip
    ranked = client.rank(
        "u00017",
        {"hour": 12, "weekday": 3, "place": 1},
        {"item_id": [10001, 10002], "features": cross},
    )
    print(json.dumps(ranked, indent=2))
    print(client.shown("u00017", ranked, clicked={ranked["items"][0]["item_id"]}))
    try:
        client.rank("u00017", {"hour": 99}, {"item_id": [1], "features": {}})
    except Refused as refusal:
        print(refusal)
