"""Logged requests as bodies of `POST /v1/rank`, and as a traffic file for the load test."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from model_def.data.logs import Logs
from model_def.rows import columns_from_rows


def rank_body(logs: Logs, request: int) -> dict[str, Any]:
    """The JSON body that asks for the ranking of a logged request again, all features given."""
    requests, layouts = logs.requests, logs.schema.layouts
    end = int(requests.candidate_counts[: request + 1].sum())
    rows = requests.candidates[end - requests.candidate_counts[request] : end]
    columns = columns_from_rows(layouts["candidate"], rows)
    context = columns_from_rows(layouts["context"], requests.context[request : request + 1])
    return {
        "request_id": str(requests.request_id[request]),
        "user_id": str(requests.user_id[request]),
        "scene": str(requests.scene[request]),
        "timestamp": int(requests.context["time_ms"][request]),
        "context": {name: column[0].item() for name, column in context.items()},
        "candidates": {
            "item_id": columns.pop("item_id").tolist(),
            "features": {name: column.tolist() for name, column in columns.items()},
        },
    }


def write_traffic(path: Path, logs: Logs, count: int = 200) -> None:
    """JSON lines: the users, the most active first; the last `count` requests and events."""
    users = Counter(logs.requests.user_id.tolist())
    requests = np.argsort(logs.requests.context["time_ms"], kind="stable")[-count:]
    events = np.argsort(logs.events.rows["time_ms"], kind="stable")[-count:]
    behaviour = columns_from_rows(logs.schema.layouts["realtime"], logs.events.rows[events])
    with path.open("w") as lines:
        for user, _ in users.most_common():
            lines.write(json.dumps({"user_id": user}) + "\n")
        for request in requests.tolist():
            lines.write(json.dumps({"rank": rank_body(logs, request)}) + "\n")
        for i in range(len(events)):
            event = {name: column[i].item() for name, column in behaviour.items()}
            lines.write(json.dumps({"event": event}) + "\n")
