"""From the socket to whole bytes of a known format, bounded in memory."""

from starlette.requests import Request

from service.errors import TooLarge, UnsupportedMedia
from service.http.wire import Formats

MEDIA: dict[str, Formats] = {
    "application/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
}


def body_format(request: Request) -> Formats:
    """The format that Content-Type names (JSON where it is absent); raises UnsupportedMedia."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMedia(
            "a compressed body", path="$", expected="no Content-Encoding, or identity"
        )
    media = request.headers.get("content-type", "application/json").partition(";")[0]
    try:
        return MEDIA[media.strip().lower()]
    except KeyError:
        expected = "Content-Type application/json or application/msgpack"
        raise UnsupportedMedia("another media type", path="$", expected=expected) from None


def answer_format(request: Request, body: Formats) -> Formats:
    """The format that Accept names, else the body's own."""
    accept = request.headers.get("accept", "*/*")
    if "msgpack" in accept:
        return "msgpack"
    return "json" if "application/json" in accept else body


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; raises TooLarge as soon as it is known to exceed `limit` bytes."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(declared, limit)
    chunks, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > limit:
            raise _too_large(f"more than {limit}", limit)
        if chunk:
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(length: str, limit: int) -> TooLarge:
    return TooLarge(f"{length} bytes", path="$", expected=f"a body of at most {limit} bytes")
