"""Units, groups and costs: what tracing found, as data."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable

import networkx as nx
import numpy as np
import torch
from torch import fx, nn

from ..costs import BilinearCost, Cost, CostModel
from ..errors import ConfigError, UnknownLayerError
from .branches import CoarseUnit
from .context import Context, Value
from .counting import CostCounter
from .forms import AttributeForm
from .labels import Components, Site
from .program import Program
from .resolve import Resolved
from .source import Slot

__all__ = ["AttributeSite", "Pinned", "RewriteSite", "UnitGraph", "UnitGroup", "build_units"]


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Units that can be exchanged for one another: neurons of one layer, or channels tied by residual additions.

    Attributes:
        name: module path of the first layer that produces the units.
        producers: module paths of all layers that produce them (several when a residual addition ties them).
        consumers: module paths of the layers that read them.
        size: number of units.
        offset: number of the group's first unit; units are numbered group by group.
        fewest: 0 if all of the units may leave (see :func:`mipprune.allow_empty`), else 1.
        needed: why at least one unit has to stay, where that was looked into.
    """

    name: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    size: int
    offset: int
    fewest: int = 1
    needed: str = ""

    @property
    def units(self) -> slice:
        """Numbers of the group's units in the whole network."""
        return slice(self.offset, self.offset + self.size)


@dataclasses.dataclass(frozen=True)
class Pinned:
    """Outputs of a layer that can't be pruned, and why.

    Attributes:
        module: path of the layer.
        n_units: how many outputs.
        reason: in words, with the operation and its source line.
    """

    module: str
    n_units: int
    reason: str


@dataclasses.dataclass(frozen=True)
class AttributeSite:
    """An integer attribute of a module that counts units: after surgery ``constant + kept[units].sum()``.

    Attributes:
        module, attribute: where it is; ``index`` is its place in a tuple there, -1 if it isn't in one.
        constant: what doesn't depend on the kept units.
        units: int64, unit numbers, repeated where a unit counts more than once.
    """

    module: str
    attribute: str
    index: int
    constant: int
    units: np.ndarray


@dataclasses.dataclass(frozen=True)
class RewriteSite:
    """A size in the code of a module's method that no attribute can repair; surgery lets it read one of its own.

    Attributes:
        slot: where it stands; ``code``: hash of the method's source.
        expression: what stands there now.
        size: the attribute that it reads in the pruned network.
    """

    slot: Slot
    code: str
    expression: str
    size: AttributeSite

    def __str__(self) -> str:
        where = ".".join(filter(None, [self.slot.site.module, self.slot.site.method]))
        return f"{where}: `{self.expression}` at its line {self.slot.site.line + 1} becomes self.{self.size.attribute}"


@dataclasses.dataclass(frozen=True)
class UnitGraph:
    """A traced network: its units, how they are tied together, what they cost, and how to run it masked.

    Attributes:
        model: the traced model, not copied; its weights are read at every run.
        groups: the prunable groups, in execution order.
        pinned: what can't be pruned, with the reason.
        costs: ``"units"``, ``"params"`` and ``"macs"`` as exact functions of the kept counts.
        unit_sites: (parameter or buffer name, dimension) -> int64 of shape (size,): the unit of every index, -1 where
            the index isn't prunable.
        attributes: integer attributes of modules that count units.  With the sites, this is all that surgery needs.
        program: runs the network with units masked.
        coupling: networkx graph of the groups; an edge where a layer reads one group and produces the other.
        rewrites: sizes in the code of methods that change with the units and that no attribute repairs.
        coarse: what every unit stands for, where units are whole branches (:func:`mipprune.coarsen`); else empty.
    """

    model: nn.Module
    groups: tuple[UnitGroup, ...]
    pinned: tuple[Pinned, ...]
    costs: CostModel
    unit_sites: dict[Site, np.ndarray]
    attributes: tuple[AttributeSite, ...]
    program: Program
    coupling: nx.Graph
    rewrites: tuple[RewriteSite, ...] = ()
    coarse: tuple[CoarseUnit, ...] = ()

    @property
    def n_units(self) -> int:
        """Units of all groups together."""
        return self.costs.n_units

    def group(self, name: str) -> UnitGroup:
        """The group that the module ``name`` produces.

        Raises:
            UnknownLayerError: there is no such module, or its units can't be pruned; says which, and why.
        """
        for group in self.groups:
            if name == group.name or name in group.producers:
                return group
        for pinned in self.pinned:
            if name == pinned.module:
                raise UnknownLayerError(f"layer {name!r} can't be pruned: {pinned.reason}")
        known = [p for g in self.groups for p in g.producers]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"prunable layers: {known}"
        raise UnknownLayerError(f"no prunable layer {name!r}; {hint}")

    def units_of(self, names: Iterable[str]) -> np.ndarray:
        """Bool mask (n_units,) of all units of the layers called ``names``; a string is one name.

        Coarse units are named one by one, by the branch or by any of its modules.
        """
        mask = np.zeros(self.n_units, dtype=bool)
        for name in (names,) if isinstance(names, str) else names:
            own = [i for i, unit in enumerate(self.coarse) if unit.answers_to(name)]
            mask[own or self.group(name).units] = True
        return mask

    def require_fine(self, what: str) -> None:
        """Raise :class:`ConfigError` if units are whole branches, which ``what`` knows nothing of."""
        if self.coarse:
            raise ConfigError(f"{what} speaks of neurons, channels and heads; give it the graph of mipprune.trace, "
                              f"not that of mipprune.coarsen")

    def macs(self, kept: np.ndarray | None = None) -> int:
        """Multiply-adds per sample when the mask ``kept`` (bool, (n_units,)) stays; of the dense network by default."""
        return self._cost("macs", kept)

    def params(self, kept: np.ndarray | None = None) -> int:
        """Number of parameters when the mask ``kept`` stays; of the dense network by default."""
        return self._cost("params", kept)

    def _cost(self, resource: str, kept: np.ndarray | None) -> int:
        return self.costs.cost(resource, self.costs.sizes if kept is None else self.costs.counts(kept))

    def __str__(self) -> str:
        lines = [f"{type(self.model).__name__}: {self.n_units} units in {len(self.groups)} groups, "
                 f"{self.params():,} params, {self.macs():,} MACs"]
        lines += [f"  {g.name}: {g.size} units; made by {', '.join(g.producers)}; read by {', '.join(g.consumers)}"
                  + ("; may be emptied" if g.fewest == 0 else f"; keeps one: {g.needed}" if g.needed else "")
                  for g in self.groups]
        lines += [f"  code of {rewrite}" for rewrite in self.rewrites]
        lines += [f"  {p.module}: {p.n_units} outputs not prunable: {p.reason}" for p in self.pinned]
        return "\n".join(lines)


def build_units(model: nn.Module, context: Context, resolved: Resolved, program: Program) -> UnitGraph:
    """Turn the coupled labels of a finished trace into groups, costs and sites."""
    space, components = context.space, resolved.components
    counting = (*resolved.attributes, *(r.form for r in resolved.rewritten))
    numbering, groups = _number_units(context, components, counting)
    number = np.full(int(components.number.max(initial=0)) + 2, -1, dtype=np.int64)
    number[list(numbering)] = list(numbering.values())

    def numbered(labels: torch.Tensor) -> np.ndarray:
        return number[components.of(labels)]  # the last entry, for pinned labels, is -1

    sites = {site: numbered(labels) for site, labels in space.sites.items()}
    sites = {site: units for site, units in sites.items() if (units >= 0).any()}
    counter = CostCounter(np.array([g.size for g in groups], dtype=np.int64))
    resources: dict[str, Cost] = {
        "units": counter.units(),
        "params": counter.params(dict(model.named_parameters()), sites),
        "macs": counter.macs(context.contractions, numbered),
    }
    costs = CostModel(tuple(g.name for g in groups), counter.sizes, resources)
    coupling = nx.Graph()
    coupling.add_nodes_from(costs.groups)
    macs = resources["macs"]
    assert isinstance(macs, BilinearCost)
    coupling.add_edges_from((costs.groups[a], costs.groups[b]) for a, b in zip(macs.left, macs.right, strict=True))
    program.bind(context.edges, [numbered(edge.labels) for edge in context.edges], costs.n_units)
    program.lengths = [(node, at, units) for node, at, labels in context.lengths
                       if ((units := numbered(labels)) >= 0).any()]
    for contraction in context.contractions:
        program.macs[contraction.node] = program.macs.get(contraction.node, 0) + contraction.dense
    program.carried = _carried(context, numbered, costs.group_of_unit)
    repaired = tuple(_attribute_site(form, number) for form in resolved.attributes)
    repaired = tuple(site for site in repaired if len(site.units))
    pinned = _pinned(model, context, components, number)
    rewrites = tuple(RewriteSite(r.slot, r.code, r.expression, _attribute_site(r.form, number))
                     for r in resolved.rewritten)
    return UnitGraph(model, groups, pinned, costs, sites, repaired, program, coupling, rewrites)


def _carried(
    context: Context, numbered: Callable[[torch.Tensor], np.ndarray], group_of_unit: np.ndarray
) -> dict[str, list[tuple[int, frozenset[int]]]]:
    """Where whole values belong to units: see :attr:`Program.carried`."""
    out: dict[str, list[tuple[int, frozenset[int]]]] = {}
    for node in context.captured.nodes:
        found = context.values[node.name]
        results = found if isinstance(found, tuple) else (found,)
        carried = []
        for value in results:
            labels = value.labels if isinstance(value, Value) else torch.zeros(0)
            dim = next((d for d in range(labels.ndim)
                        if labels.shape[d] > 1 and bool((labels != labels.narrow(d, 0, 1)).any())), None)
            if dim is None or (units := np.unique(numbered(labels)))[0] < 0:
                break
            carried.append((dim, frozenset(group_of_unit[units].tolist())))
        else:
            out[node.name] = carried
    return out


def _attribute_site(found: AttributeForm, number: np.ndarray) -> AttributeSite:
    units = np.repeat(number[np.array(found.form.units, dtype=np.int64)], found.form.multiplicity)
    constant = found.form.constant + int((units < 0).sum())
    place = found.attribute
    return AttributeSite(place.module, place.attribute, place.index, constant, np.sort(units[units >= 0]))


def _number_units(
    context: Context, components: Components, attributes: tuple[AttributeForm, ...]
) -> tuple[dict[int, int], tuple[UnitGroup, ...]]:
    """Number the units group by group; units that count equally often at every site and attribute form a group."""
    signature: dict[int, list[tuple[int, int]]] = {}
    for i, labels in enumerate(context.space.sites.values()):
        for u, count in _counted(components.of(labels)):
            signature.setdefault(u, []).append((i, count))
    for i, found in enumerate(attributes):
        for u, count in zip(found.form.units, found.form.multiplicity):
            signature.setdefault(u, []).append((-1 - i, count))
    read: set[int] = set()
    takers: dict[int, list[str]] = {}
    for edge in context.edges:
        for u, _ in _counted(components.of(edge.labels)):
            read.add(u)
            if edge.module not in takers.setdefault(u, []):
                takers[u].append(edge.module)
    makers: dict[int, list[str]] = {}
    for module, site in context.producers:
        for u in dict.fromkeys(components.of(context.space.sites[site]).tolist()):
            if u in read and module not in makers.setdefault(u, []):
                makers[u].append(module)
    members: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for u in makers:
        members.setdefault(tuple(signature[u]), []).append(u)
    numbering: dict[int, int] = {}
    groups: list[UnitGroup] = []
    names: set[str] = set()
    for units in members.values():
        name = makers[units[0]][0]
        while name in names:  # two groups made by one layer (a split): number the later one
            name += "'"
        names.add(name)
        groups.append(UnitGroup(name, tuple(makers[units[0]]), tuple(takers[units[0]]), len(units), len(numbering)))
        numbering.update({u: len(numbering) + i for i, u in enumerate(units)})
    return numbering, tuple(groups)


def _counted(numbers: np.ndarray) -> list[tuple[int, int]]:
    """(component, how often) for the components that aren't pinned."""
    units, counts = np.unique(numbers[numbers >= 0], return_counts=True)
    return list(zip(units.tolist(), counts.tolist()))


def _pinned(model: nn.Module, context: Context, components: Components, number: np.ndarray) -> tuple[Pinned, ...]:
    """What can't be pruned: outputs of layers by reason, and parameters that the forward pass doesn't touch."""
    seen: set[tuple[str, Site]] = set()
    counts: dict[tuple[str, str], int] = {}
    for module, site in context.producers:
        if (module, site) in seen:
            continue
        seen.add((module, site))
        labels = context.space.sites[site]
        for label in labels[torch.from_numpy(number[components.of(labels)] < 0)].tolist():
            key = module, components.reason(label) or "nothing reads it"
            counts[key] = counts.get(key, 0) + 1
    out = [Pinned(module, count, reason) for (module, reason), count in counts.items()]
    listed = {pinned.module for pinned in out}
    out += [Pinned(path, n, reason) for (path, reason), n in context.computed.items() if path not in listed]
    used = {own for node in context.captured.nodes for own in _read_tensors(node, context)}
    untouched: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if name not in used:
            path = name.rpartition(".")[0]
            untouched[path] = max(untouched.get(path, 1), len(parameter) if parameter.ndim else 1)
    return (*out, *(Pinned(path, n, "the forward pass on the example doesn't use its parameters; they stay as they are")
                    for path, n in untouched.items()))


def _read_tensors(node: fx.Node, context: Context) -> list[str]:
    """Names of the parameters and buffers among a node's arguments."""
    names = (context.values.get(a.name) for a in node.all_input_nodes if a.op == "placeholder")
    return [v.name for v in names if isinstance(v, Value) and v.name is not None]
