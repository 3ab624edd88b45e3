"""Coarse units: whole residual branches, or all branches of a block, that leave as one."""

from __future__ import annotations

import dataclasses
import re

import networkx as nx
import numpy as np
import torch
from torch import fx, nn

from ..costs import BilinearCost, Cost, CostModel
from ..errors import ConfigError, TraceError
from ..graph import Pinned, Program, UnitGraph, UnitGroup
from ..graph.branches import Branch, CoarseUnit, find_branches
from ..graph.describe import module_path
from ..graph.stubs import watch_returns
from ..graph.values import MaskEdge, batch_dim
from .trial import Trial

__all__ = ["COARSE", "coarsen"]

COARSE = ("branches", "blocks")


def coarsen(
    graph: UnitGraph, example_input: torch.Tensor | tuple[torch.Tensor, ...], units: str = "branches"
) -> UnitGraph:
    """The same network with whole residual branches (attentions, feed-forwards, convolutions) as units.

    A removed branch contributes exactly zero to its sum, so that a block becomes its skip, and surgery puts stubs
    without parameters in the place of the branch's modules.  Branches of equal costs form a group; the groups may be
    emptied, but for what keeps the output in touch with the input.  Costs are linear in the units and exact.  Masks,
    games, curvature and plans work as with any other units; the pruned network can be traced and pruned again by
    neurons and heads.

    Args:
        graph: of :func:`mipprune.trace`; it isn't changed.
        example_input: a tensor or a tuple of tensors, as for ``trace``; one sample is enough.
        units: ``"branches"``, or ``"blocks"``: the branches whose sums lie in one entry of a ``ModuleList`` or
            ``Sequential`` leave together.

    Returns:
        A graph whose :attr:`~mipprune.UnitGraph.coarse` says what each unit stands for.  Branches that can't be removed
        are in ``pinned``, with the reason: what they compute in plain code stays, and so would its cost.

    Raises:
        TraceError: no residual branch can be removed; names the reasons.
        ConfigError: another value of ``units``, or a graph of coarse units.

    Costs one forward pass to see what modules return, one surgery, and a few masked forward passes.
    """
    if units not in COARSE:
        raise ConfigError(f"units: expected one of {COARSE}, got {units!r}")
    if graph.coarse:
        raise ConfigError("the units of this graph are coarse already; give coarsen what mipprune.trace returned")
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    example = tuple(x[:1] for x in example)
    branches, stuck = find_branches(graph.program, watch_returns(graph.model, example))
    refused = [(name, reason) for name, reason, _ in stuck]
    found = _units(branches, units)
    if units == "blocks":  # a block whose other branch stays wouldn't be its skip
        held = {_block(add) or name for name, _, add in stuck}
        refused += [(unit.name, "another branch of the block can't leave") for unit in found if unit.name in held]
        found = [unit for unit in found if unit.name not in held]
    owned = [_own_parameters(graph.model, unit) for unit in found]
    shared = [unit.name for unit, own in zip(found, owned) if own is None]
    refused += [(name, "its modules share parameters with modules that stay") for name in shared]
    pairs = [(unit, own) for unit, own in zip(found, owned) if own is not None]
    while pairs:
        coarse = _built(graph, pairs, refused)
        trial = Trial(coarse, example)
        everything = np.zeros(coarse.n_units, dtype=bool)
        if trial.fails(everything) is None:
            return _with_fewest(coarse, trial)
        reasons = {}
        for number, unit in enumerate(coarse.coarse):
            one = np.ones(coarse.n_units, dtype=bool)
            one[number] = False
            reasons[unit.name] = trial.fails(one)
        bad = {name: reason for name, reason in reasons.items() if reason is not None}
        if not bad:  # only together do they fail: keep the first half
            bad = {unit.name: "it can't leave together with the other branches" for unit, _ in pairs[len(pairs) // 2 :]}
        refused += list(bad.items())
        pairs = [pair for pair in pairs if pair[0].name not in bad]
    listed = "".join(f"\n  {name}: {reason}" for name, reason in refused)
    raise TraceError(f"{type(graph.model).__name__} has no residual branch that could be removed as a whole"
                     f"{':' if listed else ': no sum of a value and something computed from it'}{listed}")


def _units(branches: list[Branch], units: str) -> list[CoarseUnit]:
    if units == "branches":
        named: dict[str, list[Branch]] = {}
        for branch in branches:
            name = branch.name
            while name in named:
                name += "'"
            named[name] = [branch]
    else:
        named = {}
        for branch in branches:
            named.setdefault(_block(branch.add) or branch.name, []).append(branch)
    return [CoarseUnit(name, tuple(own)) for name, own in named.items()]


def _block(add: fx.Node) -> str:
    """The innermost entry of a container that a sum lies in, ``""`` if in none."""
    found = re.match(r"(.*\.\d+|\d+)(\.|$)", module_path(add))
    return found[1] if found else ""


def _own_parameters(model: nn.Module, unit: CoarseUnit) -> int | None:
    """Elements of the parameters that leave with the unit; ``None`` if others hold one of them too."""
    paths = tuple(f"{removal.module}." for removal in unit.removals)
    inside, outside = {}, set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name.startswith(paths):
            inside[id(parameter)] = parameter.numel()
        else:
            outside.add(id(parameter))
    return None if outside & set(inside) else sum(inside.values())


def _built(
    graph: UnitGraph, pairs: list[tuple[CoarseUnit, int]], refused: list[tuple[str, str]]
) -> UnitGraph:
    """The coarse graph: units of equal costs side by side, one mask edge per branch, linear costs."""
    members: dict[tuple[int, int], list[CoarseUnit]] = {}
    for unit, params in pairs:
        members.setdefault((sum(b.macs for b in unit.branches), params), []).append(unit)
    groups: list[UnitGroup] = []
    units: list[CoarseUnit] = []
    for own in members.values():
        names = tuple(unit.name for unit in own)
        sums = dict.fromkeys(module_path(branch.add) for unit in own for branch in unit.branches)
        groups.append(UnitGroup(own[0].name, names, tuple(sums), len(own), len(units), fewest=0))
        units += own
    counts = np.array(list(members), dtype=np.int64).reshape(-1, 2)
    none = np.zeros(0, dtype=np.int64)
    dense = [graph.macs(), graph.params()]
    sizes = np.array([g.size for g in groups], dtype=np.int64)
    resources: dict[str, Cost] = {"units": BilinearCost(0, np.ones(len(groups), dtype=np.int64), none, none, none)}
    for column, name in enumerate(("macs", "params")):
        stays = dense[column] - int(counts[:, column] @ sizes)
        resources[name] = BilinearCost(stays, counts[:, column], none, none, none)
    edges, numbers = [], []
    for number, unit in enumerate(units):
        for branch in unit.branches:
            value = branch.add.args[branch.argument].meta["val"]  # type: ignore[union-attr]
            dim = next(d for d in range(value.ndim - 1, -1, -1) if d != batch_dim(value))
            labels = torch.ones(int(value.shape[dim]), dtype=torch.int64)
            edges.append(MaskEdge(branch.add, module_path(branch.add), dim, labels, branch.argument))
            numbers.append(np.full(len(labels), number))
    program = Program(graph.model, graph.program.captured)
    program.bind(edges, numbers, len(units))
    program.macs = graph.program.macs
    coupling = nx.Graph()
    coupling.add_nodes_from(g.name for g in groups)
    costs = CostModel(tuple(g.name for g in groups), sizes, resources)
    pinned = tuple(Pinned(name, 1, reason) for name, reason in refused)
    return UnitGraph(graph.model, tuple(groups), pinned, costs, {}, (), program, coupling, coarse=tuple(units))


def _with_fewest(graph: UnitGraph, trial: Trial) -> UnitGraph:
    """Groups that have to keep a unit so that the output still depends on the input say so; the fewest that do."""
    if trial.deaf(np.zeros(graph.n_units, dtype=bool)) is None:
        return graph
    groups = list(graph.groups)
    kept = np.ones(graph.n_units, dtype=bool)
    for number, group in enumerate(groups):
        without = kept.copy()
        without[group.units] = False
        reason = trial.deaf(without)
        if reason is None:
            kept = without
        else:
            groups[number] = dataclasses.replace(group, fewest=1, needed=f"one has to stay: {reason}")
    return dataclasses.replace(graph, groups=tuple(groups))
