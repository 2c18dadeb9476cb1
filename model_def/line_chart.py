"""A chart as inline SVG: lines and dots over two axes, coloured by class. No more than a report of
training needs."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 38


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    diagonal: bool = False,
) -> str:
    """SVG of named series; `log`: both axes logarithmic, over positive values alone.

    `diagonal`: both axes share one scale, with the line y = x.
    """
    kept = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (not log or min(x, y) > 0)]
        for name, points in series.items()
    }
    xs, ys = ([p[axis] for points in kept.values() for p in points] for axis in (0, 1))
    if not xs:
        return "<p>Nothing to draw.</p>"
    if diagonal:
        xs = ys = xs + ys
    across = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log)
    up = _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log)
    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick)}" y2="{up(tick)}"/>'
        f'<text x="{LEFT - 6}" y="{up(tick) + 4}" text-anchor="end">{tick:g}</text>'
        for tick in up.ticks()
    ]
    parts += [
        f'<text x="{across(tick)}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g}</text>'
        for tick in across.ticks()
    ]
    if diagonal:
        ends = f'x1="{across(across.low)}" y1="{up(up.low)}" x2="{across(across.high)}"'
        parts.append(f'<line class="ideal" {ends} y2="{up(up.high)}"/>')
    for number, points in enumerate(kept.values()):
        path = " ".join(f"{across(x)},{up(y)}" for x, y in points)
        parts.append(f'<polyline class="s{number}" points="{path}"/>')
        if len(points) <= 40:
            parts += [
                f'<circle class="s{number}" cx="{across(x)}" cy="{up(y)}" r="3.5">'
                f"<title>{x:.4g}, {y:.4g}</title></circle>"
                for x, y in points
            ]
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    keys = "".join(
        f'<span class="key"><i class="s{number}"></i>{escape(name)}</span>'
        for number, name in enumerate(kept)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
        f'<div class="legend">{keys}</div>'
    )


class _Axis:
    """Values to pixels, and about five round values to mark."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool):
        if high <= low:
            low, high = (low / 2, low * 2) if log else (low - 0.5, low + 0.5)
        self.low, self.high, self.log = low, high, log
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return round(self._start + self._length * (value - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) <= 3 else (1,)
            ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        else:
            rough = (self.high - self.low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
            first = math.ceil(self.low / step)
            count = math.floor(self.high / step) - first + 1
            ticks = [round((first + i) * step, 12) for i in range(count)]
        return [tick for tick in ticks if self.low <= tick <= self.high]
