"""The dashboards: each answers one question."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from service.observability.boards.anatomy import anatomy
from service.observability.boards.engine import engine
from service.observability.boards.health import health
from service.observability.boards.overview import overview


def boards() -> tuple[Dashboard, ...]:
    """In the order in which an on-call engineer looks at them."""
    return overview(), anatomy(), engine(), health()
