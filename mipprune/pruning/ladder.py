"""The smallest network that provably keeps its accuracy: a ladder of budgets, tested in a fixed order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from ..errors import InfeasibleError
from .options import AccuracyDrop, Budget, Macs, Params, Units
from .result import PruneResult

__all__ = ["climb_down"]

KINDS = {"macs": Macs, "params": Params, "units": Units}
#: Each rung keeps this share of the one above it.
RATIO = 0.8


def rungs(minimize: str) -> Iterator[Budget]:
    """The budgets, from the largest."""
    share = RATIO
    while share > 0.01:
        yield KINDS[minimize](share)
        share *= RATIO


def climb_down(
    prune: Callable[[Budget], PruneResult], tolerance: AccuracyDrop, minimize: str
) -> PruneResult:
    """Prune to smaller and smaller budgets as long as the certificate passes; the last that did is returned.

    The order of the tests is fixed before any data are seen, and testing ends with the first failure.  So a network
    that breaks the tolerance can only be returned if the first such network on the ladder passes its test, which
    happens with probability at most 1 - confidence: the sequence needs no correction for the number of tests
    (fixed-sequence procedure, Maurer, Hothorn and Lehmacher 1995).  This needs each rung's network to be independent of
    the data that certify: they are the held-out data, which :func:`~mipprune.prune` never selects on.  The networks
    may depend on one another in any way.  What the sequence proves is the tolerance itself; the bound computed from
    the returned network's own count could be lower, but that network was singled out by these counts, so the
    certificate states the tolerance (:meth:`~mipprune.pruning.certificate.AccuracyCertificate.of_ladder`).

    Raises:
        InfeasibleError: the first rung fails already; ``nearest`` is the drop that it does certify.
    """
    passed: PruneResult | None = None
    ladder = tuple(rungs(minimize))
    for budget in ladder:
        try:
            result = prune(budget)
        except InfeasibleError:
            break  # no smaller network is allowed
        certificate = result.report.certificate.at(tolerance.confidence)
        if certificate.drop_bound > tolerance.drop:
            if passed is None:
                raise InfeasibleError(
                    f"at {budget.ratio:.0%} {minimize} the accuracy is certified to fall by at most "
                    f"{certificate.drop_bound:.2%} ({certificate.lost} of {certificate.n_samples} held-out samples "
                    f"lost), not {tolerance.drop:.2%}: " + _advice(result.solution.termination),
                    requirement="accuracy", nearest=certificate.drop_bound,
                )
            break
        task = (f"fewest {minimize} with accuracy down by at most {tolerance.drop:.2%}, "
                f"{tolerance.confidence:.0%} confidence")
        certificate = certificate.of_ladder(tolerance.drop, len(ladder))
        report = dataclasses.replace(result.report, task=task, certificate=certificate)
        passed = dataclasses.replace(result, report=report)
        if result.solution.termination in ("interrupted", "time_limit"):
            break
    if passed is None:
        raise InfeasibleError(f"no network of {RATIO:.0%} {minimize} is allowed", requirement=minimize)
    return passed


def _advice(termination: str) -> str:
    if termination in ("interrupted", "time_limit"):  # a longer search might have passed
        return f"its search was cut short ({termination.replace('_', ' ')}), let it run on"
    return "allow more, lower the confidence, or hold more data out"
