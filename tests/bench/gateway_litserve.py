"""The plain job of `gateway_rivals` in LitServe: a process for HTTP, one worker, queues between."""

from typing import Any

import litserve as ls
from redis import Redis

from tests.bench.gateway_rivals import RankAnswer, RankRequest, keys, ranked


class Rank(ls.LitAPI):
    """One request at a time."""

    def __init__(self, redis_url: str):
        super().__init__(api_path="/v1/rank")
        self._url = redis_url

    def setup(self, device: str) -> None:
        """In the worker."""
        self._redis = Redis.from_url(self._url)

    def decode_request(self, request: RankRequest) -> RankRequest:
        """Validated by its annotation."""
        return request

    def predict(self, request: RankRequest) -> RankAnswer:
        """All of the job."""
        values: Any = self._redis.mget(keys(request.user_id))
        return ranked(request, values)

    def encode_response(self, answer: RankAnswer) -> dict[str, Any]:
        """As JSON's types."""
        return answer.model_dump()


def litserve(port: int, redis_url: str) -> None:
    """Serve it."""
    server = ls.LitServer(Rank(redis_url), accelerator="cpu", workers_per_device=1)
    server.run(port=port, num_api_servers=1, generate_client_file=False, log_level="error")
