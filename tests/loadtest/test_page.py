"""Laws of the HTML page."""

import re
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.charts import Axis, number, round_up
from loadtest.outcome import Outcome
from loadtest.page import page
from loadtest.run import Mark
from tests.loadtest.test_run import document, rows

SHAPES = {"line", "circle", "rect", "path", "text"}


class Reader(HTMLParser):
    """Checks that tags nest, and keeps every attribute and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@settings(deadline=None)
@given(rows)
def test_any_run_makes_a_page_that_needs_nothing_else(
    given_rows: list[tuple[float, float, Outcome]],
) -> None:
    """Tags nest, nothing is fetched from elsewhere, no coordinate is NaN, and the sum is told."""
    run = document(given_rows)
    text = page(run)
    read = Reader(text)
    assert not {name for _, name, _ in read.attributes} & {"src", "href", "srcset"}
    assert "url(" not in text
    assert "@import" not in text
    drawn = [value for tag, name, value in read.attributes if tag in SHAPES and name != "class"]
    assert not [value for value in drawn if "nan" in value or "inf" in value]
    told = re.search(r"([\d,]+) sent = (.*?) failed", read.words)
    assert told is not None
    assert int(told[1].replace(",", "")) == run.sent


def test_what_others_wrote_is_text() -> None:
    """A name or reason with markup in it is shown, not run."""
    run = document([(1, 1, Outcome.FAILED)])
    run.name = "<script>alert(1)</script>"
    run.reasons = {"failed": {"<img src=x>": 1}}
    read = Reader(page(run))
    assert "script" not in {tag for tag, *_ in read.attributes}
    assert "<script>alert(1)</script>" in read.words
    assert "<img src=x>" in read.words


def test_refusals_deeds_and_what_was_watched_are_drawn() -> None:
    """Reasons of refusals, flags with their words, and a chart for each series."""
    run = document([(1, 1, Outcome.REFUSED), (2, 5, Outcome.ANSWERED)])
    run.marks = [Mark(3.0, "Redis <restarted>")]
    run.watched = {"open files": [(0.0, 40.0), (5.0, 41.0)]}
    text = page(run)
    assert "Refusals by reason" in text
    assert "<h2>open files</h2>" in text
    assert text.count("<title>Redis &lt;restarted&gt; at 3</title>") == 4
    assert "Redis <restarted>" in Reader(text).words


def test_the_verdict_leads_the_page() -> None:
    """A missed goal says what was missed; a met one says the goal."""
    missed = page(document([(1, 80, Outcome.ANSWERED)]))
    met = page(document([(1, 8, Outcome.ANSWERED)]))
    assert "Goal missed</b> p99 80.0 ms, goal 50 ms" in missed
    assert "Goal met</b> p99 ≤ 50 ms" in met


@settings(deadline=None)
@given(st.floats(1e-3, 1e5), st.floats(1.01, 1e4), st.booleans())
def test_an_axis_keeps_order_and_its_ends(low: float, factor: float, log: bool) -> None:
    """Greater values lie further along, the ends at the ends, ticks between them."""
    axis = Axis(low, low * factor, 100, 500, log)
    ticks = axis.ticks()
    assert (axis(low), axis(low * factor)) == (100, 500)
    assert [axis(tick) for tick in ticks] == sorted(axis(tick) for tick in ticks)
    assert all(low <= tick <= low * factor for tick in ticks)
    assert len(ticks) <= 13


@settings(deadline=None)
@given(st.floats(1e-6, 1e9))
def test_round_up(value: float) -> None:
    """The next of 1, 2, 5 times a power of ten: no less, and less than 2.5 times as much."""
    assert value * (1 - 1e-8) <= round_up(value) <= 2.5 * value
    assert number(round_up(value))[0] in "1250"
