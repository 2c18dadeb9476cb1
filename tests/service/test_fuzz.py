"""A few thousand cases of every target of `tests.service.fuzz`; `make fuzz` runs the many."""

from collections.abc import Callable

import httpx
import pytest

from service.http.wire import Decoders
from tests.service.fuzz import Fuzzed, decoders_and_records, over_http, read_body

CASES = 2000
GROWTH_MIB = 32.0
"""What hypothesis and allocators may take; a leak of a body a case would be more."""


def flat(done: Fuzzed) -> bool:
    before, after = done.memory
    return after - before < GROWTH_MIB


@pytest.mark.parametrize("run", decoders_and_records(CASES).values(), ids=decoders_and_records(0))
def test_whatever_comes_is_taken_or_refused_in_words(run: Callable[[], list[Fuzzed]]) -> None:
    """Decoders, validation and record parsers raise nothing but their own refusals, in bounded
    memory; good and bad cases both occur."""
    for done in run():
        assert done.outcomes.total() >= CASES
        assert done.outcomes["taken"] + done.outcomes["whole"] > CASES / 100
        assert done.outcomes["malformed"] + done.outcomes["corrupt"] > CASES / 100
        assert flat(done)


def test_the_openapi_document_has_no_case_that_breaks_the_gateway(client: httpx.Client) -> None:
    """No case of any operation gets a 5xx that is no refusal, and memory stays."""
    for done in over_http(str(client.base_url).rstrip("/"), CASES // 4, "self"):
        assert done.outcomes.total() >= CASES / 40
        assert flat(done)


def test_the_fuzzer_notices_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but a refusal comes out of a target."""

    def bug(self: Decoders, body: bytes, format: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Decoders, "decode", bug)
    with pytest.raises(ZeroDivisionError):
        read_body("json", "rank", b"{}")
