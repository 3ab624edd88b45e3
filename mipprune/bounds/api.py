"""Random pruning in one call, and the smallest keep rate or width at which a bound holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

from ..errors import BudgetError, InfeasibleError
from ..graph import UnitGraph
from ..records import frozen_array
from .gap import GapBound, NeuronGap, backward_gains, gap_of_values, keep_probabilities, network_and_data
from .layered import layered_neuron_gap
from .tails import bernstein, probability
from .weights import WeightMasks

__all__ = ["keep_for", "random_pruning", "width_for"]


def random_pruning(
    model: nn.Module | UnitGraph, data: Any, *, keep: float | np.ndarray, delta: float = 0.05, what: str = "neurons"
) -> GapBound:
    """Bound that holds with probability 1 - ``delta`` when each neuron (T5) or weight (T6, divided by ``keep`` if it
    stays) is kept independently with probability ``keep``.

    T5 is the smaller of two: the tail of T1's linear bound (:meth:`NeuronGap.random`), and the moments of the vectors
    that the units contribute (:func:`~mipprune.bounds.layered.layered_neuron_gap`), which is the tighter one but for
    keep rates near 1.  T6: :meth:`WeightMasks.rescaled`.

    Args:
        data: anything :func:`mipprune.prune` takes.
        keep: from 0 to 1, for neurons also one number per unit, (n,); above 0 for weights.
        what: ``"neurons"`` or ``"weights"``.

    Raises:
        BudgetError: arguments out of range.
        TraceError: an operation that is neither affine nor ReLU nor max pooling.
        DataError: data that don't fit.
    """
    if what == "weights":
        if isinstance(keep, np.ndarray):
            raise BudgetError("keep: weights have one keep probability for all")
        return WeightMasks(model, data).rescaled(keep, delta)
    if what != "neurons":
        raise BudgetError(f"what must be 'neurons' or 'weights', got {what!r}")
    graph, network, x = network_and_data(model, data)
    values, (gains, paths) = network.values(x), backward_gains(network)
    plain = gap_of_values(graph, network, values, gains, paths).random(keep, delta)
    p, lg, n = keep_probabilities(keep, network.n_units), math.log(1 / delta), len(x)
    each, rms, largest = (
        layered_neuron_gap(network, gains, values, p, term, stacked)
        for term, stacked in ((lg, False), (lg, True), (lg + math.log(n), False))
    )
    mean = min(plain.rms, float(rms[0]))
    # the largest of n gaps is at most root n times their root mean square
    worst = min(plain.worst, float(largest.max()), math.sqrt(n) * mean)
    return GapBound("T5", frozen_array(np.minimum(plain.values, each)), mean, worst, {}, delta)


def keep_for(gap: NeuronGap, eps: float, delta: float, tolerance: float = 1e-4) -> float:
    """A keep rate, the smallest but for ``tolerance`` that bisection finds, whose T5 bound on the rms gap is at most
    ``eps``.  What is returned meets it.

    Args:
        gap: coefficients of the network on its data.
        eps: the largest gap allowed, in output units.
        delta: chance that the bound may fail, above 0 and below 1.
        tolerance: where bisection stops.

    Raises:
        BudgetError: an eps below 0, a tolerance outside (0, 1).
        InfeasibleError: even a keep rate within ``tolerance`` of 1 doesn't.
    """
    if not eps >= 0 or not 0 < tolerance < 1:
        raise BudgetError(f"expected eps of at least 0 and a tolerance between 0 and 1, got {eps} and {tolerance}")
    low, high = 0.0, 1.0 - tolerance
    nearest = gap.random(high, delta).rms
    if nearest > eps:
        raise InfeasibleError(f"eps={eps}: the bound is {nearest:.3g} even at keep={high}", requirement="eps",
                              nearest=nearest)
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (low, middle) if gap.random(middle, delta).rms <= eps else (middle, high)
    return high


def width_for(
    eps: float, delta: float, *, depth: int, exponent: float, scale: float = 1.0, rule: str = "magnitude",
    largest: int = 10**9,
) -> int:
    """The smallest power of two d at which magnitude or random pruning is proved to cost at most ``eps``.

    ``depth`` square ReLU layers without bias, weights independent and uniform on ``+-scale / sqrt d``; a share
    ``q = d ** -exponent`` of them goes, "magnitude": those below the law's q-quantile, "random": each with
    probability q.  Holds with probability 1 - delta over the weights, for every ``|x| <= 1`` at once.  Ours, in the
    spirit of 2105.10065: the removed and the remaining weights of a layer are independent with mean 0, so the matrix
    Bernstein inequality bounds ``|D|``, ``|W^|`` and the dense ``|W|``, each with an equal share of delta; the gap is
    at most ``sum_l |W^|^(L-l) |D| |W|^(l-1)``.

    Args:
        eps, delta: gap and chance, above 0; ``delta`` below 1.
        depth: number of layers, at least 1.
        exponent: of the removed share, between 0 and 1.
        scale: K, above 0.
        rule: ``"magnitude"`` or ``"random"``.
        largest: width at which to give up.

    Raises:
        BudgetError: arguments out of range.
        InfeasibleError: no width up to ``largest``.
    """
    delta = probability("delta", delta)
    if not (eps > 0 and isinstance(depth, int) and depth >= 1 and 0 < exponent < 1 and scale > 0):
        raise BudgetError("expected eps and scale above 0, an exponent between 0 and 1, and a whole depth of at least "
                          f"1; got {eps}, {scale}, {exponent} and {depth}")
    if rule not in ("magnitude", "random"):
        raise BudgetError(f"rule must be 'magnitude' or 'random', got {rule!r}")
    d = 2
    while d <= largest:
        q = d**-exponent
        lg = math.log(2 * d * 3 * depth / delta)
        edge = scale / math.sqrt(d)
        power = 3 if rule == "magnitude" else 1
        dense = bernstein(scale**2 / 3, edge, lg)
        left = bernstein(scale**2 / 3 * (1 - q**power), edge, lg)
        gone = bernstein(scale**2 / 3 * q**power, edge * (q if rule == "magnitude" else 1.0), lg)
        if gone * sum(left ** (depth - k) * dense ** (k - 1) for k in range(1, depth + 1)) <= eps:
            return d
        d *= 2
    raise InfeasibleError(f"eps={eps}: no width up to {largest} is enough", requirement="eps")
