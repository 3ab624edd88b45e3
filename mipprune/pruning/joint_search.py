"""Selection by one quadratic in all gates, expanded anew in every stage; without repairs, the cut network decides."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch

from ..curvature import expand_gates, sketch_gates
from ..errors import ModelStateError
from ..records import frozen_array
from .gate_search import GateSearch
from .joint import JointProblem
from .measure import Quality
from .search import Candidate, Searcher, Stage

__all__ = ["JointSearch"]

#: Without refits: samples of one expansion, the temperature of its curvature, and probes for each sample, in a stage
#: (whose step is long) and in a round of exchanges.
SKETCH_SAMPLES, SKETCH_TEMPERATURE, STAGE_PROBES, ROUND_PROBES = 512, 2.0, 3, 1
#: Rounds of the search that follows: as many as this many multiply-adds pay for, within a range.  On the small networks
#: of the benchmarks selection then takes about as long as training did.
EXCHANGE_WORK, FEWEST_ROUNDS, MOST_ROUNDS = 1e10, 6, 20


class JointSearch:
    """The best network under ``limits``: a chain of joint quadratics, then exchanges judged by the network as cut.

    Where the weights are repaired after the cut, the loss before the repair says little: then there is the chain alone.
    Batch-norm statistics are cheap to repair, so networks are judged with these, if that was asked for.

    Args:
        limits: resource -> largest cost.

    Attributes:
        found: candidates, the last one the best so far, at any time.
    """

    def __init__(self, search: Searcher, limits: dict[str, int]) -> None:
        self.search, self.limits = search, limits
        self.repaired = bool(set(search.repairer.names) - {"bn"})
        self.found: list[Candidate] = []
        self._draws = np.random.default_rng(search.seed)

    def run(self, stages: int, plain: np.ndarray) -> None:
        """The chain in so many ``stages``, and the exchanges, from it or from the baseline's mask ``plain``.

        Raises:
            OutOfTime: the time is over; what was found until then stays in :attr:`found`.
        """
        problem = self._chain(stages)
        if not self.repaired:
            self._exchange(problem, plain)
            self.search.remaining()

    def _chain(self, stages: int) -> JointProblem:
        """Stages shrink the costs by equal factors: the less is left, the less may go before a new expansion.

        Without refits the later stages also try what the quadratic says when units may come back, and the lower
        score decides.  The chain as a whole is a heuristic; each stage's bound holds for its own quadratic.
        Returns the last problem.
        """
        search, costs = self.search, self.search.graph.costs
        full = {resource: costs.cost(resource, costs.sizes) for resource in self.limits}
        least = {resource: costs.cost(resource, search.fewest) for resource in self.limits}
        kept = everything = np.ones(search.graph.n_units, dtype=bool)
        quality = search.truth(kept)
        chain: list[Stage] = []
        for step in range(1, stages + 1):
            search.remaining()
            search.tick(f"stage {step} of {stages}")
            begin = time.monotonic()
            share = step / stages
            now = {r: max(limit, int(full[r] * (limit / full[r]) ** share)) for r, limit in self.limits.items()}
            now = {r: max(limit, least[r]) for r, limit in now.items()} if step < stages else self.limits
            gradient, curvature = self._expand(kept, STAGE_PROBES)
            problem = JointProblem(gradient, curvature, costs, now, kept, search.pinned, search.floor)
            found = problem.solve()
            after = search.truth(found)
            if 2 * step > stages and not self.repaired:
                problem = JointProblem(gradient, curvature, costs, now, kept, search.pinned, search.floor, everything)
                other = problem.solve()
                if (other != found).any() and self._score(other) < self.score(after):
                    found, after = other, search.truth(other)
            value = problem.value(found)
            chain.append(Stage(
                kept=frozen_array(found, bool), objective=value, surrogate_drop=value,
                bound=problem.bound(found, 3 if step == stages else 1), true_drop=after.loss - quality.loss,
                max_drop=None, termination="iteration_limit", solver="exchange", version="",
                seconds=time.monotonic() - begin,
            ))
            kept, quality = found, after
        self.found.append(Candidate(kept, quality, tuple(chain)))
        return problem

    def _exchange(self, problem: JointProblem, plain: np.ndarray) -> None:
        """Search on from the last candidate by the score; kept also where Ctrl-C ends the search.

        The last stage's ``problem`` has units come back, so its bound holds for any mask under the limits, and its
        objective becomes the quadratic's value at the mask found.
        """
        search, costs, start = self.search, self.search.graph.costs, self.found[-1]
        search.tick("exchanging units")
        begin = time.monotonic()
        kept, score = start.kept, self.score(start.quality)
        fits = all(costs.cost(r, costs.counts(plain)) <= limit for r, limit in self.limits.items())
        if fits and (other := self._score(plain)) < score:  # a latency limit may have been tightened since
            kept, score = plain, other
        walk = GateSearch(
            costs, self.limits, search.allowed, search.pinned, self._expand, self._score, kept, score, search.seed
        )
        try:
            walk.run(self._rounds(start.kept), search.goes_on)
        finally:
            if walk.loss < self.score(start.quality):
                last, quality = start.stages[-1], search.truth(walk.kept)
                value = problem.value(walk.kept)
                stage = dataclasses.replace(
                    last, kept=frozen_array(walk.kept, bool), objective=value, surrogate_drop=value,
                    bound=min(last.bound, value), true_drop=last.true_drop + quality.loss - start.quality.loss,
                    seconds=last.seconds + time.monotonic() - begin,
                )
                self.found.append(Candidate(walk.kept, quality, (*start.stages[:-1], stage)))

    def _rounds(self, kept: np.ndarray) -> int:
        """One expansion takes about three passes, one round judges about four masks."""
        graph, samples = self.search.graph, len(self.search.data)
        work = 3 * graph.macs() * min(samples, SKETCH_SAMPLES) + 4 * graph.macs(kept) * samples
        return self.search.scaled(min(max(int(EXCHANGE_WORK / max(1, work)), FEWEST_ROUNDS), MOST_ROUNDS))

    @staticmethod
    def score(quality: Quality) -> float:
        """Cross-entropy times the root of the share of wrong predictions (and one more sample, so that it's above 0).

        A cut network that nothing repairs is often sure of the wrong things: masks of equal cross-entropy differ by ten
        points in accuracy.  By the cross-entropy alone networks of a fifth of the multiply-adds reach 92.7, 62.0 and
        76.9% on new images (a small CNN, ResNet, transformer; means of five), by this 94.3, 70.7 and 78.1% in the same
        time, at cross-entropies 1 to 4% higher.
        """
        return float(quality.loss * (1 - quality.accuracy + 1 / quality.n_samples) ** 0.5)

    def _score(self, kept: np.ndarray) -> float:
        """Of the network as cut, on the calibration data; infinite where its loss isn't finite."""
        try:
            return self.score(self.search.truth(kept))
        except ModelStateError:  # a mask may well drive a network into overflow
            return float("inf")

    def _expand(self, kept: np.ndarray, probes: int = ROUND_PROBES) -> tuple[np.ndarray, np.ndarray]:
        """Gradient and curvature of the loss in all gates: float64 (n_units,), (n_units, n_units).

        Without refits, units that are off have derivatives too, and samples and probes are drawn: as good a guide as
        the exact expansion (its rank correlation with the true losses of exchanges lies within .03 of that one's on a
        small CNN, ResNet and transformer), at a fifth to a tenth of its time.
        """
        graph, data = self.search.graph, self.search.data
        if self.repaired:
            exact = expand_gates(graph, data, kept, joint=True)
            return exact.gradient, exact.joint
        few = self._draws.permutation(len(data))[:SKETCH_SAMPLES]
        sketch = sketch_gates(
            graph, data.take(torch.from_numpy(few)), kept, SKETCH_TEMPERATURE, probes,
            int(self._draws.integers(2**31)),
        )
        return sketch.gradient, sketch.joint
