"""Who leaves a connection to another worker."""

from hypothesis import given
from hypothesis import strategies as st

from service.accepting import Accepting

counts = st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=1, max_size=6)


@given(counts)
def test_somebody_takes_a_connection(connections: list[int | None]) -> None:
    """Of the workers that take connections, those and only those with the fewest do not wait;
    workers that take none (None) are waited for by nobody."""
    accepting = Accepting(len(connections))
    parts = [accepting.part(slot) for slot in range(len(connections))]
    for part, count in zip(parts, connections, strict=True):
        if count is not None:
            part.tell(count)
    taking = [(part, count) for part, count in zip(parts, connections, strict=True)
              if count is not None]  # fmt: skip
    fewest = min((count for _, count in taking), default=0)
    assert [part.has_more for part, _ in taking] == [count > fewest for _, count in taking]


def test_who_is_gone_is_waited_for_by_nobody() -> None:
    """Neither a worker that takes no more nor one that has ended."""
    accepting = Accepting(3)
    first, second, third = (accepting.part(slot) for slot in range(3))
    for part, count in ((first, 0), (second, 0), (third, 2)):
        part.tell(count)
    assert third.has_more
    first.closes()
    assert third.has_more
    accepting.ended(1)
    assert not third.has_more


def test_the_others_wait_for_the_first() -> None:
    """Until its engines are loaded, or it has ended."""
    accepting = Accepting(2)
    first, second = accepting.part(0, early=True), accepting.part(1)
    assert (first.allowed, second.allowed) == (True, False)
    second.loaded()
    assert not second.allowed
    first.loaded()
    assert second.allowed

    accepting = Accepting(2)
    second = accepting.part(1)
    accepting.ended(0)
    assert second.allowed
