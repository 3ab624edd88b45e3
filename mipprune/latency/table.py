"""The latency table: a traced network's operations, timed at a grid of widths on this machine, as a cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import torch
from torch import nn
from tqdm.auto import tqdm

from ..costs import BilinearCost
from ..errors import BudgetError
from ..graph import UnitGraph
from ..records import Record, frozen_array
from ..surgery import PrunePlan
from ..surgery.plan import fingerprint
from .clock import OpClock, device_name, forward_seconds
from .fit import OpFit, fit_operations, latency_cost, predict

__all__ = ["LatencyTable", "measure_latency", "with_latency"]

#: Fewest and most times that every width is measured.
ROUNDS = (5, 50)
#: Share of a group that the narrowest network keeps.
NARROWEST = 1 / 8


@dataclasses.dataclass(frozen=True, eq=False)
class LatencyTable(Record):
    """Timings of one network at many widths on one device, and the cost fitted to them.  JSON: ``save``, ``load``.

    Attributes:
        architecture: fingerprint of the dense network, as in a plan.
        device, torch: what ran it, and which clock was read.
        input_shapes: what it ran on; batch first.
        groups: names of the G prunable groups.
        sizes: int64 (G,), their units.
        counts: int64 (D, G), kept counts of the networks timed; the first is dense.
        total: float64 (D,), median seconds of a whole forward pass.
        modules, ops: module path and ATen operation of every operation, in execution order.
        seconds: float64 (n_ops, D), median seconds of every operation.
        fits: what every operation costs.
        cost: latency of the whole network in femtoseconds, as a function of the kept counts.
        held_out: bool (D,), the networks that the fit didn't see.
        n_rounds: measurements behind every median.
    """

    architecture: str
    device: str
    torch: str
    input_shapes: tuple[tuple[int, ...], ...]
    groups: tuple[str, ...]
    sizes: np.ndarray
    counts: np.ndarray
    total: np.ndarray
    modules: tuple[str, ...]
    ops: tuple[str, ...]
    seconds: np.ndarray
    fits: tuple[OpFit, ...]
    cost: BilinearCost
    held_out: np.ndarray
    n_rounds: int

    def predict(self, counts: np.ndarray) -> np.ndarray:
        """Fitted seconds of a forward pass at the rows of ``counts`` (D, G): float64 (D,)."""
        return predict(self.cost, counts)

    @property
    def errors(self) -> np.ndarray:
        """Fitted over measured time, minus 1, of every network timed: float64 (D,)."""
        return self.predict(self.counts) / self.total - 1

    @property
    def fit_error(self) -> float:
        """Median absolute relative error on the networks that the fit didn't see."""
        return float(np.median(np.abs(self.errors[self.held_out])))

    def __str__(self) -> str:
        lines = [f"{self.total[0] * 1e3:.4g} ms dense on {self.device}, inputs {self.input_shapes}; "
                 f"{len(self.counts)} networks, {self.n_rounds} rounds; fit off by {self.fit_error:.1%} (median of "
                 f"{int(self.held_out.sum())} held out), {np.abs(self.errors[self.held_out]).max():.1%} at most"]
        order = np.argsort(-self.seconds[:, 0], kind="stable")
        for i in order[:20]:
            own = ", ".join(self.groups[g] for g in self.fits[i].groups)
            lines.append(f"  {self.modules[i] or '(the model)'} {self.ops[i]}: {self.seconds[i, 0] * 1e6:.1f} us, "
                         f"{self.fits[i].constant * 1e6:.1f} us of it whatever is kept" + (f" of {own}" if own else ""))
        if len(order) > 20:
            lines.append(f"  and {len(order) - 20} faster operations")
        return "\n".join(lines)


def with_latency(graph: UnitGraph, table: LatencyTable) -> UnitGraph:
    """The graph with the table's cost as resource ``"latency"``.

    Raises:
        BudgetError: the table was measured on another architecture.
    """
    same = table.architecture == fingerprint(graph.model) and table.groups == graph.costs.groups
    if not same or table.sizes.tolist() != graph.costs.sizes.tolist():
        raise BudgetError("the latency table was measured on another network; measure_latency(graph, inputs) makes one "
                          "for this one")
    resources = {**graph.costs.resources, "latency": table.cost}
    return dataclasses.replace(graph, costs=dataclasses.replace(graph.costs, resources=resources))


@torch.no_grad()
def measure_latency(
    graph: UnitGraph,
    inputs: torch.Tensor | tuple[torch.Tensor, ...],
    *,
    multiple: int = 1,
    n_networks: int = 24,
    seconds: float = 20.0,
    seed: int = 0,
    progress: bool = False,
) -> LatencyTable:
    """Time really smaller copies of the network, operation by operation, and fit a cost to what was seen.

    The widths are a Latin hypercube between an eighth and all of every group: each group's widths are spread evenly,
    independently of the others', so that an operation is seen at many pairs of widths.  The networks are timed in
    turns, each after a warm-up run; every number is a median over the rounds.  An operation costs
    ``a + b k_in + c k_out + d k_in k_out`` with coefficients at least 0; the network costs an overhead plus a share of
    the operations' sum, fitted to whole forward passes.  A quarter of the networks are held out of the fit.

    Args:
        graph: the traced network.
        inputs: what ``forward`` is called with, on the model's device.  Latency depends on the batch size: give the
            one that matters.
        multiple: widths are multiples of it where a group is large enough; give what the pruning will be given, because
            widths in between may well be slower.
        n_networks: networks to time, at least 8.
        seconds: about how long to measure, beyond 5 rounds.
        seed: of the widths and the order of measurements.
        progress: show a progress bar.

    Raises:
        BudgetError: fewer than 8 networks.
    """
    graph.require_fine("a latency table")
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    if n_networks < 8:
        raise BudgetError(f"n_networks must be at least 8, got {n_networks}")
    rng = np.random.default_rng(seed)
    counts = _designs(graph.costs.sizes, multiple, n_networks, rng)
    networks = [_narrowed(graph, row) for row in counts]
    modules, ops, groups = _operations(graph, args)
    times, total, rounds = _time(networks, args, len(ops), seconds, rng, progress)
    if times is None:  # not the same operations at every width: the network is one operation then
        modules, ops, groups, times = [""], ["whole network"], [np.arange(len(graph.groups))], total[None, :]
    held_out = np.arange(len(counts)) % 4 == 3
    seen = ~held_out
    macs = graph.costs["macs"]
    assert isinstance(macs, BilinearCost)  # a traced network counts them so
    fits = fit_operations(counts[seen], times[:, seen], groups, np.column_stack([macs.left, macs.right]))
    whole = np.sum([fit(counts) for fit in fits], axis=0)
    share, overhead = _calibrate(whole[seen], total[seen])
    return LatencyTable(
        architecture=fingerprint(graph.model), device=device_name(args[0].device), torch=torch.__version__,
        input_shapes=tuple(tuple(x.shape) for x in args), groups=graph.costs.groups,
        sizes=frozen_array(graph.costs.sizes, np.int64), counts=frozen_array(counts, np.int64),
        total=frozen_array(total), modules=tuple(modules), ops=tuple(ops), seconds=frozen_array(times), fits=fits,
        cost=latency_cost(fits, share, overhead, len(graph.groups)), held_out=frozen_array(held_out, bool),
        n_rounds=rounds,
    )


def _designs(sizes: np.ndarray, multiple: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Kept counts of the networks to time: int64 (n, G); the dense one and the narrowest one first."""
    columns = []
    for size in sizes.tolist():
        strata = (rng.permutation(n - 2) + rng.random(n - 2)) / (n - 2)
        counts = np.concatenate([[1.0, NARROWEST], NARROWEST + (1 - NARROWEST) * strata]) * size
        if 1 < multiple <= size:
            counts[1:] = np.round(counts[1:] / multiple) * multiple
        columns.append(np.clip(np.round(counts), min(multiple, size) if multiple > 1 else 1, size))
    return np.column_stack([*columns, np.zeros((n, 0))]).astype(np.int64)


def _narrowed(graph: UnitGraph, counts: np.ndarray) -> nn.Module:
    """The network that keeps the first units of every group."""
    kept = np.zeros(graph.n_units, dtype=bool)
    for group, count in zip(graph.groups, counts, strict=True):
        kept[group.offset : group.offset + count] = True
    return PrunePlan.from_mask(graph, kept).apply(graph.model).eval()


def _operations(graph: UnitGraph, args: tuple[torch.Tensor, ...]) -> tuple[list[str], list[str], list[np.ndarray]]:
    """Module and name of every operation, and the groups that its shapes depend on: one is narrowed at a time."""
    one = tuple(x[:1] for x in args)
    sizes = graph.costs.sizes
    names, shapes = _record(graph.model, one)
    depends: list[list[int]] = [[] for _ in names]
    for g, size in enumerate(sizes.tolist()):
        if size == 1:
            continue
        fewer = sizes.copy()
        fewer[g] = size // 2
        others, narrow = _record(_narrowed(graph, fewer), one)
        if others != names:
            continue  # other operations at another width: _time finds out too, and times the whole network
        for i, (a, b) in enumerate(zip(shapes, narrow, strict=True)):
            if a != b:
                depends[i].append(g)
    return _modules(graph.model, one, names), names, [np.array(found, dtype=np.int64) for found in depends]


def _record(
    model: nn.Module, args: tuple[torch.Tensor, ...]
) -> tuple[list[str], list[tuple[tuple[int, ...], ...]]]:
    with OpClock(args[0].device, note_shapes=True) as clock:
        model(*args)
    return clock.names, clock.shapes


def _modules(model: nn.Module, args: tuple[torch.Tensor, ...], names: list[str]) -> list[str]:
    """Path of the module that runs each operation; all "" if the network runs other operations under hooks."""
    clock, stack, found, handles = OpClock(args[0].device), [""], list[str](), []

    def enter(path: str) -> None:
        found.extend([stack[-1]] * (len(clock.names) - len(found)))
        stack.append(path)

    def leave(*_: object) -> None:
        found.extend([stack[-1]] * (len(clock.names) - len(found)))
        stack.pop()

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: enter(path)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with clock:
            model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return found if clock.names == names else [""] * len(names)


def _time(
    networks: Sequence[nn.Module], args: tuple[torch.Tensor, ...], n_ops: int, seconds: float,
    rng: np.random.Generator, progress: bool,
) -> tuple[np.ndarray | None, np.ndarray, int]:
    """Medians: of every operation (n_ops, D), or ``None`` when the networks run different ones; of the whole (D,)."""
    device = args[0].device
    total: list[list[float]] = [[] for _ in networks]
    single: list[list[np.ndarray]] = [[] for _ in networks]
    deadline = time.perf_counter() + seconds
    rounds = 0
    with tqdm(desc="timing", total=ROUNDS[1], disable=not progress, leave=False) as bar:
        while rounds < ROUNDS[0] or (rounds < ROUNDS[1] and time.perf_counter() < deadline):
            for i in rng.permutation(len(networks)):
                net = networks[i]
                net(*args)  # bring weights and code into the caches
                total[i].append(forward_seconds(lambda net=net: net(*args), device))  # type: ignore[misc]
                with OpClock(device) as clock:
                    net(*args)
                single[i].append(clock.seconds())
            rounds += 1
            bar.update()
    whole = np.array([np.median(t) for t in total])
    if any(len(t) != n_ops for times in single for t in times):
        return None, whole, rounds
    return np.stack([np.median(times, axis=0) for times in single], axis=1), whole, rounds


def _calibrate(operations: np.ndarray, total: np.ndarray) -> tuple[float, float]:
    """``share`` in [0, 2] and ``overhead``: least squared relative error of ``share * operations + overhead``."""
    rows = np.column_stack([operations / total, 1 / total])
    found = scipy.optimize.lsq_linear(rows, np.ones(len(total)), bounds=([0.0, -np.inf], [2.0, np.inf]))
    return float(found.x[0]), float(found.x[1])
