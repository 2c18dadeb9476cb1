"""Whose request it is: an API key's name where keys are required, else who is behind it.

A key is `NAME.SECRET` in the header `x-api-key`. The gateway knows the SHA-256 of secrets alone:
they are random and long (`mtgr key`), so a slow hash would add nothing.
"""

import hashlib
import hmac
import math
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from model_def.schema import Frozen
from service.errors import BadSetting, RateLimited, Unauthorized
from service.settings import Settings

Headers = Mapping[bytes, bytes]


class ApiKey(Frozen):
    """What is known of a caller's key."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the secret, hexadecimal")
    rate_per_s: float | None = Field(
        default=None,
        gt=0,
        description="requests a second in each worker; null: no limit of its own",
    )
    burst: int = Field(default=100, ge=1, description="requests at once after a pause")


class Bucket:
    """A token bucket: `rate_per_s` requests a second, `burst` of them at once after a pause."""

    def __init__(self, rate_per_s: float, burst: int):
        self._rate, self._burst = rate_per_s, float(burst)
        self._tokens, self._at = self._burst, monotonic()

    def take(self) -> None:
        """Take a token; raises RateLimited with the time until there is one."""
        now = monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            wait_s = (1 - self._tokens) / self._rate
            raise RateLimited(
                f"the key allows {self._rate:g} requests a second",
                retry_after_s=max(1, math.ceil(wait_s)),
            )
        self._tokens -= 1


class Callers:
    """Tells callers apart, and lets each do what its key allows."""

    def __init__(self, keys: Mapping[str, ApiKey], header: str = ""):
        """Without `keys` everybody may call, named by `header` (a proxy's) or by address."""
        self._header = header.lower().encode()
        self._digests = {name: bytes.fromhex(key.sha256) for name, key in keys.items()}
        self._buckets = {
            name: Bucket(key.rate_per_s, key.burst) for name, key in keys.items() if key.rate_per_s
        }

    def identify(self, headers: Headers, address: str) -> str:
        """The caller's name; raises Unauthorized or RateLimited."""
        if not self._digests:
            given = headers.get(self._header) if self._header else None
            return given.decode("latin-1") if given else address
        name, _, secret = headers.get(b"x-api-key", b"").partition(b".")
        caller = name.decode("latin-1")
        # An unknown name costs the same comparison as a wrong secret.
        known = self._digests.get(caller, bytes(32))
        if not hmac.compare_digest(hashlib.sha256(secret).digest(), known):
            raise Unauthorized("the header x-api-key holds no key of this service")
        if bucket := self._buckets.get(caller):
            bucket.take()
        return caller


def open_callers(settings: Settings) -> Callers:
    """As the settings say; raises BadSetting as `read_keys` does."""
    keys = read_keys(settings.api_keys_file) if settings.api_keys_file else {}
    return Callers(keys, settings.caller_header)


def read_keys(path: Path) -> dict[str, ApiKey]:
    """Keys by name of a JSON file: {"feed": {"sha256": "...", "rate_per_s": 500}}. Raises
    BadSetting naming what is wrong."""
    try:
        keys: Any = TypeAdapter(dict[str, ApiKey]).validate_json(path.read_bytes())
    except OSError as error:
        raise BadSetting(f"api_keys_file: {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadSetting(f"api_keys_file: {path}: {where}: {first['msg']}") from None
    if not keys or any("." in name or not name for name in keys):
        raise BadSetting(f"api_keys_file: {path}: expected at least one key, no name with a dot")
    return dict(keys)
