"""From the socket to whole bytes of a known format, bounded in memory."""

from collections.abc import Mapping

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.errors import TooLarge, UnsupportedMedia
from service.http.wire import Formats

Headers = Mapping[bytes, bytes]
"""By name in lower case."""

MEDIA: dict[bytes, Formats] = {
    b"application/json": "json",
    b"application/msgpack": "msgpack",
    b"application/x-msgpack": "msgpack",
    b"application/vnd.msgpack": "msgpack",
}


def body_format(headers: Headers) -> Formats:
    """The format that Content-Type names (JSON where it is absent); raises UnsupportedMedia."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise UnsupportedMedia(
            "a compressed body", path="$", expected="no Content-Encoding, or identity"
        )
    media = headers.get(b"content-type", b"application/json").partition(b";")[0]
    try:
        return MEDIA[media.strip().lower()]
    except KeyError:
        expected = "Content-Type application/json or application/msgpack"
        raise UnsupportedMedia("another media type", path="$", expected=expected) from None


def answer_format(headers: Headers, body: Formats) -> Formats:
    """The format that Accept names, else the body's own."""
    accept = headers.get(b"accept", b"*/*")
    if b"msgpack" in accept:
        return "msgpack"
    return "json" if b"application/json" in accept else body


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body; raises TooLarge as soon as it is known to exceed `limit` bytes, and
    ClientDisconnect where the caller goes before its end."""
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(declared.decode(), limit)
    chunks: list[bytes] = []
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        length += len(chunk)
        if length > limit:
            raise _too_large(f"more than {limit}", limit)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def is_gone(receive: Receive) -> bool:
    """Whether the caller of a request whose body was read has gone, without a wait.

    The server's next message is asked for by hand and dropped where there is none yet: Starlette's
    way, a scope of anyio's that is cancelled, takes a tenth of a millisecond, and at its first use
    imports for tens of them while every other request waits.
    """
    message = receive().__await__()
    try:
        next(message)
    except StopIteration as ready:
        return bool(ready.value["type"] == "http.disconnect")
    message.close()
    return False


def _too_large(length: str, limit: int) -> TooLarge:
    return TooLarge(f"{length} bytes", path="$", expected=f"a body of at most {limit} bytes")
