"""Oracle sets (2407.15875): the best coalition of every size by enumeration, and how near a ranking comes to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ..errors import ConfigError, DataError
from ..game.base import Game, TableGame
from ..records import Record, frozen_array
from .exact import exact_table
from .records import Estimate
from .sampling import BATCH_SIZE

__all__ = [
    "OracleComparison", "OracleRow", "OracleSets", "oracle_comparison", "oracle_sets", "rank_correlations",
    "text_table",
]

#: Values nearer to the best than this, relative to the range of all values, count as equally good.
TIE = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class OracleSets(Record):
    """The best set to keep of every size; what it leaves out is the best set to remove of the complementary size.

    Attributes:
        kept: bool (n + 1, n), row o the best kept set of o players; of equally good ones the first in bit order.
        values: float64 (n + 1,), their values.
        n_best: int64 (n + 1,), how many sets of that size are equally good.
        mean_values: float64 (n + 1,), the mean over all sets of that size: what random choice gets.
        player_names: n names.
    """

    kept: np.ndarray
    values: np.ndarray
    n_best: np.ndarray
    mean_values: np.ndarray
    player_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", frozen_array(self.kept, bool))
        object.__setattr__(self, "n_best", frozen_array(self.n_best, np.int64))
        for name in ("values", "mean_values"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))

    @property
    def removed(self) -> np.ndarray:
        """Row o is the best set of o players to remove, the complement of the best n - o to keep: bool (n + 1, n)."""
        return ~self.kept[::-1]

    @property
    def membership(self) -> np.ndarray:
        """In how many of the best kept sets each player is: int64 (n,).

        A ranking by it is the sets' consensus: they need not be nested, so no ranking may have all of them on top.
        """
        return self.kept.sum(axis=0)

    @property
    def nested(self) -> bool:
        """Whether every best kept set holds the one before, so that a perfect ranking exists."""
        return not bool((self.kept[:-1] & ~self.kept[1:]).any())


@dataclasses.dataclass(frozen=True, eq=False)
class OracleRow(Record):
    """One ranking against the oracle sets.

    Attributes:
        name: of the ranking.
        overlaps: int64 (n + 1,), players shared by the ranking's o best and the best kept set of size o (of equally
            good ones the nearest).
        score: cumulative overlap ``sum_o overlaps[o] / sum_o o`` over o = 1 .. n - 1: 1 when all sets agree.
            ``removed_overlaps`` has the same sum (our derivation), so there is one score for both sides.
        gaps: float64 (n + 1,), value of the oracle set minus that of the ranking's o best, >= 0: loss given away.
        mean_gap: their mean over o = 1 .. n - 1.
        n_evals, seconds: what the ranking cost; 0 for scores that were handed in.
    """

    name: str
    overlaps: np.ndarray
    score: float
    gaps: np.ndarray
    mean_gap: float
    n_evals: int
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "overlaps", frozen_array(self.overlaps, np.int64))
        object.__setattr__(self, "gaps", frozen_array(self.gaps))

    @property
    def removed_overlaps(self) -> np.ndarray:
        """Players shared by the ranking's o last and the best set of o to remove: int64 (n + 1,).

        The others are n - o best on both sides: with c of them shared, ``o - (n - o - c)`` are rightly removed.
        """
        n = len(self.overlaps) - 1
        return 2 * np.arange(n + 1) - n + self.overlaps[::-1]


@dataclasses.dataclass(frozen=True, eq=False)
class OracleComparison(Record):
    """Rankings beside the oracle sets; printing it shows a row per ranking.

    Attributes:
        oracle: the sets.
        rows: one per ranking, in the order given.
        spearman: float64 (m, m), rank correlation of every two rankings' scores; NaN where one is constant.
        random_score: expected score of a random ranking, ``(2 n - 1) / (3 n)`` where the best sets are unique.
        random_gap: expected mean gap of a random ranking.
    """

    oracle: OracleSets
    rows: tuple[OracleRow, ...]
    spearman: np.ndarray
    random_score: float
    random_gap: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "spearman", frozen_array(self.spearman))

    def __str__(self) -> str:
        rows = []
        for row in self.rows:
            numbers = [f"{row.score:.3f}", f"{row.mean_gap:.4f}", f"{row.gaps.max():.4f}", str(row.n_evals)]
            rows.append([row.name, *numbers, f"{row.seconds:.2f}"])
        rows.append(["random order", f"{self.random_score:.3f}", f"{self.random_gap:.4f}", "-", "-", "-"])
        head = ["ranking", "set overlap", "mean gap", "largest gap", "evals", "seconds"]
        n = len(self.oracle.player_names)
        return f"against the best of all {1 << n} coalitions, size by size\n{text_table(head, rows)}"


def oracle_sets(game: Game, *, batch_size: int = BATCH_SIZE, progress: bool = False) -> OracleSets:
    """The best set to keep (and to remove) of every size, from the exhaustive table; n <= 20.

    The oracle rank of 2407.15875 in our form.  2^n evaluations unless ``game`` is a table; O(2^n) time and memory
    beside them.

    Args:
        game: the game.
        batch_size, progress: of the table, see :func:`~mipprune.estimate.exact_table`.

    Raises:
        BudgetError: more than 20 players.
        DataError: a value isn't finite, or there are no players.
    """
    return _oracle(_table(game, batch_size, progress))


def oracle_comparison(
    game: Game, rankings: Mapping[str, Estimate | np.ndarray], *, batch_size: int = BATCH_SIZE, progress: bool = False
) -> OracleComparison:
    """How near rankings come to the oracle sets: set overlap over all sizes, loss given away, rank correlations.

    Args:
        game: the game; its table of 2^n values is made unless it is one (:func:`~mipprune.estimate.exact_table`).
        rankings: name -> an estimate of this game's players, or scores, float64 (n,), high for players to keep; ties
            are broken by number.
        batch_size, progress: of the table, see :func:`~mipprune.estimate.exact_table`.

    Raises:
        BudgetError, DataError: as :func:`oracle_sets`; DataError also for an estimate of other players or scores of
            another shape or with NaN.
        ConfigError: no rankings.
    """
    if not rankings:
        raise ConfigError("nothing to compare: pass at least one ranking")
    n = game.n_players
    scores = {name: _scores(name, ranking, game) for name, ranking in rankings.items()}
    table = _table(game, batch_size, progress)
    oracle, good = _oracle(table), _good(table)
    rows = []
    for name, values in scores.items():
        tops = np.concatenate([[0], np.cumsum(1 << np.argsort(-values, kind="stable"))])
        overlaps = np.array([int(np.bitwise_count(codes & top).max()) for codes, top in zip(good, tops)])
        gaps = np.maximum(oracle.values - table.table[tops], 0.0)
        given = rankings[name]
        cost = (given.n_evals, given.seconds) if isinstance(given, Estimate) else (0, 0.0)
        score = float(overlaps[1:n].sum() / (n * (n - 1) // 2)) if n > 1 else 1.0
        rows.append(OracleRow(name, overlaps, score, gaps, float(gaps[1:n].mean()) if n > 1 else 0.0, *cost))
    lost = (oracle.values - oracle.mean_values)[1:n]
    return OracleComparison(
        oracle, tuple(rows), rank_correlations(list(scores.values())), (2 * n - 1) / (3 * n) if n > 1 else 1.0,
        float(lost.mean()) if n > 1 else 0.0,
    )


def _table(game: Game, batch_size: int, progress: bool) -> TableGame:
    if game.n_players < 1:
        raise DataError("the game has no players")
    return game if isinstance(game, TableGame) else exact_table(game, batch_size=batch_size, progress=progress)


def _good(table: TableGame) -> list[np.ndarray]:
    """Per size 0..n the codes of all sets that are as good as the best: int64."""
    values = table.table
    sizes = np.bitwise_count(np.arange(len(values)))
    best = np.full(table.n_players + 1, -np.inf)
    np.maximum.at(best, sizes, values)
    codes = np.flatnonzero(values >= (best - TIE * np.ptp(values))[sizes])
    order = np.argsort(sizes[codes], kind="stable")
    return np.split(codes[order], np.cumsum(np.bincount(sizes[codes], minlength=len(best)))[:-1])


def _oracle(table: TableGame) -> OracleSets:
    n, good = table.n_players, _good(table)
    first = np.array([codes[0] for codes in good])
    sizes = np.bitwise_count(np.arange(1 << n))
    means = np.bincount(sizes, weights=table.table) / [math.comb(n, o) for o in range(n + 1)]
    kept = first[:, None] >> np.arange(n) & 1
    return OracleSets(kept, table.table[first], np.array([len(codes) for codes in good]), means, table.player_names)


def _scores(name: str, ranking: Estimate | np.ndarray, game: Game) -> np.ndarray:
    if isinstance(ranking, Estimate):
        if ranking.player_names != game.player_names:
            raise DataError(f"ranking {name!r} is of other players than the game")
        return ranking.values
    scores = np.asarray(ranking, dtype=np.float64)
    if scores.shape != (game.n_players,) or np.isnan(scores).any():
        raise DataError(f"ranking {name!r}: expected {game.n_players} scores without NaN, got shape {scores.shape}")
    return scores


def rank_correlations(scores: list[np.ndarray]) -> np.ndarray:
    """Spearman correlation of every two score vectors, ties given their mean rank: float64 (m, m)."""
    from scipy import stats  # takes about a second to load: not when the package is imported

    ranks = np.array([stats.rankdata(values) for values in scores])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((ranks**2).sum(axis=1))
    norm[norm == 0] = math.nan
    return ranks @ ranks.T / norm[:, None] / norm


def text_table(head: list[str], rows: list[list[str]]) -> str:
    """Lines of equal width, the first column to the left and the others to the right."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:]))]) for r in table]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
