"""Which groups may lose all of their units: found by reasoning on the graph, and tried on the network itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..graph import UnitGraph
from ..graph.emptiness import why_needed
from .plan import PrunePlan
from .verify import first_tensor

__all__ = ["allow_empty"]


def allow_empty(graph: UnitGraph, example_input: torch.Tensor | tuple[torch.Tensor, ...]) -> UnitGraph:
    """The same graph, whose groups may lose every unit wherever that is harmless: ``group.fewest`` is 0 there.

    Harmless are groups that the input has a way around: the inner channels of a residual branch, all heads of an
    attention, the feed-forward width.  An emptied branch adds a constant, the bias of its last layer (which repairs set
    to the branch's mean), and costs no multiply-adds.  The groups may also be emptied all together.  Each is tried: the
    network is cut and must agree with the masked one on ``example_input``; where it doesn't, or doesn't run at width 0,
    ``group.needed`` says why one unit stays.

    Args:
        graph: of :func:`mipprune.trace`; it isn't changed.
        example_input: a tensor or a tuple of tensors, as for ``trace``; one sample is enough.

    Costs one surgery and two forward passes per candidate group.
    """
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    example = tuple(x[:1] for x in example)
    reasons: dict[int, str] = {}
    chosen: set[int] = set()
    for number in range(len(graph.groups)):
        reason = why_needed(graph.program, {number})
        if reason is None and why_needed(graph.program, chosen | {number}) is not None:
            reason = "together with others that may be emptied, it keeps the output in touch with the input"
        if reason is None:
            reason = _trial(graph, {number}, example)
        if reason is None:
            chosen.add(number)
        else:
            reasons[number] = reason
    if len(chosen) > 1 and _trial(graph, chosen, example) is not None:
        together: set[int] = set()
        for number in sorted(chosen):
            reason = _trial(graph, together | {number}, example)
            if reason is None:
                together.add(number)
            else:
                reasons[number] = reason
        chosen = together
    return _with_fewest(graph, chosen, reasons)


def _with_fewest(graph: UnitGraph, empty: set[int], reasons: dict[int, str]) -> UnitGraph:
    return dataclasses.replace(graph, groups=tuple(
        dataclasses.replace(group, fewest=0 if i in empty else 1, needed=reasons.get(i, ""))
        for i, group in enumerate(graph.groups)
    ))


@torch.no_grad()
def _trial(graph: UnitGraph, empty: set[int], example: tuple[torch.Tensor, ...]) -> str | None:
    """Cut the network with the groups ``empty``; what goes wrong, if anything does."""
    kept = np.ones(graph.n_units, dtype=bool)
    for number in empty:
        kept[graph.groups[number].units] = False
    dtype = next(p.dtype for p in graph.model.parameters() if p.is_floating_point())
    gates = torch.from_numpy(kept).to(example[0].device, dtype)
    expected = graph.program.run(example, gates)
    try:
        small = PrunePlan.from_mask(_with_fewest(graph, empty, {}), kept).apply(graph.model).eval()
        found = first_tensor(small(*example))
    except Exception as error:  # whatever the user's forward raises at width 0
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return f"the network doesn't run without it ({first})"
    if found.shape != expected.shape or not bool((found - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6):
        return "the network computes something else without it than with all of its units masked"
    other = tuple(_changed(x) for x in example)
    dense = float((graph.program.run(other) - graph.program.run(example)).abs().max())
    if dense > 0 and not float((graph.program.run(other, gates) - expected).abs().max()) > 1e-9 * dense:
        return "without it the output wouldn't depend on the input"  # a class token that no attention brings anything
    return None


def _changed(x: torch.Tensor) -> torch.Tensor:
    """Another input of the same kind."""
    if not x.is_floating_point():
        return x.roll(1, -1)
    generator = torch.Generator().manual_seed(0)
    return x + torch.randn(x.shape, generator=generator).to(x)
