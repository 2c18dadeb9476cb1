"""Whose fault it is: every way a request can fail, as one small tree.

    ServiceError
      InvalidRequest      the caller's: 422, with the field's path and what was expected
        MalformedHttp     400
        TooSlow           408
        TooLarge          413
        UnsupportedMedia  415
        HeadTooLarge      431
      Refused             valid, and turned away at once
        Overloaded        429, with a time to come back
          Expired         429: its deadline passed before its turn came
          RateLimited     429: its caller's key allows no more
        NotReady          503: the engines are still loading
        FeaturesStale     503: the scene's policy refuses features of that age
      Unauthorized        no valid API key, where keys are required: 401
      Forbidden           an operator's endpoint, without the token: 403
      SwitchRefused       another engine may not take an alias over: 409
      DependencyFailed    Redis or a backend: ranking goes on without, a write refuses (503)

Anything else that escapes is a bug of ours: 500. `type` is a fixed word: the answer's
`error.type` and the metrics' reason.
"""


class ServiceError(Exception):
    """Base of what the gateway answers on purpose."""

    status = 500
    type = "internal"
    path: str | None = None
    expected: str | None = None
    retry_after_s: int | None = None

    def __init__(self, problem: str):
        self.problem = problem
        super().__init__(problem)


class InvalidRequest(ServiceError):
    """A value that cannot be served: its JSONPath, its problem, and what was expected.

    `type` is one of malformed, missing, unknown_field, wrong_type, invalid_value.
    """

    status = 422
    type = "invalid_value"

    def __init__(self, problem: str, *, path: str, expected: str, type: str | None = None):
        self.path, self.expected = path, expected
        self.type = type or self.type
        super().__init__(problem)


class MalformedHttp(InvalidRequest):
    """Bytes that are no HTTP request."""

    status = 400
    type = "malformed_http"


class TooSlow(InvalidRequest):
    """A request that took too long to arrive."""

    status = 408
    type = "too_slow"


class HeadTooLarge(InvalidRequest):
    """A request line and headers over the limit."""

    status = 431
    type = "head_too_large"


class TooLarge(InvalidRequest):
    """A body over the limit."""

    status = 413
    type = "too_large"


class UnsupportedMedia(InvalidRequest):
    """A Content-Type or Content-Encoding that the gateway does not read."""

    status = 415
    type = "unsupported_media"


class Refused(ServiceError):
    """A valid request that is turned away."""

    def __init__(self, problem: str, *, retry_after_s: int):
        self.retry_after_s = retry_after_s
        super().__init__(problem)


class Overloaded(Refused):
    """More work than can be answered in time."""

    status = 429
    type = "overloaded"


class Expired(Overloaded):
    """Its deadline passed before its turn came: a queue that was not foreseen."""

    type = "expired"


class RateLimited(Overloaded):
    """More requests than the caller's API key allows."""

    type = "rate_limited"


class NotReady(Refused):
    """The engines are still loading."""

    status = 503
    type = "not_ready"


class FeaturesStale(Refused):
    """The user's features are older than the scene serves."""

    status = 503
    type = "features_stale"


class Unauthorized(ServiceError):
    """No valid API key."""

    status = 401
    type = "unauthorized"


class Forbidden(ServiceError):
    """An operator's endpoint, asked without the token."""

    status = 403
    type = "forbidden"


class SwitchRefused(ServiceError):
    """Another engine may not take an alias over; the one before it serves on."""

    status = 409
    type = "switch_refused"


class DependencyFailed(ServiceError):
    """Redis or a backend did not do its part. `reason` is a fixed word too."""

    status = 503
    type = "dependency_failed"
    retry_after_s = 1

    def __init__(self, dependency: str, reason: str):
        self.dependency, self.reason = dependency, reason
        super().__init__(f"{dependency}: {reason}")


class NotServing(Exception):
    """An engine that cannot serve as things are beyond this process: which, and what mends it."""


class BadSetting(Exception):
    """A setting that cannot be used, said before the server starts."""
