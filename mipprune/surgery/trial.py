"""Trying on one sample what a mask promises: that the smaller network runs, computes the same and hears its input."""

from __future__ import annotations

import functools

import numpy as np
import torch

from ..graph import UnitGraph
from .plan import PrunePlan
from .verify import first_tensor

__all__ = ["Trial"]


class Trial:
    """Masks of one traced network, tried on an example.

    Args:
        example: inputs, one sample each.
    """

    def __init__(self, graph: UnitGraph, example: tuple[torch.Tensor, ...]) -> None:
        self.graph, self.example = graph, example
        self.other = tuple(_changed(x) for x in example)
        self._dtype = next(p.dtype for p in graph.model.parameters() if p.is_floating_point())

    @torch.no_grad()
    def masked(self, kept: np.ndarray, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Output of the masked network."""
        return self.graph.program.run(inputs, torch.from_numpy(kept).to(inputs[0].device, self._dtype))

    @torch.no_grad()
    def fails(self, kept: np.ndarray) -> str | None:
        """What goes wrong when the network is cut, ``None`` if nothing does.  One surgery, two forward passes."""
        expected = self.masked(kept, self.example)
        try:
            small = PrunePlan.from_mask(self.graph, kept).apply(self.graph.model).eval()
            found = first_tensor(small(*self.example))
        except Exception as error:  # whatever the user's forward raises
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"the network doesn't run without it ({first})"
        tolerance = 1e-4 * float(expected.abs().max()) + 1e-6
        if found.shape != expected.shape or not bool((found - expected).abs().max() <= tolerance):
            return "the network computes something else without it than with all of its units masked"
        return None

    def deaf(self, kept: np.ndarray) -> str | None:
        """Why the mask is useless: the output is the same for two inputs (a class token that nothing reaches)."""
        change = float((self.masked(kept, self.other) - self.masked(kept, self.example)).abs().max())
        if self._dense_change > 0 and not change > 1e-9 * self._dense_change:
            return "without it the output wouldn't depend on the input"
        return None

    @functools.cached_property
    def _dense_change(self) -> float:
        everything = np.ones(self.graph.n_units, dtype=bool)
        return float((self.masked(everything, self.other) - self.masked(everything, self.example)).abs().max())


def _changed(x: torch.Tensor) -> torch.Tensor:
    """Another input of the same kind."""
    if not x.is_floating_point():
        return x.roll(1, -1)
    generator = torch.Generator().manual_seed(0)
    return x + torch.randn(x.shape, generator=generator).to(x)
