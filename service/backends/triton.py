"""An engine on Triton servers. Each user's requests go to one of them while it is up."""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from engine_build.runtime.manifest import EngineKind
from engine_build.runtime.package import ModelPackage
from engine_build.runtime.tensors import served_name
from model_def.batch import PackedBatch
from service.backends.attempts import Budget, first_answer
from service.backends.routing import by_preference
from service.backends.shared_memory import SharedSlots
from service.backends.triton_checks import bring_up
from service.backends.triton_endpoint import Endpoint
from service.breaker import Breaker, Unwatched, Watch
from service.deadline import Deadline
from service.errors import DependencyFailed, NotServing
from service.ranking import Floats

log = logging.getLogger("mtgr")

FIRST_RETRY_S, LAST_RETRY_S = 0.25, 8.0
"""Between two attempts to bring a server up, doubling: loading a broken model costs the others."""

DOWN = ("unavailable", "model_missing")
"""Failures that say the server is there for nobody, until it has been brought up again."""


class TritonBackend:
    """The engine `kind` of `package` at each of `addresses` ("host:port" of its gRPC).

    Requests go there, or to the server's HTTP port where `http` has it. At most `queue` are in
    flight. With `shared_requests`, the values of so many at a time lie in memory shared with
    servers of this host; the others, and those to other hosts, carry them.
    """

    watch: Watch = Unwatched()

    def __init__(
        self,
        package: ModelPackage,
        kind: EngineKind,
        addresses: Sequence[str],
        *,
        queue: int,
        http: Sequence[str] = (),
        shared_requests: int = 0,
    ):
        self._queue, self._in_flight = queue, 0
        self._budget = Budget()
        self._package, self._kind = package, kind
        self._addresses = [*zip(addresses, http or len(addresses) * [None], strict=True)]
        self._shared_requests = shared_requests
        self._slots: SharedSlots | None = None
        self._warm_up: tuple[PackedBatch, ...] = ()
        self._servers: list[Endpoint] = []
        self._mending: dict[str, asyncio.Task[None]] = {}
        self.ready = False
        """Whether a server has been verified and warmed. It stays so when servers fail later: then
        requests are ranked without the model, which beats no answer."""

    async def start(self, warm_up: tuple[PackedBatch, ...]) -> None:
        """Bring up every server that can be, and go on with the others in the background.

        Raises NotServing, with each server's problem, if there is none.
        """
        self._warm_up = warm_up
        if self._shared_requests:
            largest = max(batch.payload_bytes for batch in warm_up)
            self._slots = SharedSlots(self._shared_requests, largest)
        name, config = served_name(self._package.config, self._kind), self._package.config
        queue = self._queue
        self._servers = [
            Endpoint(a, http, name, config, self._slots, Breaker("triton", a, self.watch), queue)
            for a, http in self._addresses
        ]
        tried = await asyncio.gather(*map(self._bring_up, self._servers), return_exceptions=True)
        problems = [problem for problem in tried if problem is not None]
        if len(problems) == len(self._servers):
            await self.close()
            raise NotServing("; ".join(map(str, problems))) from problems[0]
        for server, problem in zip(self._servers, tried, strict=True):
            if problem is not None:
                log.error("%s", problem)
                self._mend(server)
        self.ready = True

    async def score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        """Probability [K] by task. Raises DependencyFailed("triton", reason), the reasons being
        those of `Endpoint.score` and circuit_open; where a server fails or is slow, the user's next
        one is asked, as time and budget allow."""
        if self._in_flight >= self._queue:
            raise DependencyFailed("triton", "queue_full")
        self._in_flight += 1
        try:
            return await self._score(batch, deadline, user_id)
        finally:
            self._in_flight -= 1

    async def _score(
        self, batch: PackedBatch, deadline: Deadline, user_id: str
    ) -> Mapping[str, Floats]:
        up = [s for s in self._servers if s.address not in self._mending]
        servers = [s for s in by_preference(user_id, up) if s.breaker.lets_through]
        if not servers:
            raise DependencyFailed("triton", "circuit_open" if up else "unavailable")

        async def ask(server: Endpoint) -> Mapping[str, Floats]:
            try:
                with server.breaker.call(deadline):
                    return await server.score(batch, deadline)
            except DependencyFailed as error:
                if error.reason in DOWN:
                    self._mend(server)
                raise

        return await first_answer(servers, ask, deadline, self._budget, self.watch)

    async def close(self) -> None:
        """End the connections; the models stay loaded, for other gateways and for going back."""
        self.ready = False
        for task in self._mending.values():
            task.cancel()
        await asyncio.gather(*self._mending.values(), return_exceptions=True)
        for server in self._servers:
            await server.close()
        self._servers = []
        if self._slots is not None:
            self._slots.close()
            self._slots = None

    async def _bring_up(self, server: Endpoint) -> None:
        await bring_up(server, self._package, self._kind, self._warm_up)

    def _mend(self, server: Endpoint) -> None:
        """Take a server out of service until it has been brought up again."""
        if server.address not in self._mending:
            self._mending[server.address] = asyncio.create_task(self._bring_back(server))

    async def _bring_back(self, server: Endpoint) -> None:
        last, pause_s = "", FIRST_RETRY_S
        while True:
            try:
                await self._bring_up(server)
            except NotServing as problem:
                if str(problem) != last:
                    last = str(problem)
                    log.error("%s", last)
                await server.reconnect()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_RETRY_S)
            else:
                log.info("Triton at %s serves %s again", server.address, server.name)
                del self._mending[server.address]
                return
