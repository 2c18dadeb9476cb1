"""An HTTP server that answers as it is told to."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

PATIENT_S = 30.0


class ToldServer:
    """Answers each request with the next of these bytes; None ends the connection."""

    def __init__(self, *answers: bytes | None):
        self.answers = [*answers]
        self.heads: list[bytes] = []
        self.connections = 0
        self.may_answer = asyncio.Event()
        """Another event in its place is for requests that come from then on."""
        self.may_answer.set()
        self._tasks: list[Any] = []

    def asked(self, use: Callable[[str], Awaitable[Any]]) -> Any:
        """What `use` gives, which is told where the server is ("host:port")."""

        async def run() -> Any:
            listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            try:
                return await use(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
            finally:
                listening.close()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

        return asyncio.run(asyncio.wait_for(run(), PATIENT_S))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0]
                await reader.readexactly(int(length))
                self.heads.append(head)
                await self.may_answer.wait()
                reply = self.answers.pop(0)
                if reply is None:
                    break
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
