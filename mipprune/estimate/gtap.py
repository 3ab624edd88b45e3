"""GTAP (2311.10468): units are kept by a p-binomial index from Dropout-like sampling, in one go or in rounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..errors import BudgetError, ConfigError
from ..game.base import Game
from ..records import Record, frozen_array
from .methods import EVALS_PER_PLAYER
from .pinned import PinnedGame
from .records import Estimate
from .sampling import BATCH_SIZE, Clock, OutOfTimeError
from .semivalues import check_arguments, semivalue

__all__ = ["GtapResult", "GtapRound", "gtap_iterated_building", "gtap_iterated_pruning", "gtap_top_n"]

#: Rounds of the iterated forms unless a step is given.
ROUNDS = 8

#: Masks that a unit should be in, and out of, on average: bounds the default keep rate away from 0 and 1.
MASKS_EACH_WAY = 41


@dataclasses.dataclass(frozen=True, eq=False)
class GtapRound(Record):
    """One estimate among the units still free, and what was decided by it.

    Attributes:
        players: int64 (m,), numbers in the whole game of the free units; entry j of the arrays below is ``players[j]``.
        estimate: their index, given the units pinned in and out so far.
        low, high: float64 (m,), the uncertainty bands: confidence intervals at the level of the run, each unit's own.
        chosen: int64, numbers of the units dropped (top-n, pruning) or added (building), the clearest first.
        undecided: units whose band reaches across the cut, the middle between the last unit chosen and the first not.
    """

    players: np.ndarray
    estimate: Estimate
    low: np.ndarray
    high: np.ndarray
    chosen: np.ndarray
    undecided: int

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))
        for name in ("players", "chosen"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class GtapResult(Record):
    """The units that GTAP keeps, and how it came to them; printing it shows a row per round.

    Attributes:
        algorithm: "top_n", "iterated_pruning" or "iterated_building".
        kept: bool (n,).
        path: bool (R + 1, n), the kept set at the start and after every round; its last row is ``kept``.
        path_values: float64 (R + 1,), the game's values of these sets.
        rounds: the R rounds.
        level: of the bands.
        player_names: n names.
        n_evals: coalition evaluations of all rounds and of the path.
        seed: of the run; a round's estimate has one of its own, derived from it.
        termination: "completed"; "time_limit" when the clock ended a round or the run, "interrupted" on Ctrl-C.  A run
            that ended before its last round decided all that was left by the last estimate it had.
        seconds: wall-clock time.
    """

    algorithm: str
    kept: np.ndarray
    path: np.ndarray
    path_values: np.ndarray
    rounds: tuple[GtapRound, ...]
    level: float
    player_names: tuple[str, ...]
    n_evals: int
    seed: int
    termination: str
    seconds: float

    def __post_init__(self) -> None:
        for name in ("kept", "path"):
            object.__setattr__(self, name, frozen_array(getattr(self, name), bool))
        object.__setattr__(self, "path_values", frozen_array(self.path_values))

    def __str__(self) -> str:
        head = f"GTAP {self.algorithm}: {self.kept.sum()} of {len(self.kept)} units, {self.n_evals} evaluations"
        lines = [head if self.termination == "completed" else f"{head}; stopped early: {self.termination}"]
        lines.append("round      p   free  chosen  undecided   kept       value")
        lines.append(f"{'start':>5}{'':35}{self.path[0].sum():>5}  {self.path_values[0]:>10.4f}")
        for i, (each, kept, value) in enumerate(zip(self.rounds, self.path[1:], self.path_values[1:]), 1):
            p = f"{each.estimate.p:.2f}"
            lines.append(
                f"{i:>5}  {p:>5}  {len(each.players):>5}  {len(each.chosen):>6}  {each.undecided:>9}  {kept.sum():>5}"
                f"  {value:>10.4f}"
            )
        return "\n".join(lines)


def gtap_top_n(
    game: Game, n_keep: int, *, p: float | None = None, method: str = "dropout", n_evals: int | None = None,
    level: float = 0.95, seed: int = 0, time_limit: float | None = None, batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> GtapResult:
    """Estimate once, keep the ``n_keep`` units of highest index (GTAP's top-n, 2311.10468).

    The paper's tables aren't reproduced here: the loop is its, estimator, budget and bands are our form.

    Args:
        game: the game; its players are the units.
        n_keep: units to keep, 1 .. n - 1.
        p: keep rate of the Dropout-like masks, 0 < p < 1.  None: the target density, so that the coalitions of every
            round have ``n_keep`` units on average, pinned ones included; for "dropout" as near to it as the budget
            of a round allows, see :data:`MASKS_EACH_WAY`.
        method: ``"dropout"``: masks keep every unit with chance p, as Dropout does, and a unit's index is the mean
            value of the masks with it minus that of the masks without it (``"reuse"`` of
            :func:`~mipprune.estimate.semivalue`); or another method of that function at the same p, of which
            ``"auto"`` is far faster where the value is a mean over samples.
        n_evals: budget of the whole run in coalition evaluations, never exceeded, shared evenly by the rounds; None:
            256 (n + 1), or until ``time_limit``, or what ``"exact"`` needs.
        level: confidence level of the bands.
        seed: of the sampling.
        time_limit: seconds for the whole run, shared by the rounds.  When they have passed, or on Ctrl-C, the last
            estimate decides all that is left.
        batch_size, progress: as in :func:`~mipprune.estimate.shapley`.

    Raises:
        BudgetError, ConfigError, DataError: as :func:`~mipprune.estimate.semivalue`; ConfigError also for an
            ``n_keep`` or a step out of range.
    """
    run = _Run(game, n_keep, p, method, n_evals, level, seed, time_limit, batch_size, progress)
    return run.result("top_n", [game.n_players - n_keep], dropping=True)


def gtap_iterated_pruning(
    game: Game, n_keep: int, *, drop: int | None = None, p: float | None = None, method: str = "dropout",
    n_evals: int | None = None, level: float = 0.95, seed: int = 0, time_limit: float | None = None,
    batch_size: int = BATCH_SIZE, progress: bool = False,
) -> GtapResult:
    """Drop the lowest units, estimate the others again without them, until ``n_keep`` are left (2311.10468).

    Arguments, errors and what is our form: as :func:`gtap_top_n`.

    Args:
        drop: units that leave per round (fewer in the last); None: as many as make 8 rounds.
    """
    run = _Run(game, n_keep, p, method, n_evals, level, seed, time_limit, batch_size, progress)
    return run.result("iterated_pruning", _steps(game.n_players - n_keep, drop, "drop"), dropping=True)


def gtap_iterated_building(
    game: Game, n_keep: int, *, add: int | None = None, p: float | None = None, method: str = "dropout",
    n_evals: int | None = None, level: float = 0.95, seed: int = 0, time_limit: float | None = None,
    batch_size: int = BATCH_SIZE, progress: bool = False,
) -> GtapResult:
    """Start empty, add the best units, estimate the others again beside them, until ``n_keep`` are in (2311.10468).

    Arguments, errors and what is our form: as :func:`gtap_top_n`.

    Args:
        add: units that come in per round (fewer in the last); None: as many as make 8 rounds.
    """
    run = _Run(game, n_keep, p, method, n_evals, level, seed, time_limit, batch_size, progress)
    return run.result("iterated_building", _steps(n_keep, add, "add"), dropping=False)


def _steps(total: int, step: int | None, name: str) -> list[int]:
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 1):
        raise ConfigError(f"{name}={step!r}: expected a number of units, an integer >= 1")
    size = -(-total // ROUNDS) if step is None else int(step)
    return [min(size, total - at) for at in range(0, total, size)]


class _Run:
    """What the three algorithms share: arguments, the budget left, the rounds so far."""

    def __init__(
        self, game: Game, n_keep: int, p: float | None, method: str, n_evals: int | None, level: float, seed: int,
        time_limit: float | None, batch_size: int, progress: bool,
    ) -> None:
        check_arguments(game, "auto", (), n_evals, seed)
        n = game.n_players
        if isinstance(n_keep, bool) or not isinstance(n_keep, int | np.integer) or not 1 <= n_keep < n:
            raise ConfigError(f"n_keep={n_keep!r}: expected an integer in 1..{n - 1}, of {n} units")
        if p is not None and not 0.0 < p < 1.0:
            raise ConfigError(f"p={p}: the keep rate of the masks must lie between 0 and 1, e.g. the target density")
        if not 0.0 < level < 1.0:
            raise ConfigError(f"level={level}: a confidence level lies between 0 and 1, e.g. 0.95")
        self.game, self.n_keep, self.p, self.method, self.level, self.seed = game, int(n_keep), p, method, level, seed
        free_to_run = n_evals is not None or time_limit is not None or method == "exact"
        self.budget = n_evals if free_to_run else EVALS_PER_PLAYER * (n + 1)
        self.options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        self.clock = Clock(time_limit)
        self.rounds: list[GtapRound] = []
        self.termination = "completed"

    def result(self, algorithm: str, steps: list[int], dropping: bool) -> GtapResult:
        """Run a round per step, and make the record."""
        kept = np.full(self.game.n_players, dropping)
        for number in range(len(steps)):
            left = sum(steps[number:])
            try:
                estimate = self._estimate(kept, dropping, len(steps), number)
            except (OutOfTimeError, KeyboardInterrupt) as error:
                if not self.rounds:
                    raise
                self.termination = "time_limit" if isinstance(error, OutOfTimeError) else "interrupted"
                last = self.rounds.pop()
                self._decide(last.players, last.estimate, len(last.chosen) + left, dropping)
                break
            if estimate.termination != "completed":
                self.termination = estimate.termination
            interrupted = estimate.termination == "interrupted"
            self._decide(np.flatnonzero(kept == dropping), estimate, left if interrupted else steps[number], dropping)
            kept = kept.copy()
            kept[self.rounds[-1].chosen] = not dropping
            if interrupted:
                break
        return self._record(algorithm, dropping)

    def _estimate(self, kept: np.ndarray, dropping: bool, n_rounds: int, number: int) -> Estimate:
        """The index of the free units: those still in when dropping, those still out when building."""
        game = PinnedGame(self.game, removed=~kept) if dropping else PinnedGame(self.game, kept=kept)
        pinned_in = 0 if dropping else int(kept.sum())
        rounds_left, share, seconds = n_rounds - number, None, None
        if self.budget is not None:
            spent = sum(each.estimate.n_evals for each in self.rounds) + n_rounds + 1  # the path is evaluated too
            share = max(1, (self.budget - spent) // rounds_left)
        p = (self.n_keep - pinned_in) / game.n_players if self.p is None else self.p
        if self.p is None and self.method == "dropout" and share is not None:
            edge = min(0.5, MASKS_EACH_WAY / max(1, share - 2))  # two evaluations are of the ends
            p = min(max(p, edge), 1.0 - edge)
        if self.clock.time_limit is not None:
            self.clock.check()
            seconds = max(1e-9, self.clock.time_limit - self.clock.seconds) / rounds_left
        word = np.random.SeedSequence(self.seed, spawn_key=(number,)).generate_state(1)[0]
        options = {"p": p, "n_evals": share, "seed": int(word), "time_limit": seconds, **self.options}
        try:
            return semivalue(game, method="reuse" if self.method == "dropout" else self.method, **options)
        except OutOfTimeError:
            raise
        except BudgetError as error:
            raise BudgetError(f"{error}; n_evals={self.budget} is shared by {n_rounds} round(s)") from None

    def _decide(self, players: np.ndarray, estimate: Estimate, count: int, dropping: bool) -> None:
        """Add the round in which ``count`` of the free ``players`` are dropped or added."""
        order = estimate.ranking()[::-1] if dropping else estimate.ranking()
        cut = estimate.values[order[count - 1 : count + 1]].mean()
        low, high = estimate.confidence_interval(self.level)
        undecided = int(((low < cut) & (cut < high)).sum())
        self.rounds.append(GtapRound(players, estimate, low, high, players[order[:count]], undecided))

    def _record(self, algorithm: str, dropping: bool) -> GtapResult:
        path = np.full((1 + len(self.rounds), self.game.n_players), dropping)
        for number, each in enumerate(self.rounds, 1):
            path[number:, each.chosen] = not dropping
        n_evals = sum(each.estimate.n_evals for each in self.rounds) + len(path)
        return GtapResult(
            algorithm, path[-1], path, self.game.values(path), tuple(self.rounds), self.level, self.game.player_names,
            n_evals, int(self.seed), self.termination, self.clock.seconds,
        )
