"""One layer on its own: the network up to the layer's units, and an auxiliary head behind them."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp

from ..bounds import Affine, Gate, PiecewiseLinear
from ..bounds.simplify import without_dead
from ..curvature import HeadFit
from ..errors import UnknownLayerError

__all__ = ["layer_with_head"]


def layer_with_head(network: PiecewiseLinear, units: slice, head: HeadFit) -> PiecewiseLinear:
    """The decoupled layer of 2002.07259 with a linear head (ours): ``head(mean over positions of the gated units)``.

    Args:
        units: the layer's units; they are read off the first gate that holds one of them.
        head: fitted on what the units hand to their readers, averaged over positions.
    """
    numbers = np.arange(units.start, units.stop)
    gates = [(v, node) for v, node in enumerate(network.nodes, start=1) if isinstance(node, Gate)]
    values = [v for v, node in gates if np.isin(node.units, numbers).any()]
    if not values:
        raise UnknownLayerError("nothing reads the layer's units")
    node = network.node_of(values[0])
    assert isinstance(node, Gate)
    own = np.isin(node.units, numbers)
    columns = node.units[own] - units.start
    counts = np.bincount(columns, minlength=units.stop - units.start)
    mean = sp.csr_array((1.0 / counts[columns], (columns, np.flatnonzero(own))), shape=(len(counts), node.size))
    last = Affine((values[0],), (sp.csr_array(sp.csr_array(head.weight) @ mean),), head.bias)
    return without_dead(dataclasses.replace(network, nodes=(*network.nodes[: values[0]], last)))
