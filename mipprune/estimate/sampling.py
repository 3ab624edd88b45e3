"""The sampling loop: evaluates a game under a budget, a clock and Ctrl-C, and gathers replicates in blocks."""

from __future__ import annotations

import abc
import copy
import math
import time
from typing import Any

import numpy as np

from ..errors import BudgetError, DataError, MissingDependencyError
from ..game.base import Game
from .blocks import BlockSums, SampleSums, State
from .checkpoint import Checkpoint
from .designs import Design
from .stopping import CutResolved, check_after

__all__ = [
    "BATCH_SIZE", "Clock", "CoalitionSource", "Evaluator", "OutOfTimeError", "Source", "gather", "replicates_for",
]

#: Coalitions per call of ``Game.values`` unless told otherwise.
BATCH_SIZE = 2048


class OutOfTimeError(BudgetError):
    """The time limit passed before there was a result."""


class Clock:
    """Seconds since construction, and a limit on them."""

    def __init__(self, time_limit: float | None) -> None:
        if time_limit is not None and not time_limit > 0:
            raise BudgetError(f"time_limit={time_limit}: must be a positive number of seconds, or None")
        self.time_limit = time_limit
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def check(self, projected: float = 0.0) -> None:
        """Raise :class:`OutOfTimeError` when the time is up, or ``projected`` seconds from the start are past it."""
        if self.time_limit is not None and max(self.seconds, projected) > self.time_limit:
            raise OutOfTimeError(f"the time limit of {self.time_limit:g} s ran out")


class Evaluator:
    """Values of coalitions in batches, checked to be finite.

    Args:
        game: the game.
        batch_size: coalitions per call of ``game.values``; changes speed and memory, not the coalitions.
        clock: looked at before every call.
        progress: show a tqdm bar that counts evaluations; use as a context manager to close it.
    """

    def __init__(self, game: Game, batch_size: int, clock: Clock, progress: bool = False) -> None:
        if batch_size < 1:
            raise BudgetError(f"batch_size={batch_size}: must be at least 1")
        self.game, self.batch_size, self.clock = game, batch_size, clock
        self._bar: Any = _bar() if progress else None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on(self, game: Game) -> Evaluator:
        """An evaluator of another game of the same players, on this one's clock and progress bar."""
        other = copy.copy(self)
        other.game = game
        return other

    def announce(self, n_evals: int | None) -> None:
        """Tell the progress bar how many evaluations there will be."""
        if self._bar is not None:
            self._bar.total = n_evals
            self._bar.refresh()

    def count(self, n_evals: int) -> None:
        """Move the progress bar on by evaluations that a source made itself."""
        if self._bar is not None:
            self._bar.update(n_evals)

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        """Values of the coalitions (bool, (M, n)): float64 (M,).

        Raises:
            DataError: the game returned something of another shape, or a value that isn't finite.
            OutOfTimeError: the time limit passed.
        """
        out = np.empty(len(coalitions))
        for at in range(0, len(coalitions), self.batch_size):
            self.clock.check()
            batch = coalitions[at : at + self.batch_size]
            values = np.asarray(self.game.values(batch))
            if values.shape != (len(batch),):
                raise DataError(f"the game returned values of shape {values.shape} for {len(batch)} coalitions")
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                raise DataError(self._complaint(batch[bad[0]], float(values[bad[0]]), len(bad), len(batch)))
            out[at : at + len(batch)] = values
            self.count(len(batch))
        return out

    def _complaint(self, coalition: np.ndarray, value: float, n_bad: int, n: int) -> str:
        names = self.game.player_names
        out = [names[i] for i in np.flatnonzero(~coalition)]
        shown = ", ".join(out[:8]) + (", ..." if len(out) > 8 else "")
        return (
            f"the game's value is {value} with {len(out)} of {len(names)} players out ({shown or 'none'}); {n_bad} of "
            f"{n} coalitions in this batch. An index needs finite values: clip the value function, or pin the "
            "players without which it is not defined (PinnedGame)"
        )


class Source(abc.ABC):
    """Independent replicates by number, and the unbiased block means that they make.

    A game with a faster way than asking for coalitions is another source, and so is an estimator that needs all of its
    replicates at once.

    Attributes:
        size: length of the estimated vector.
        cost: coalition evaluations that one replicate stands for.
        fixed: coalition evaluations spent before the first replicate.
        least: fewest replicates that make an estimate.
    """

    size: int
    cost: int
    fixed: int = 0
    least: int = 2

    @abc.abstractmethod
    def replicates(self, first: int, count: int) -> np.ndarray:
        """Replicates number ``first .. first + count - 1``, ``count`` rows, the same for every split."""

    def empty(self) -> State:
        """The state before the first replicate; here it takes replicates of shape (count, size)."""
        return BlockSums.empty(self.size)

    def finish(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Means (B, size) and sizes (B,) of blocks, whose weighted mean is the estimate."""
        blocks = state.blocks if isinstance(state, SampleSums) else state
        assert isinstance(blocks, BlockSums)
        return blocks.means, blocks.sizes


class CoalitionSource(Source):
    """A design whose coalitions are evaluated by an :class:`Evaluator`."""

    def __init__(self, design: Design, evaluator: Evaluator) -> None:
        self.design, self.evaluator = design, evaluator
        self.size, self.cost = design.size, design.cost

    def replicates(self, first: int, count: int) -> np.ndarray:
        draw = self.design.draw(first, count)
        values = self.evaluator.values(self.design.coalitions(draw))
        return self.design.vectors(draw, values.reshape(count, self.cost))


def replicates_for(n_evals: int, fixed: int, source: Source, what: str, hint: str = "") -> int:
    """Replicates that a budget of coalition evaluations pays for, after ``fixed`` ones.

    Raises:
        BudgetError: fewer than the source's ``least``.
    """
    needed = fixed + source.least * source.cost
    if n_evals < needed:
        raise BudgetError(f"n_evals={n_evals} is too small: {what} needs at least {needed} evaluations{hint}")
    return (n_evals - fixed) // source.cost


def gather(
    source: Source, n_replicates: int | None, chunk_evals: int, *, stop: CutResolved | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[State, str]:
    """Run a source until it has ``n_replicates`` (None: until the clock of the source says stop).

    Chunks grow 1, 2, 4, ... replicates up to about ``chunk_evals`` evaluations: an early stop finds something, and
    the schedule does not look at the time, so a run can be repeated exactly.

    Args:
        stop: looked at after fixed numbers of replicates (:func:`check_after`).
        checkpoint: gone on from, and saved to every few seconds and at the end.

    Returns:
        The state, and why it stopped: "completed", "resolved", "time_limit" or "interrupted" (Ctrl-C).

    Raises:
        OutOfTimeError, KeyboardInterrupt: stopped before there were enough replicates.
    """
    state, termination = source.empty(), "completed"
    saved = checkpoint.load() if checkpoint else None
    if saved is not None:
        state = state.restored(saved)
    looks = _Looks(source, stop)
    chunk, largest = 1, max(1, chunk_evals // max(source.cost, 1))
    target: float = math.inf if n_replicates is None else n_replicates
    try:
        while state.n_replicates < target:
            if looks.resolved(state):
                termination = "resolved"
                break
            count = int(min(chunk, target - state.n_replicates, looks.next - state.n_replicates))
            state = state.added(source.replicates(state.n_replicates, count))
            chunk = min(2 * chunk, largest)
            if checkpoint:
                checkpoint.save(state.arrays(), now=False)
    except OutOfTimeError as error:
        termination = "time_limit"
        if state.n_replicates < source.least:
            raise OutOfTimeError(
                f"{error} after {state.n_replicates} replicate(s) of {source.cost} evaluations; "
                f"an estimate with a standard error needs {source.least}: raise time_limit"
            ) from None
    except KeyboardInterrupt:
        termination = "interrupted"
        if state.n_replicates < source.least:
            raise
    finally:
        if checkpoint and state.n_replicates:
            checkpoint.save(state.arrays())
    return state, termination


class _Looks:
    """When a stopping rule looks; its number of looks is a function of the replicates, also after a resume."""

    def __init__(self, source: Source, stop: CutResolved | None) -> None:
        self.source, self.stop = source, stop
        self.next: float = math.inf if stop is None else check_after(source.least)
        self._number = 0

    def resolved(self, state: State) -> bool:
        if self.stop is None or state.n_replicates < self.next:
            return False
        while self.next <= state.n_replicates:
            here, self.next = self.next, check_after(int(self.next))
            self._number += 1
        return state.n_replicates == here and self.stop.resolved(*self.source.finish(state), self._number)


def _bar() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingDependencyError("progress=True needs tqdm: pip install tqdm, or pass progress=False") from error
    return tqdm(unit=" evals", unit_scale=True, leave=False)
