"""Which groups may lose all of their units: found by reasoning on the graph, and tried on the network itself."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch
from torch import nn

from ..graph import UnitGraph
from ..graph.emptiness import why_needed
from .plan import PrunePlan
from .trial import Trial

__all__ = ["allow_empty"]

#: Multiply-adds per sample, and ten times the parameters, up to which a network is faster cut and run as it is than
#: without numbers, which is all Python.
SMALL = 1e8


def allow_empty(graph: UnitGraph, example_input: torch.Tensor | tuple[torch.Tensor, ...]) -> UnitGraph:
    """The same graph, whose groups may lose every unit wherever that is harmless: ``group.fewest`` is 0 there.

    Harmless are groups that the input has a way around: the inner channels of a residual branch, all heads of an
    attention, the feed-forward width.  An emptied branch adds a constant, the bias of its last layer (which repairs set
    to the branch's mean), and costs no multiply-adds (:func:`mipprune.coarsen` removes branches without a trace).  The
    groups may also be emptied all together: the network is cut so, must agree with the masked one on ``example_input``
    and tell two inputs apart.  Each alone has to run at width 0, which is tried on the ``meta`` device if the network
    is large.  Where either fails, ``group.needed`` says why one unit stays.

    Args:
        graph: of :func:`mipprune.trace`; it isn't changed.
        example_input: a tensor or a tuple of tensors, as for ``trace``; one sample is enough.

    Costs one surgery and a few forward passes, a surgery and a cheap forward pass per candidate group, and about
    log2(groups) more surgeries for each group that can't be emptied.
    """
    graph.require_fine("allow_empty")
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    example = tuple(x[:1] for x in example)
    reasons: dict[int, str] = {}
    chosen: list[int] = []
    for number in range(len(graph.groups)):
        reason = why_needed(graph.program, {number})
        if reason is None and why_needed(graph.program, {*chosen, number}) is not None:
            reason = "together with others that may be emptied, it keeps the output in touch with the input"
        if reason is None:
            chosen.append(number)
        else:
            reasons[number] = reason
    dry = _DryRun.of(graph, example)
    for number in [*chosen] if dry is not None else []:
        assert dry is not None
        if (reason := dry.fails(number)) is not None:
            chosen.remove(number)
            reasons[number] = reason
    chosen = _together(_with_fewest(graph, set(chosen), {}), [], chosen, example, reasons)
    return _with_fewest(graph, set(chosen), reasons)


def _together(
    graph: UnitGraph, base: list[int], more: list[int], example: tuple[torch.Tensor, ...], reasons: dict[int, str]
) -> list[int]:
    """``base`` and as many of the groups ``more``, in order, as the network can do without all together."""
    if not more:
        return base
    trial = Trial(graph, example)
    kept = _without(graph, {*base, *more})
    reason = trial.fails(kept) or trial.deaf(kept)
    if reason is None:
        return [*base, *more]
    if len(more) == 1:
        reasons[more[0]] = reason
        return base
    half = len(more) // 2
    base = _together(graph, base, more[:half], example, reasons)
    return _together(graph, base, more[half:], example, reasons)


def _without(graph: UnitGraph, empty: set[int]) -> np.ndarray:
    kept = np.ones(graph.n_units, dtype=bool)
    for number in empty:
        kept[graph.groups[number].units] = False
    return kept


def _with_fewest(graph: UnitGraph, empty: set[int], reasons: dict[int, str]) -> UnitGraph:
    return dataclasses.replace(graph, groups=tuple(
        dataclasses.replace(group, fewest=0 if i in empty else 1, needed=reasons.get(i, ""))
        for i, group in enumerate(graph.groups)
    ))


class _DryRun:
    """The network cut at little cost to see whether its code runs: without numbers (on ``meta``) where it's large."""

    def __init__(self, graph: UnitGraph, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.graph, self.model, self.inputs = graph, model, inputs

    @classmethod
    def of(cls, graph: UnitGraph, example: tuple[torch.Tensor, ...]) -> _DryRun | None:
        """``None`` where the dense network doesn't run like that (it looks at values, or keeps loose tensors)."""
        if max(graph.macs(), 10 * graph.params()) <= SMALL:
            return cls(graph, graph.model, example)
        tensors = [*graph.model.parameters(), *graph.model.buffers()]
        hollow = {id(t): t.detach().to("meta") for t in tensors}
        for parameter in graph.model.parameters():
            hollow[id(parameter)] = nn.Parameter(hollow[id(parameter)], requires_grad=False)
        model = copy.deepcopy(graph.model, hollow).eval()
        run = cls(graph, model, tuple(x.to("meta") for x in example))
        return run if run._error(model) is None else None

    def fails(self, number: int) -> str | None:
        """What goes wrong when the group loses every unit."""
        graph = _with_fewest(self.graph, {number}, {})
        try:
            small = PrunePlan.from_mask(graph, _without(graph, {number})).apply(self.model)
        except Exception as error:  # whatever the user's classes raise when they are copied
            return f"the network can't be cut without it ({error})"
        return self._error(small.eval())

    @torch.no_grad()
    def _error(self, model: nn.Module) -> str | None:
        try:
            model(*self.inputs)
        except Exception as error:  # whatever the user's forward raises at width 0
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"the network doesn't run without it ({first})"
        return None
