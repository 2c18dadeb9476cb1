"""Which of several servers a user's requests go to."""

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Addressed(Protocol):
    """A server with an address of its own."""

    address: str


Server = TypeVar("Server", bound=Addressed)


def by_preference(user_id: str, servers: Sequence[Server]) -> Sequence[Server]:
    """The servers, the user's own first, then where the requests go if it fails.

    Rendezvous hashing (Thaler and Ravishankar, 1998): a user keeps the server while others come
    and go, and the users of one that is gone spread evenly over the rest.
    """
    if len(servers) == 1:
        return servers

    def weight(server: Server) -> bytes:
        return hashlib.blake2b(f"{server.address} {user_id}".encode(), digest_size=8).digest()

    return sorted(servers, key=weight, reverse=True)
