"""From the name of a method to a source of replicates, and from its replicates to an estimate."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import numpy as np

from ..errors import ConfigError, DataError
from ..game.base import Game
from .blocks import SampleSums, mean_and_stderr
from .checkpoint import Checkpoint
from .communicator import Communicator, shared
from .density import Density
from .designs import PermutationDesign, ToggleDesign
from .proxy import AdjustedSource, ResidualGame, draw_pilot, fit_proxy, pilot_size
from .records import Estimate, SampleMarginals
from .responses import RegressionSource, ReuseSource
from .samplewise import SampleToggleSource, SampleWalkSource, per_sample
from .sampling import CoalitionSource, Evaluator, Source, gather, replicates_for
from .stopping import CutResolved

__all__ = ["EVALS_PER_PLAYER", "INDEX_METHODS", "Settings", "run_sampled"]

#: Default budget of sampled methods, in coalition evaluations per player.
EVALS_PER_PLAYER = 256

#: Coalition evaluations per player from which on "auto" fits a proxy first.
PROXY_EVALS_PER_PLAYER = 64

#: Sampled methods of each kind of index.
INDEX_METHODS = {
    "shapley": ("permutation", "one_toggle", "regression", "adjusted", "sample_permutation", "sample_one_toggle"),
    "semivalue": ("one_toggle", "reuse", "adjusted", "sample_one_toggle"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user asked for; the arguments of :func:`~mipprune.estimate.shapley` by the same names."""

    method: str
    n_evals: int | None
    seed: int
    antithetic: bool
    time_limit: float | None
    stop: CutResolved | None
    keep_samples: bool
    checkpoint: str | os.PathLike[str] | None
    batch_size: int
    progress: bool
    communicator: Communicator | None = None

    def check(self, game: Game) -> None:
        """Refuse options that don't go together, or not with this game."""
        if self.method.startswith("sample_") and per_sample(game) is None:
            raise DataError(
                f"method={self.method!r} needs a SampleGame, whose value is a mean over samples (no callable of all "
                f"outputs); method={self.method.removeprefix('sample_')!r} works with coalitions that all samples share"
            )
        if self.stop is not None:
            self.stop.check_players(game.n_players)
        for name, given in (("checkpoint", self.checkpoint), ("time_limit", self.time_limit)):
            if self.communicator is not None and given is not None:
                raise ConfigError(f"{name}= is for one process: with communicator= give n_evals or a stop rule")
        if not self.keep_samples:
            return
        if per_sample(game) is None:
            raise DataError("keep_samples=True needs a SampleGame, whose value is a mean over samples")
        if self.method != "auto" and not self.method.startswith("sample_"):
            raise ConfigError(f"keep_samples=True needs a sample-wise method, not {self.method!r}")


def run_sampled(evaluator: Evaluator, index: str, density: Density, settings: Settings) -> Estimate:
    """Draw replicates until the budget, the clock, the stopping rule or Ctrl-C ends it."""
    game, clock, seed = evaluator.game, evaluator.clock, int(settings.seed)
    n = game.n_players
    # with a time limit and no budget, run until the time is up
    budget = settings.n_evals
    if budget is None and clock.time_limit is None:
        budget = EVALS_PER_PLAYER * (n + 1)
    method = _pick(game, density, budget) if settings.method == "auto" else settings.method
    ends = value_empty, value_full = _ends(evaluator.values, n)
    source = _source(method, evaluator, density, settings, ends, budget)
    fixed = 2 + source.fixed
    n_replicates = None if source.cost else source.least
    if source.cost and budget is not None:
        hint = ""
        if settings.antithetic and source.fixed == 0:
            alone = _source(method, evaluator, density, dataclasses.replace(settings, antithetic=False), ends, budget)
            hint = f" ({fixed + alone.least * alone.cost} with antithetic=False)"
        n_replicates = replicates_for(budget, fixed, source, f"{method} sampling of {n} players", hint)
    evaluator.announce(None if n_replicates is None else fixed + n_replicates * source.cost)
    checkpoint = None
    if settings.checkpoint is not None:
        facts = {
            "index": index, "p": density.p, "method": method, "seed": seed, "antithetic": settings.antithetic,
            "keep_samples": settings.keep_samples, "pilot": source.fixed, "players": list(game.player_names),
        }
        checkpoint = Checkpoint(settings.checkpoint, facts, (value_full, value_empty))
    drawn = source if settings.communicator is None else shared(source, settings.communicator)
    state, termination = gather(
        drawn, n_replicates, evaluator.batch_size, stop=settings.stop, checkpoint=checkpoint
    )
    means, sizes = source.finish(state)
    values, stderr = mean_and_stderr(means, sizes)
    return Estimate(
        values, stderr, index, density.p, method, fixed + state.n_replicates * source.cost, seed, value_full,
        value_empty, game.player_names, means, sizes, termination, clock.seconds,
        SampleMarginals.of(state) if isinstance(state, SampleSums) else None,
    )


def _pick(game: Game, density: Density, budget: int | None) -> str:
    """What "auto" means here; measured on a perceptron's and a convolution's layer (benchmarks/RESULTS.md)."""
    if per_sample(game) is not None:
        return "sample_permutation" if density.p is None else "sample_one_toggle"
    if density.p is None:
        return "permutation"
    # complements (p = 1/2) cancel what a quadratic proxy explains; elsewhere it pays once there is data for it
    pays = budget is not None and budget >= PROXY_EVALS_PER_PLAYER * (game.n_players + 1)
    return "adjusted" if pays and density.p not in (0.0, 0.5, 1.0) else "one_toggle"


def _source(
    method: str, evaluator: Evaluator, density: Density, settings: Settings, ends: tuple[float, float],
    budget: int | None,
) -> Source:
    n, seed, antithetic = evaluator.game.n_players, int(settings.seed), settings.antithetic
    if method.startswith("sample_"):
        samples = per_sample(evaluator.game)
        assert samples is not None
        if method == "sample_permutation":
            return SampleWalkSource(samples, evaluator, seed, antithetic, settings.keep_samples)
        return SampleToggleSource(samples, evaluator, seed, density, antithetic, settings.keep_samples)
    if method == "permutation" or n == 1:  # one player: nothing to draw, whatever the index
        return CoalitionSource(PermutationDesign(n, seed, *ends, antithetic), evaluator)
    if method == "one_toggle":
        return CoalitionSource(ToggleDesign(n, seed, density, antithetic), evaluator)
    if method == "adjusted":
        return _adjusted(evaluator, density, settings, ends, budget)
    return _responses(evaluator, density, seed, ends, antithetic)


def _responses(
    evaluator: Evaluator, density: Density, seed: int, ends: tuple[float, float], antithetic: bool
) -> RegressionSource | ReuseSource:
    n = evaluator.game.n_players
    if density.p is None:
        return RegressionSource(n, evaluator, seed, *ends, antithetic)
    if not 0.0 < density.p < 1.0:
        raise ConfigError(f"reuse needs 0 < p < 1, got p={density.p:g}; method='auto' is exact there")
    return ReuseSource(n, evaluator, seed, density.p, antithetic)


def _adjusted(
    evaluator: Evaluator, density: Density, settings: Settings, ends: tuple[float, float], budget: int | None
) -> AdjustedSource:
    """Fit a proxy to a part of the budget, and let the residual game be sampled."""
    n = evaluator.game.n_players
    pilot = pilot_size(EVALS_PER_PLAYER * (n + 1) if budget is None else budget)
    drawn = draw_pilot(int(settings.seed), pilot, n, density)
    proxy = fit_proxy(drawn, evaluator.values(drawn), density)
    residual = evaluator.on(ResidualGame(evaluator.game, proxy))
    left = (ends[0] - _ends(proxy.values, n)[0], ends[1] - _ends(proxy.values, n)[1])
    source = AdjustedSource(_responses(residual, density, int(settings.seed), left, settings.antithetic), proxy)
    source.fixed = pilot
    return source


def _ends(values: Callable[[np.ndarray], np.ndarray], n_players: int) -> tuple[float, float]:
    """Values of the empty and the full coalition."""
    empty, full = values(np.repeat([[False], [True]], n_players, axis=1))
    return float(empty), float(full)
