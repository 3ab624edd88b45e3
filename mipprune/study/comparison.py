"""How near sampled estimates come to exact values, whether their intervals tell the truth, and what they lead to."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..errors import ConfigError, DataError
from ..estimate import Estimate
from ..game.base import Game, TableGame
from ..records import Record
from ..solver import Problem, solve
from ..surrogates import Additive, Surrogate

__all__ = ["Comparison", "ComparisonRow", "SolutionRow", "compare"]

#: Makes the problem of a requirement from an additive surrogate.
MakeProblem = Callable[[Surrogate], Problem]


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
class SolutionRow(Record):
    """The units that a problem keeps when an estimate gives the additive importances.

    Attributes:
        requirement: name of the problem.
        label: index, p and method of the estimate; "best mask" for the best of all masks of the game.
        n_evals: of the estimate.
        n_kept: units kept.
        overlap: share of the units kept under the exact importances that are kept here too.
        regret: how much more the mask loses than that of the exact importances, both valued by the exact importances;
            negative only where the problem doesn't minimise the drop and the mask breaks its limit.
        true_drop: value of the game with all players minus that of the mask; ``None`` without a game.
        proved: whether the solver proved the mask optimal for the importances it was given.
    """

    requirement: str
    label: str
    n_evals: int
    n_kept: int
    overlap: float
    regret: float
    true_drop: float | None
    proved: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(Record):
    """Rows of :func:`compare`; printing it shows them as tables.

    Attributes:
        reference: what the estimates are compared to.
        ks: the k of the top-k overlaps.
        level: confidence level of the coverage.
        rows: one per estimate.
        solutions: per requirement the solution of the exact importances, then one per estimate, then the best mask of
            all where the whole game was given as a table.
    """

    reference: str
    ks: tuple[int, ...]
    level: float
    rows: tuple[ComparisonRow, ...]
    solutions: tuple[SolutionRow, ...] = ()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw error and loss over evaluations to the file ``path``; see :func:`mipprune.study.plot_comparison`."""
        from .plots import plot_comparison

        plot_comparison(self, path)

    def __str__(self) -> str:
        head = ["estimate", "rel. error", "max error", "spearman", "kendall", *(f"top {k}" for k in self.ks)]
        table = [[*head, f"in {self.level:.0%} int.", "evals", "seconds"]]
        for row in self.rows:
            numbers = [f"{row.relative_error:.4f}", f"{row.max_error:.3g}", f"{row.spearman:.3f}", f"{row.kendall:.3f}"]
            overlaps = [f"{share:.2f}" for share in row.overlaps]
            cover = "-" if row.coverage is None else f"{row.coverage:.1%}"
            table.append([row.label, *numbers, *overlaps, cover, str(row.n_evals), f"{row.seconds:.2f}"])
        text = f"against {self.reference}\n{_aligned(table, 1)}"
        if not self.solutions:
            return text
        table = [["requirement", "importances", "evals", "kept", "overlap", "regret", "true drop", "proved"]]
        for found in self.solutions:
            drop = "-" if found.true_drop is None else f"{found.true_drop:.4f}"
            table.append([
                found.requirement, found.label, str(found.n_evals), str(found.n_kept), f"{found.overlap:.2f}",
                f"{found.regret:.4g}", drop, "yes" if found.proved else "no",
            ])
        return f"{text}\n\n{_aligned(table, 2)}"


def _aligned(table: list[list[str]], n_words: int) -> str:
    """Columns of one width; the first ``n_words`` to the left, the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        "  ".join(c.ljust(w) if i < n_words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def compare(
    exact: Estimate, *estimates: Estimate, ks: Sequence[int] | None = None, level: float = 0.95,
    keep: Sequence[int] = (), problems: Mapping[str, MakeProblem] | None = None, game: Game | None = None,
) -> Comparison:
    """Compare estimates with an exact one of the same players, and the pruning decisions that follow from them.

    Args:
        exact: the reference; must be exact.
        estimates: what to judge, of growing budgets for instance; of other indices too, then only errors and ranks mean
            something.
        ks: sizes of the top-k overlaps; a quarter, a half and three quarters of the players by default.
        level: confidence level of the intervals whose coverage is reported.
        keep: numbers of units to keep; for each the mask of least additive loss is solved for, from the exact
            importances and from every estimate's.
        problems: further requirements, by name: functions from an additive surrogate to a
            :class:`~mipprune.solver.Problem`.
        game: values the masks truly.  The best mask of every size in ``keep`` is added if it is a
            :class:`~mipprune.game.TableGame` (2^n values are searched).

    Raises:
        ConfigError: no estimates, a reference with standard errors, a k or a number to keep outside 1..n.
        DataError: an estimate or a game of other players.
    """
    if not exact.exact:
        raise ConfigError("the first argument of compare is the reference and must be exact; this one was sampled")
    if not estimates:
        raise ConfigError("nothing to compare: pass at least one estimate after the exact one")
    n = exact.n_players
    chosen = tuple(ks) if ks is not None else tuple(sorted({max(1, round(n * share / 4)) for share in (1, 2, 3)}))
    for name, numbers in (("ks", chosen), ("keep", tuple(keep))):
        if not all(1 <= k <= n for k in numbers):
            raise ConfigError(f"{name}={numbers}: every number must lie in 1..{n}")
    if game is not None and game.n_players != n:
        raise DataError(f"the game has {game.n_players} players, the reference {n}")
    rows = tuple(_row(exact, estimate, chosen, level) for estimate in estimates)
    solutions: list[SolutionRow] = []
    for k in keep:
        best = _best_mask(game, k) if isinstance(game, TableGame) else None
        solutions += _solutions(f"keep {k}", _keeping(k), exact, estimates, game, best)
    for name, make in (problems or {}).items():
        solutions += _solutions(name, make, exact, estimates, game)
    return Comparison(_label(exact), chosen, level, rows, tuple(solutions))


def _keeping(k: int) -> MakeProblem:
    return lambda surrogate: Problem.minimize_drop(surrogate, budgets={"units": k})


def _solutions(
    name: str, make: MakeProblem, exact: Estimate, estimates: Sequence[Estimate], game: Game | None,
    best: np.ndarray | None = None,
) -> list[SolutionRow]:
    """Rows of one requirement; ``best`` is the best of all masks, where it is known."""
    found = [(_label(e), e.n_evals, solve(make(Additive(e.values)))) for e in (exact, *estimates)]
    masks = [(label, n_evals, solution.kept, solution.proved) for label, n_evals, solution in found]
    if best is not None:
        masks.append(("best mask", 1 << len(best), best, True))
    reference, full = masks[0][2], None if game is None else game.value_full
    return [
        SolutionRow(
            name, label, n_evals, int(kept.sum()), float(kept[reference].mean()) if reference.any() else 1.0,
            float(exact.values[reference].sum() - exact.values[kept].sum()),
            None if game is None or full is None else full - game.value(kept), proved,
        )
        for label, n_evals, kept, proved in masks
    ]


def _best_mask(game: TableGame, k: int) -> np.ndarray:
    """The mask of at most ``k`` players with the highest value, by looking at all."""
    sizes = np.bitwise_count(np.arange(len(game.table)))
    code = int(np.where(sizes <= k, game.table, -np.inf).argmax())
    return (code >> np.arange(game.n_players) & 1).astype(bool)


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
