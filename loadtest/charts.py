"""Charts as inline SVG: lines, points and stacked bars over two axes. Knows nothing of load tests.

Colours come from the page's style sheet by class, so that a chart follows its dark mode.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40


@dataclass(frozen=True)
class Axis:
    """Values to pixels, and the values worth a tick."""

    low: float
    high: float
    start: float
    end: float
    """Pixels of `low` and `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; values beyond the axis stop at its end."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Round values, from three to about seven."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            factors = (1, 2, 5) if last - first <= 3 else (1,)
            every = [f * 10.0**e for e in range(first, last + 1) for f in factors]
        else:
            step = round_up((self.high - self.low) / 6)
            count = math.floor(self.high / step + 1e-9)
            every = [step * i for i in range(math.ceil(self.low / step), count + 1)]
        return [tick for tick in every if self.low <= tick <= self.high]


def round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((f * power for f in (1, 2, 5) if f * power >= value * (1 - 1e-9)), 10 * power)


def number(value: float) -> str:
    """Three significant digits, as a person writes them."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass
class Chart:
    """One chart; marks are drawn in the order in which they are added."""

    x_label: str
    y_label: str
    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False
    log_y: bool = False
    x_ticks: Sequence[tuple[float, str]] | None = None
    """(value, text) where round numbers are not what the axis says."""
    _marks: list[str] = field(default_factory=list)
    _legend: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._x = Axis(*_widened(self.x), LEFT, WIDTH - RIGHT, self.log_x)
        self._y = Axis(*_widened(self.y), HEIGHT - BOTTOM, TOP, self.log_y)

    def line(self, name: str, css: str, points: Iterable[Point | None]) -> None:
        """A line; None is a gap."""
        self._legend.append((name, css))
        path, pen = [], "M"
        for point in points:
            if point is None:
                pen = "M"
                continue
            path.append(f"{pen}{self._x(point[0])},{self._y(point[1])}")
            pen = "L"
        self._marks.append(f'<path class="line {css}" d="{"".join(path)}"/>')

    def dots(self, name: str, css: str, points: Iterable[tuple[float, float, str]]) -> None:
        """Points, each with the text that the pointer shows."""
        self._legend.append((name, css))
        for x, y, text in points:
            self._marks.append(
                f'<circle class="dot {css}" cx="{self._x(x)}" cy="{self._y(y)}" r="4.5">'
                f"<title>{escape(text)}</title></circle>"
            )

    def stacks(
        self, names: Sequence[tuple[str, str]], bars: Iterable[tuple[float, float, list[float]]]
    ) -> None:
        """Stacked bars from (left, right, one height for each of `names`), bottom first."""
        self._legend += names
        for left, right, heights in bars:
            bottom = 0.0
            x, width = self._x(left) + 0.5, max(0.5, self._x(right) - self._x(left) - 1)
            for (name, css), height in zip(names, heights, strict=True):
                if not height:
                    continue
                low, high = self._y(bottom), self._y(bottom + height)
                bottom += height
                self._marks.append(
                    f'<rect class="bar {css}" x="{x}" y="{high}" width="{width:.2f}" '
                    f'height="{low - high:.2f}"><title>{escape(name)}: {number(height)} '
                    f"at {number(left)}</title></rect>"
                )

    def rule(self, text: str, css: str, *, y: float | None = None, x: float | None = None) -> None:
        """A straight line across, with a word on it."""
        if y is not None:
            at, x1, x2 = self._y(y), LEFT, WIDTH - RIGHT
            line = f'x1="{x1}" x2="{x2}" y1="{at}" y2="{at}"'
            words = f'x="{x2 - 4}" y="{at - 4}" text-anchor="end"'
        else:
            at = self._x(x or 0.0)
            line = f'x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
            words = f'x="{at + 4}" y="{TOP + 10}"'
        self._marks.append(
            f'<line class="rule {css}" {line}/><text class="{css}" {words}>{escape(text)}</text>'
        )

    def mark(self, text: str, x: float) -> None:
        """A small flag on the horizontal axis, which tells `text` under the pointer."""
        at, foot = self._x(x), HEIGHT - BOTTOM
        self._marks.append(
            f'<path class="flag" d="M{at},{TOP}V{foot}"/>'
            f'<path class="flag" d="M{at - 4},{foot + 6}L{at},{foot}L{at + 4},{foot + 6}Z">'
            f"<title>{escape(text)} at {number(x)}</title></path>"
        )

    def svg(self) -> str:
        """The chart with its axes and legend."""
        bottom = HEIGHT - BOTTOM
        grid = [
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
            f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{number(tick)}</text>'
            for tick in self._y.ticks()
            for at in [self._y(tick)]
        ]
        ticks = self.x_ticks or [(tick, number(tick)) for tick in self._x.ticks()]
        grid += [
            f'<text x="{self._x(at)}" y="{bottom + 15}" text-anchor="middle">{escape(text)}</text>'
            for at, text in ticks
        ]
        labels = (
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
            f'<text transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y_label)}</text>'
        )
        keys = "".join(
            f'<span class="key"><i class="{css}"></i>{escape(name)}</span>'
            for name, css in self._legend
        )
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(grid)}{labels}'
            f'{"".join(self._marks)}</svg><div class="legend">{keys}</div>'
        )


def _widened(span: tuple[float, float]) -> tuple[float, float]:
    """A span of some length: an axis cannot have none."""
    low, high = span
    return (low, high) if high > low else (low, low + 1)
