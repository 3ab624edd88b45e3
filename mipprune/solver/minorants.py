"""Affine functions below a surrogate's convex terms, derived from a point alone, in float64 balls or exactly.

A tangent's value and slope come out of floating-point code.  The rules here need neither: by convex duality every
choice of a slope has a best constant, so the point only *chooses* an affine function that lies below the term whatever
rounding did to the choice (our derivations):

* quadratic, ``t^2 / 2 >= a t - a^2 / 2`` for every number a;
* cross-entropy, ``logsumexp(l) >= p @ l - sum_c p_c log p_c`` for every probability vector p;
* norm, ``|v| >= u @ v`` for every ``|u| <= 1``;
* a maximum of linear functions is at least each of them.
"""

from __future__ import annotations

import abc
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from scipy.special import softmax

from ..errors import CertificateError, SolverError
from ..surrogates import Additive, BudgetedAdditive, LinearHead, Pairwise, Quadratic, RobustAdditive, Surrogate

__all__ = ["Rule", "minorant_rule", "register_minorant"]

#: Probabilities are whole multiples of this, so that they add up to 1 exactly in either arithmetic.
GRAIN = 2.0**-40


class Rule(abc.ABC):
    """How the convex terms of one class of surrogates are bounded from below.

    Args:
        surrogate: an instance of the class that the rule is registered for.
        arithmetic: :class:`~mipprune.solver.arithmetic.Ball` or ``Dyadic``.
    """

    #: Whether the rule proves its functions to lie below, instead of taking the surrogate's own gradients for it.
    proves: ClassVar[bool] = True

    def __init__(self, surrogate: Any, arithmetic: Any) -> None:
        self.surrogate, self.arithmetic = surrogate, arithmetic

    @abc.abstractmethod
    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        """Constants (b,) and slopes (b, n), numbers of the arithmetic, with ``term(z') >= constant + slope @ z'``.

        For all ``z'`` in the box ``[0, 1]^n``, near equality at ``z`` (float64, (n,)).  ``terms``: int64, shape (b,).
        """


_RULES: dict[type, type[Rule]] = {}


def register_minorant(kind: type) -> Any:
    """Class decorator: the rule for surrogates of class ``kind``."""

    def register(rule: type[Rule]) -> type[Rule]:
        _RULES[kind] = rule
        return rule

    return register


def minorant_rule(surrogate: Surrogate, arithmetic: Any) -> Rule:
    """The rule of a surrogate's class; the surrogate's own tangents where none is registered.

    Raises:
        SolverError: no rule, and the arithmetic is exact.
    """
    kind = _RULES.get(type(surrogate), _Trusting)
    if arithmetic.exact and not kind.proves:
        raise SolverError(
            f"{type(surrogate).__name__} has no rule for exact checking; register one with "
            f"mipprune.solver.minorants.register_minorant, or check in float64"
        )
    return kind(surrogate, arithmetic)


class _Trusting(Rule):
    """Tangents as the surrogate computes them, with a margin that is a guess: the fallback for foreign classes."""

    proves = False
    margin = 1e-9

    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        values, slopes = self.surrogate.terms(z)
        values, slopes = values[terms], slopes[terms]
        size = 1.0 + np.abs(values) + np.abs(slopes).sum(1)
        return self.arithmetic(values - slopes @ z, self.margin * size), self.arithmetic(slopes)


@register_minorant(Additive)
class _Nothing(Rule):
    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        return self.arithmetic.of(np.zeros(0)), self.arithmetic.of(np.zeros((0, len(z))))


@register_minorant(Quadratic)
class _QuadraticRule(Rule):
    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        factor = self.surrogate.factor[terms]
        along = self.arithmetic.of(factor @ z)
        slopes = along.reshape(-1, 1) * self.arithmetic.of(factor)
        return -(along * along * self.arithmetic.of(0.5)), slopes


@register_minorant(RobustAdditive)
class _NormRule(Rule):
    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        scaled = self.surrogate.deviation * z
        length = np.linalg.norm(scaled)
        direction = scaled / length * (1.0 - GRAIN) if length > 0 else np.zeros(len(z))
        if sum(Fraction(u) ** 2 for u in direction.tolist()) > 1:
            raise CertificateError("a direction came out longer than 1")  # can't be: GRAIN is 2^13 times the rounding
        slope = self.arithmetic.of(direction) * self.arithmetic.of(self.surrogate.deviation)
        return self.arithmetic.of(np.zeros(1))[terms], slope.reshape(1, -1)[terms]


@register_minorant(BudgetedAdditive)
class _BudgetRule(Rule):
    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        worst = self.arithmetic.of(self.surrogate.worst(z))
        slope = worst * self.arithmetic.of(self.surrogate.deviation)
        return self.arithmetic.of(np.zeros(1))[terms], slope.reshape(1, -1)[terms]


@register_minorant(Pairwise)
class _PairRule(Rule):
    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        constants, parts = self.surrogate.pieces(z)
        slopes = np.zeros((len(terms), len(z)))
        np.put_along_axis(slopes, self.surrogate.pairs[terms], parts[terms], axis=1)
        return self.arithmetic.of(constants[terms]), self.arithmetic.of(slopes)


@register_minorant(LinearHead)
class _HeadRule(Rule):
    """``CE_k(z) >= (p - e_y) @ logits_k(z) - sum_c p_c log p_c``, and the logits are affine in ``z``."""

    def __init__(self, surrogate: LinearHead, arithmetic: Any) -> None:
        super().__init__(surrogate, arithmetic)
        self.dense: Any = None
        self.starts = np.append(surrogate._starts(), len(surrogate.activations))
        self.weight, self.bias = arithmetic.of(surrogate.weight), arithmetic.of(surrogate.bias)
        self.activations = arithmetic.of(surrogate.activations)

    def below(self, z: np.ndarray, terms: np.ndarray) -> tuple[Any, Any]:
        parts = [self._term(z, int(term)) for term in terms]
        join = self.arithmetic.join
        return join([c.reshape(1) for c, _ in parts]), join([s.reshape(1, len(z)) for _, s in parts])

    def _term(self, z: np.ndarray, term: int) -> tuple[Any, Any]:
        head, of = self.surrogate, self.arithmetic.of
        rows = slice(int(self.starts[term]), int(self.starts[term + 1]))
        targets = head.targets[rows]
        chances = probabilities((head.activations[rows] * (1.0 - z)) @ head.weight.T + head.bias)
        residual = chances.copy()
        residual[np.arange(len(targets)), targets] -= 1.0  # exact: multiples of GRAIN
        entropy = -_plogp_above(chances, self.arithmetic)
        residual = of(residual)
        slope = ((residual @ self.weight) * self.activations[rows]).sum(0)  # of the kept vector
        constant = (residual @ self.bias).sum() + entropy - self._dense(rows) + slope.sum()
        n = len(head.activations)
        return constant.over(n), (-slope).over(n)

    def _dense(self, rows: slice) -> Any:
        """Upper bound of the unmasked losses' sum."""
        head = self.surrogate
        if self.dense is None:
            transposed = self.arithmetic.of(head.weight.T)
            unmasked = (self.activations @ transposed) + self.bias.reshape(1, -1)
            right = unmasked[np.arange(len(head.targets)), head.targets]
            self.dense = unmasked.logsumexp_above() - right
        return self.dense[rows].sum()


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of every row in whole multiples of :data:`GRAIN` that add up to exactly 1."""
    grains = np.floor(softmax(logits, axis=1) / GRAIN)
    largest = grains.argmax(1)
    grains[np.arange(len(grains)), largest] += 1.0 / GRAIN - grains.sum(1)
    return grains * GRAIN


def _plogp_above(chances: np.ndarray, arithmetic: Any) -> Any:
    """Upper bound of ``sum p log p`` over all entries; 0 log 0 = 0."""
    chances = chances[chances > 0]
    return (arithmetic.of(chances) * arithmetic.logs_above(chances)).sum()

