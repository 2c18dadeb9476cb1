"""A closed-loop load on one server: a few connections, each with one request on its way.

Plain sockets and one epoll: the client must outrun a bare echo server from the other core.
"""

import re
import select
import socket
import time
from dataclasses import dataclass

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_TIMING = re.compile(rb"([a-z]+);dur=([0-9.]+)")
_READ = 1 << 18


@dataclass(frozen=True)
class Load:
    """What one run saw."""

    latencies_s: list[float]
    seconds: float
    stages_ms: dict[str, float]
    """Mean of each stage of the answers' `Server-Timing`."""

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.latencies_s)
        return 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class _Connection:
    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._got = b""

    def send(self, request: bytes) -> None:
        self._got = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def answer(self) -> bytes | None:
        """The whole answer once it is here; raises where it is no 200."""
        part = self.socket.recv(_READ)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._got += part
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return None
        length = _LENGTH.search(self._got, 0, end)
        if length is None or len(self._got) < end + 4 + int(length[1]):
            return None
        if not self._got.startswith(b"HTTP/1.1 200"):
            raise ValueError(self._got[:500].decode(errors="replace"))
        return self._got


def post(path: str, body: bytes, media: str) -> bytes:
    """The bytes of one request."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: {media}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def load(port: int, requests: list[bytes], seconds: float, connections: int = 8) -> Load:
    """Send `requests` in turn for that long; raises at the first answer that is no 200."""
    opened = [_Connection(port) for _ in range(connections)]
    poll = select.epoll()
    by_number = {c.socket.fileno(): c for c in opened}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    latencies: list[float] = []
    timings: list[bytes] = []
    sent = 0
    start = time.perf_counter()
    for connection in opened:
        connection.send(requests[sent % len(requests)])
        sent += 1
    waiting = len(opened)
    while waiting:
        for number, _ in poll.poll(30.0):
            connection = by_number[number]
            answer = connection.answer()
            if answer is None:
                continue
            now = time.perf_counter()
            latencies.append(now - connection.sent_at)
            if len(latencies) % 16 == 0:
                timings.append(answer[: answer.find(b"\r\n\r\n")])
            if now - start < seconds:
                connection.send(requests[sent % len(requests)])
                sent += 1
            else:
                waiting -= 1
    taken = time.perf_counter() - start
    for connection in opened:
        connection.socket.close()
    sums: dict[str, float] = {}
    for head in timings:
        for stage, spent in _TIMING.findall(head):
            sums[stage.decode()] = sums.get(stage.decode(), 0.0) + float(spent)
    return Load(latencies, taken, {stage: s / len(timings) for stage, s in sums.items()})
