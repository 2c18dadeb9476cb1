"""Ablation results as the paper prints them: Table 3, Table 4, and what each leak looked like.

Every number is a mean over seeds with its 95% interval, by Student's t; differences are taken
within a seed, which shares its city.
"""

from collections.abc import Callable, Sequence
from statistics import mean, stdev

from model_def.ablation import FULL, TRUTH, Result

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t, from 1 degree of freedom on."""

COLUMNS = {
    "CTR AUC": "ctr_auc",
    "CTR GAUC": "ctr_gauc",
    "CTCVR AUC": "ctcvr_auc",
    "CTCVR GAUC": "ctcvr_gauc",
}
WIDTH = 19

Measure = Callable[[Result], float]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95% interval; NaN where one value tells no spread."""
    if len(values) < 2:
        return mean(values), float("nan")
    quantile = STUDENT[len(values) - 2] if len(values) <= len(STUDENT) + 1 else 1.96
    return mean(values), quantile * stdev(values) / len(values) ** 0.5


def as_text(results: Sequence[Result]) -> str:
    """Every table of the results; variants in the order in which they first appear."""
    names = list(dict.fromkeys(r.variant for r in results if r.variant != TRUTH))
    served: dict[str, Measure] = {
        title: lambda r, key=key: r.served[key]  # type: ignore[misc]  # mypy: default in lambda
        for title, key in COLUMNS.items()
    }
    whole = [name for name in (FULL.name, TRUTH) if any(r.variant == name for r in results)]
    leak: dict[str, Measure] = {
        "trained CTR AUC": lambda r: r.trained,
        "in windows CTR GAUC": lambda r: r.windows["ctr_gauc"],
        "as served CTR GAUC": lambda r: r.served["ctr_gauc"],
    }
    seeds = len({r.seed for r in results})
    parts = [
        f"Mean over {seeds} seeds and 95% interval; GAUC by request, held-out day as served.",
        _table("Table 3: overall", whole, served, results),
        _table("change against the best, within a seed", whole[:1], served, results, TRUTH),
        _table("Table 4: ablation", names, served, results),
        _table("change against MTGR, within a seed", names[1:], served, results, FULL.name),
        _table("what offline evaluation would see", names, leak, results),
        _table("change against MTGR, within a seed", names[1:], leak, results, FULL.name),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(
    title: str,
    names: Sequence[str],
    columns: dict[str, Measure],
    results: Sequence[Result],
    base: str | None = None,
) -> str:
    if not names:
        return ""
    width = max(len(title), *map(len, names))
    lines = [f"{title:{width}}" + "".join(f"{column:>{WIDTH + 2}}" for column in columns)]
    for name in names:
        cells = []
        for measure in columns.values():
            values = {r.seed: measure(r) for r in results if r.variant == name}
            if base is not None:
                of_base = {r.seed: measure(r) for r in results if r.variant == base}
                values = {s: v - of_base[s] for s, v in values.items() if s in of_base}
            middle, half = interval([*values.values()])
            sign = "+" if base is not None else ""
            cells.append(f"{middle:{sign}.4f} ± {half:.4f}")
        lines.append(f"{name:{width}}" + "".join(f"{cell:>{WIDTH + 2}}" for cell in cells))
    return "\n".join(lines)
