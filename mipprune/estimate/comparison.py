"""How near sampled estimates come to exact values, and whether their intervals tell the truth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError, DataError
from ..records import Record
from .records import Estimate

__all__ = ["Comparison", "ComparisonRow", "compare"]


@dataclasses.dataclass(frozen=True, eq=False)
class ComparisonRow(Record):
    """One estimate against the exact values.

    Attributes:
        label: index, p and method of the estimate.
        relative_error: ``|estimate - exact|_2 / |exact|_2``; NaN when the exact values are all 0.
        max_error: largest absolute error.
        spearman, kendall: rank correlations (Kendall's tau-b); NaN when one side is constant.
        overlaps: per k of the comparison, the share of the exact k best that are among the estimate's k best.
        coverage: share of the players whose confidence interval holds the exact value; None when the estimate is of
            another index or has no intervals.
        n_evals, seconds: of the estimate.
    """

    label: str
    relative_error: float
    max_error: float
    spearman: float
    kendall: float
    overlaps: tuple[float, ...]
    coverage: float | None
    n_evals: int
    seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(Record):
    """Rows of :func:`compare`; printing it shows a table.

    Attributes:
        reference: what the estimates are compared to.
        ks: the k of the top-k overlaps.
        level: confidence level of the coverage.
        rows: one per estimate.
    """

    reference: str
    ks: tuple[int, ...]
    level: float
    rows: tuple[ComparisonRow, ...]

    def __str__(self) -> str:
        head = ["estimate", "rel. error", "max error", "spearman", "kendall", *(f"top {k}" for k in self.ks)]
        table = [[*head, f"in {self.level:.0%} int.", "evals", "seconds"]]
        for row in self.rows:
            numbers = [f"{row.relative_error:.4f}", f"{row.max_error:.3g}", f"{row.spearman:.3f}", f"{row.kendall:.3f}"]
            overlaps = [f"{share:.2f}" for share in row.overlaps]
            cover = "-" if row.coverage is None else f"{row.coverage:.1%}"
            table.append([row.label, *numbers, *overlaps, cover, str(row.n_evals), f"{row.seconds:.2f}"])
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
            for line in table
        ]
        return "\n".join([f"against {self.reference}", lines[0], "-" * len(lines[0]), *lines[1:]])


def compare(exact: Estimate, *estimates: Estimate, ks: Sequence[int] | None = None, level: float = 0.95) -> Comparison:
    """Compare estimates with an exact one of the same players.

    Args:
        exact: the reference; must be exact.
        estimates: what to judge; of other indices too, then only the errors and ranks mean something.
        ks: sizes of the top-k overlaps; a quarter, a half and three quarters of the players by default.
        level: confidence level of the intervals whose coverage is reported.

    Raises:
        ConfigError: no estimates, a reference with standard errors, or a k outside 1..n.
        DataError: an estimate of other players.
    """
    if not exact.exact:
        raise ConfigError("the first argument of compare is the reference and must be exact; this one was sampled")
    if not estimates:
        raise ConfigError("nothing to compare: pass at least one estimate after the exact one")
    n = exact.n_players
    chosen = tuple(ks) if ks is not None else tuple(sorted({max(1, round(n * share / 4)) for share in (1, 2, 3)}))
    if not all(1 <= k <= n for k in chosen):
        raise ConfigError(f"ks={chosen}: every k must lie in 1..{n}")
    rows = tuple(_row(exact, estimate, chosen, level) for estimate in estimates)
    return Comparison(_label(exact), chosen, level, rows)


def _row(exact: Estimate, estimate: Estimate, ks: tuple[int, ...], level: float) -> ComparisonRow:
    from scipy import stats  # takes about a second to load: not when the package is imported

    if estimate.player_names != exact.player_names:
        raise DataError(f"{_label(estimate)} is of other players than the reference")
    error = estimate.values - exact.values
    norm = float(np.linalg.norm(exact.values))
    coverage = None
    if (estimate.index, estimate.p) == (exact.index, exact.p) and not estimate.exact:
        low, high = estimate.confidence_interval(level)
        # players whose marginal never varies have intervals of width 0, which hold the truth up to rounding
        slack = 1e-12 * max(1.0, float(np.abs(exact.values).max()))
        coverage = float(((low - slack <= exact.values) & (exact.values <= high + slack)).mean())
    constant = bool(np.ptp(estimate.values) == 0 or np.ptp(exact.values) == 0)
    return ComparisonRow(
        label=_label(estimate),
        relative_error=float(np.linalg.norm(error)) / norm if norm else math.nan,
        max_error=float(np.abs(error).max()),
        spearman=math.nan if constant else float(stats.spearmanr(estimate.values, exact.values).statistic),
        kendall=math.nan if constant else float(stats.kendalltau(estimate.values, exact.values).statistic),
        overlaps=tuple(len(np.intersect1d(estimate.top(k), exact.top(k))) / k for k in ks),
        coverage=coverage,
        n_evals=estimate.n_evals,
        seconds=estimate.seconds,
    )


def _label(estimate: Estimate) -> str:
    law = f" p={estimate.p:g}" if estimate.index == "semivalue" else ""
    return f"{estimate.index}{law} {estimate.method}"
