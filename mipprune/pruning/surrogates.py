"""From a traced network to one surrogate per group: the place where the two halves of the house meet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..curvature import RefitCurve, expand_gates, fit_linear_head
from ..errors import ConfigError
from ..estimate import shapley
from ..game import LabelledData, LayerGame
from ..graph import UnitGraph
from ..solver import SizeCurve
from ..surrogates import Additive, LinearHead, Quadratic, Surrogate

__all__ = ["KINDS", "SURROGATES", "layer_surrogates", "refit_size_curves"]


def _quadratic(graph: UnitGraph, data: LabelledData, kept: np.ndarray, seed: int) -> list[Surrogate]:
    expansion = expand_gates(graph, data, kept)
    return [
        Quadratic.from_curvature(expansion.gradient[group.units], block)
        for group, block in zip(graph.groups, expansion.curvature, strict=True)
    ]


def _additive(graph: UnitGraph, data: LabelledData, kept: np.ndarray, seed: int) -> list[Surrogate]:
    out: list[Surrogate] = []
    for group in graph.groups:
        importance = np.zeros(group.size)
        if group.size > 1 or group.fewest == 0:  # one unit that has to stay needs no value
            game = LayerGame(graph, group.name, data, kept=kept)
            alone = {"method": "exact"} if group.size == 1 else {"seed": seed}
            importance = np.asarray(shapley(game, **alone).values)
        out.append(Additive(np.where(kept[group.units], importance, 0.0)))
    return out


def _head(graph: UnitGraph, data: LabelledData, kept: np.ndarray, seed: int) -> list[Surrogate]:
    fits = [fit_linear_head(graph, group.name, data) for group in graph.groups]
    return [LinearHead(fit.activations, fit.weight, fit.bias, fit.targets) for fit in fits]


#: name -> (builder, whether it follows the network as units leave, so that stages make sense).
SURROGATES: dict[str, tuple[Callable[[UnitGraph, LabelledData, np.ndarray, int], list[Surrogate]], bool]] = {
    "quadratic": (_quadratic, True),
    "additive": (_additive, True),
    "head": (_head, False),
}


#: All that ``prune`` takes; "refit" has curves of its own (:func:`refit_size_curves`), "joint" isn't separable.
KINDS = (*sorted(SURROGATES), "joint", "refit")


def layer_surrogates(kind: str, graph: UnitGraph, data: LabelledData, kept: np.ndarray, seed: int) -> list[Surrogate]:
    """One surrogate per group, around the mask ``kept``.

    * ``"quadratic"``: gradient and Gauss-Newton curvature of the cross-entropy in the gates, through the real rest of
      the network (:func:`~mipprune.curvature.expand_gates`).
    * ``"additive"``: Shapley values of each layer's game.
    * ``"head"``: the convex cross-entropy of an auxiliary linear head on each layer.

    Raises:
        ConfigError: another kind.
    """
    if kind not in SURROGATES:
        raise ConfigError(f"unknown surrogate {kind!r}; known: {sorted(SURROGATES)}")
    return SURROGATES[kind][0](graph, data, kept, seed)


def refit_size_curves(curves: list[RefitCurve], fewest_of: np.ndarray) -> list[SizeCurve]:
    """Refit-aware curves in the form that :func:`~mipprune.solver.recombine` takes; every size was searched.

    ``fewest_of`` (int64 (G,)): fewest units of every group.
    """
    out = []
    for curve, fewest in zip(curves, fewest_of.tolist(), strict=True):
        n = len(curve.order)
        counts = np.arange(n, fewest - 1, -1)
        removed = n - counts
        out.append(SizeCurve(
            counts=counts, masks=np.array([curve.mask(int(k)) for k in counts]), upper=curve.error[removed],
            fewest=fewest, all_lower=curve.lower[removed][::-1], termination="iteration_limit", seconds=0.0,
        ))
    return out
