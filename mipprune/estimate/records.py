"""What an estimation found: single indices and pairwise interactions, with their uncertainty."""

from __future__ import annotations

import dataclasses
from typing import Self

import numpy as np
from scipy import special

from ..errors import ConfigError, DataError
from ..records import Record, frozen_array
from .blocks import SampleSums, mean_and_stderr

__all__ = ["TERMINATIONS", "Estimate", "Interactions", "SampleMarginals"]

#: Why an estimation ended; an exact one is always "completed".
TERMINATIONS = ("completed", "resolved", "time_limit", "interrupted")


@dataclasses.dataclass(frozen=True, eq=False)
class SampleMarginals(Record):
    """The importances sample by sample: their mean over the data is the estimate.

    Attributes:
        values: float64 (N, n), sample k's own index of player i.
        noise: float64 (N, n), the sampling variance of ``values``.
    """

    values: np.ndarray
    noise: np.ndarray

    def __post_init__(self) -> None:
        for name in ("values", "noise"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))
        if self.values.ndim != 2 or self.values.shape != self.noise.shape:
            raise DataError(f"values and noise must be (N, n) both, got {self.values.shape} and {self.noise.shape}")

    @classmethod
    def of(cls, sums: SampleSums) -> Self:
        """From the sums of at least two replicates."""
        count = sums.n_replicates
        values = sums.sums / count
        return cls(values, np.maximum(0.0, sums.squares / count - values**2) / (count - 1))

    @property
    def std(self) -> np.ndarray:
        """Standard deviation over the data, float64 (n,): what the samples differ by, without the sampling noise."""
        between = self.values.var(axis=0, ddof=1) if len(self.values) > 1 else np.zeros(self.values.shape[1])
        return np.sqrt(np.maximum(0.0, between - self.noise.mean(axis=0)))


@dataclasses.dataclass(frozen=True, eq=False)
class Estimate(Record):
    """One number per player, exact or sampled.

    The uncertainty is kept as the means of at most 64 blocks of independent replicates.  A replicate measures all
    players on the same coalitions, so their errors are dependent; from the blocks follow the standard error of every
    player, of every difference between players and of every linear combination, and they stay small (64 n numbers)
    where a covariance matrix would not.

    Attributes:
        values: float64 (n,).
        stderr: float64 (n,), standard errors; 0 when exact.
        index: "shapley", "banzhaf", "semivalue", "leave_one_out", or as "3-partial removed".
        p: inclusion probability of a p-binomial semivalue (banzhaf: 0.5, leave_one_out: 1); None for Shapley.
        method: what was used, and what "auto" picked; see :func:`~mipprune.estimate.shapley`.
        n_evals: coalition evaluations that the values rest on; one step of all samples, each at its own coalition,
            counts as one.
        seed: of the sampling; None when exact.
        value_full, value_empty: the game's ends; None where they were not asked for.
        player_names: n names.
        block_means: float64 (B, n); B = 0 when exact, 2 to 64 when sampled.
        block_sizes: int64 (B,), replicates per block.
        termination: why it ended, one of :data:`TERMINATIONS`.
        seconds: wall-clock time.
        samples: what every sample says on its own, if it was asked for (``keep_samples=True``).
    """

    values: np.ndarray
    stderr: np.ndarray
    index: str
    p: float | None
    method: str
    n_evals: int
    seed: int | None
    value_full: float | None
    value_empty: float | None
    player_names: tuple[str, ...]
    block_means: np.ndarray
    block_sizes: np.ndarray
    termination: str = "completed"
    seconds: float = 0.0
    samples: SampleMarginals | None = None

    def __post_init__(self) -> None:
        for name in ("values", "stderr", "block_means"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))
        object.__setattr__(self, "block_sizes", frozen_array(self.block_sizes, np.int64))
        n, blocks = len(self.player_names), len(self.block_sizes)
        shapes = (self.values.shape, self.stderr.shape, self.block_means.shape)
        if shapes != ((n,), (n,), (blocks, n)) or blocks == 1:
            raise DataError(f"an estimate of {n} players can't have arrays of shapes {shapes}")
        if self.termination not in TERMINATIONS:
            raise DataError(f"termination must be one of {TERMINATIONS}, got {self.termination!r}")

    @property
    def n_players(self) -> int:
        """Number of players."""
        return len(self.values)

    @property
    def exact(self) -> bool:
        """Whether nothing was sampled: errors are 0."""
        return not len(self.block_sizes)

    @property
    def degrees_of_freedom(self) -> int:
        """Blocks minus one; 0 when exact."""
        return max(0, len(self.block_sizes) - 1)

    def confidence_interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, float64 (n,) each, by Student's t; each player's own level, not a joint one."""
        half = quantile(level, self.degrees_of_freedom) * self.stderr
        return self.values - half, self.values + half

    def combination(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and standard error of ``coefficients @ values``.

        Args:
            coefficients: float64 (n,) or (k, n).

        Returns:
            Two float64 arrays of shape () or (k,); errors are 0 when exact.

        Raises:
            DataError: coefficients of another shape.
        """
        coefficients = np.asarray(coefficients, dtype=np.float64)
        if coefficients.shape[-1:] != self.values.shape:
            raise DataError(f"expected {self.n_players} coefficients, got shape {coefficients.shape}")
        value = coefficients @ self.values
        if self.exact:
            return value, np.zeros_like(value)
        return value, mean_and_stderr(self.block_means @ coefficients.T, self.block_sizes)[1]

    def difference(self, i: int | np.ndarray, j: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``values[i] - values[j]`` and its paired standard error; ``i`` and ``j`` are numbers, or arrays of one shape.

        For the differences across a cut, from the k best to the rest: ``order = e.ranking()``, then
        ``e.difference(order[:k, None], order[k:])``, two arrays (k, n - k).
        """
        i, j = np.broadcast_arrays(i, j)
        value = self.values[i] - self.values[j]
        if self.exact:
            return value, np.zeros_like(value)
        return value, mean_and_stderr(self.block_means[:, i] - self.block_means[:, j], self.block_sizes)[1]

    def risk_averse(self, k: float = 1.0) -> np.ndarray:
        """``values + k std``, float64 (n,), with the standard deviation of the importance over the data.

        A player that few samples need, but need much, ranks higher than its mean says.

        Raises:
            ConfigError: the estimate was made without ``keep_samples=True``.
        """
        if self.samples is None:
            raise ConfigError("the samples' own marginals weren't kept; estimate with keep_samples=True")
        return self.values + k * self.samples.std

    def ranking(self) -> np.ndarray:
        """Player numbers from the highest value to the lowest, ties by number: int64 (n,)."""
        return np.argsort(-self.values, kind="stable")

    def top(self, k: int) -> np.ndarray:
        """The ``k`` players of highest value, best first: int64 (k,).

        Raises:
            ConfigError: there are fewer.
        """
        if not 0 <= k <= self.n_players:
            raise ConfigError(f"top({k}): this estimate has {self.n_players} players")
        return self.ranking()[:k]

    def __str__(self) -> str:
        shown = self.top(min(10, self.n_players))
        rows = [f"  {self.player_names[i]:>20}  {self.values[i]: .6g} +- {self.stderr[i]:.2g}" for i in shown]
        rest = [f"  ... {self.n_players - len(shown)} more"] if len(shown) < self.n_players else []
        return "\n".join([_headline(self.index, self.p, self.method, self.n_evals, self.termination), *rows, *rest])


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions(Record):
    """One number per pair of players: how much more (or less) two are worth together than apart.

    Attributes:
        values: float64 (n, n), symmetric, zero diagonal.
        stderr: float64 (n, n), standard errors; 0 when exact.
        index: "banzhaf", "shapley" (SII), "faithful_shapley" (FSII of order 2) or "semivalue".
        p: inclusion probability for "banzhaf" (0.5) and "semivalue"; None otherwise.
        method: "exact", "sampled", or "sample_sampled" where every sample had masks of its own.
        n_evals: coalition evaluations that the values rest on.
        seed: of the sampling; None when exact.
        player_names: n names.
        degrees_of_freedom: of the standard errors; 0 when exact.
        termination, seconds: as in :class:`Estimate`.
    """

    values: np.ndarray
    stderr: np.ndarray
    index: str
    p: float | None
    method: str
    n_evals: int
    seed: int | None
    player_names: tuple[str, ...]
    degrees_of_freedom: int = 0
    termination: str = "completed"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        n = len(self.player_names)
        for name in ("values", "stderr"):
            array = frozen_array(getattr(self, name))
            if array.shape != (n, n) or (array != array.T).any() or np.diag(array).any():
                raise DataError(f"{name}: expected a symmetric ({n}, {n}) array with zero diagonal")
            object.__setattr__(self, name, array)

    @property
    def n_players(self) -> int:
        """Number of players."""
        return len(self.player_names)

    @property
    def exact(self) -> bool:
        """Whether nothing was sampled: errors are 0."""
        return self.degrees_of_freedom == 0

    def confidence_interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, float64 (n, n) each, by Student's t; each pair's own level, not a joint one."""
        half = quantile(level, self.degrees_of_freedom) * self.stderr
        return self.values - half, self.values + half

    def top(self, k: int) -> np.ndarray:
        """The ``k`` pairs (i < j) of largest absolute value, strongest first: int64 (k, 2).

        Raises:
            ConfigError: there are fewer.
        """
        pairs = np.stack(np.triu_indices(self.n_players, 1), axis=1)
        if not 0 <= k <= len(pairs):
            raise ConfigError(f"top({k}): there are {len(pairs)} pairs")
        return pairs[np.argsort(-np.abs(self.values[pairs[:, 0], pairs[:, 1]]), kind="stable")[:k]]

    def __str__(self) -> str:
        pairs = self.top(min(10, self.n_players * (self.n_players - 1) // 2))
        names = self.player_names
        rows = [
            f"  {names[i]:>20} {names[j]:>20}  {self.values[i, j]: .6g} +- {self.stderr[i, j]:.2g}" for i, j in pairs
        ]
        head = _headline(f"{self.index} interactions", self.p, self.method, self.n_evals, self.termination)
        return "\n".join([head, *rows])


def quantile(level: float, degrees_of_freedom: int) -> float:
    """Two-sided Student quantile at a confidence ``level`` in (0, 1); 0 for 0 degrees of freedom (exact values)."""
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level={level}: a confidence level lies between 0 and 1, e.g. 0.95")
    return float(special.stdtrit(degrees_of_freedom, 0.5 + level / 2)) if degrees_of_freedom else 0.0


def _headline(index: str, p: float | None, method: str, n_evals: int, termination: str) -> str:
    law = f" (p = {p:g})" if p is not None else ""
    ended = "" if termination == "completed" else f"; stopped early: {termination}"
    return f"{index}{law}, {method}, {n_evals} evaluations{ended}"
