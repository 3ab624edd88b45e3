"""A search over the widths of all layers whose oracle is the repaired network itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..costs import CostModel
from ..curvature import RefitCurve
from ..game import LabelledData
from ..graph import UnitGraph
from ..repair import CutNetwork, DenseRun, Sweep, fit_head
from ..surgery.verify import first_tensor

__all__ = ["RefitOracle", "UnitExchange", "WidthSearch", "divergence", "softened_divergence"]

#: Softens the logits that networks are compared by: the wrong classes' ranking counts, not only the winner.
TEMPERATURE = 4.0
#: Steps of the head's fit in the oracle; it is convex and starts at the refit's weights.
HEAD_STEPS = 15
#: The oracle's samples per batch, rows per column of a layer, and ridge (``None``: by cross-validation).
ORACLE_BATCH, ENOUGH, ORACLE_RIDGE = 2048, 16, None
#: Networks whose intermediate values the oracle keeps, if they take no more bytes than that.
REMEMBERED, MOST_MEMORY = 3, 2**29


def softened_divergence(dense: torch.Tensor, small: torch.Tensor, temperature: float = TEMPERATURE) -> float:
    """t^2 KL(dense || small) of the probabilities at temperature t, in nats, mean over samples."""
    p = torch.log_softmax(dense.double() / temperature, -1)
    q = torch.log_softmax(small.double() / temperature, -1)
    return temperature**2 * float((p.exp() * (p - q)).sum(-1).mean())


@torch.no_grad()
def divergence(dense: nn.Module, small: nn.Module, data: LabelledData) -> float:
    """:func:`softened_divergence` of two networks on ``data``."""
    total = 0.0
    for part in data.batches():
        total += len(part) * softened_divergence(first_tensor(dense(*part.inputs)), first_tensor(small(*part.inputs)))
    return total / len(data)


class RefitOracle:
    """How good a mask's network is on samples that its refit didn't see.

    With ``head``, the head is fitted too, and the geometric mean of cross-entropy and divergence from the dense network
    counts; else the divergence.  Before the head's fit, the divergence ranks networks of different emptied groups
    wrongly; after it, few samples decide the cross-entropy of a good network, and all of them the divergence.

    Two thirds of the data (drawn by ``seed``) fit, the last third (and ``unseen``, if given) judges: a wide layer
    before a classifier fits its own samples too well to be compared on them.  Every network takes over what comes
    before its first difference from one of the best networks so far.
    """

    def __init__(
        self, graph: UnitGraph, data: LabelledData, unseen: LabelledData | None, head: bool = False, seed: int = 0
    ) -> None:
        self.graph, self.head = graph, head
        first = max(1, 2 * len(data) // 3)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        rest = data.take(order[first:] if len(data) > 1 else order)
        if unseen is not None:
            inputs = tuple(torch.cat(pair) for pair in zip(rest.inputs, unseen.inputs, strict=True))
            rest = LabelledData(inputs, torch.cat([rest.targets, unseen.targets]))
        self.targets = rest.targets
        self.fit = DenseRun(graph, data.take(order[:first]), ORACLE_BATCH, enough=ENOUGH, judged=rest)
        self._best: list[tuple[float, int, Sweep]] = []
        self._calls = 0

    @torch.no_grad()
    def __call__(self, kept: np.ndarray) -> float:
        cut = CutNetwork(self.graph, kept)
        before = max((old for _, _, old in self._best), key=lambda old: old.shared(kept), default=None)
        sweep = Sweep(cut, self.fit, ORACLE_RIDGE, before, remember=True)
        sweep.run()
        loss = self._judged(cut, sweep)
        self._calls += 1
        if REMEMBERED * sweep.memory() <= MOST_MEMORY:
            self._best = sorted([*self._best, (loss, -self._calls, sweep)], key=lambda one: one[:2])[:REMEMBERED]
        return loss

    def _judged(self, cut: CutNetwork, sweep: Sweep) -> float:
        output = self.graph.program.captured.output
        layer = self.fit.layers.get(output.name)
        if self.head and layer is not None and layer.is_linear and self.fit.logits.ndim == 2:
            features = [env[layer.data] for env in sweep.envs]
            fitted = [x[:n] for x, n in zip(features, self.fit.fitted, strict=True)]
            fit_head(cut, self.fit, torch.cat(fitted), max_iter=HEAD_STEPS)
            judged = torch.cat([x[n:] for x, n in zip(features, self.fit.fitted, strict=True)])
            bias = None if layer.bias is None else cut.tensors[layer.bias]
            logits = F.linear(judged, cut.tensors[layer.weight], bias)
            apart = softened_divergence(self.fit.judged_logits, logits)
            return float(F.cross_entropy(logits.double(), self.targets) * apart) ** 0.5
        judged = torch.cat([env[output.name][n:] for env, n in zip(sweep.envs, self.fit.fitted, strict=True)])
        return softened_divergence(self.fit.judged_logits, judged)


class WidthSearch:
    """Exchanges between the widths of two groups, each judged by the oracle; masks come from the curves' orders.

    Args:
        limits: resource -> largest cost.
        allowed: per group the widths it may have, ascending.
        oracle: mask -> loss.
    """

    def __init__(
        self, curves: Sequence[RefitCurve], costs: CostModel, limits: dict[str, int],
        allowed: Sequence[np.ndarray],
        oracle: Callable[[np.ndarray], float], seed: int = 0,
    ) -> None:
        self.curves, self.costs, self.limits, self.allowed = curves, costs, limits, allowed
        self.oracle = oracle
        self.seen: dict[tuple[int, ...], float] = {}
        self._rng = np.random.default_rng(seed)

    def mask(self, counts: np.ndarray) -> np.ndarray:
        """Bool (n_units,): the units that stay longest in every curve."""
        return np.concatenate([curve.mask(int(k)) for curve, k in zip(self.curves, counts, strict=True)])

    def run(self, counts: np.ndarray, evaluations: int, goes_on: Callable[[], bool]) -> tuple[np.ndarray, float]:
        """The best widths found, and their loss; ends at a local optimum, after ``evaluations``, or when told to."""
        best = self.filled(np.array(counts, dtype=np.int64))
        start = tuple(int(k) for k in counts)
        loss = self._loss(best)
        if tuple(best) != start and self._loss(np.array(start)) < loss:
            best, loss = np.array(start), self._loss(np.array(start))
        coarse = True
        while len(self.seen) < evaluations and goes_on():
            improved = False
            for group in self._rng.permutation(len(best)) if coarse else ():
                trial = self._emptied(best, group)
                if trial is None or self._key(trial) in self.seen or len(self.seen) >= evaluations or not goes_on():
                    continue
                value = self._loss(trial)
                if value < loss:
                    best, loss, improved = trial, value, True
            pairs = [(a, b) for a in range(len(best)) for b in range(len(best)) if a != b]
            self._rng.shuffle(pairs)
            for a, b in pairs:
                while len(self.seen) < evaluations and goes_on():
                    trial = self._exchanged(best, a, b, coarse)
                    if trial is None or self._key(trial) in self.seen:
                        break
                    value = self._loss(trial)
                    if value >= loss:
                        break
                    best, loss, improved = trial, value, True  # and once more in the same direction
            if not improved:
                if not coarse:
                    break
                coarse = False
        return best, loss

    def finalists(self, most: int) -> list[tuple[np.ndarray, float]]:
        """The best widths seen for each choice of emptied groups, and their loss; the ``most`` best ones."""
        best: dict[tuple[bool, ...], tuple[np.ndarray, float]] = {}
        for key, loss in self.seen.items():
            empty = tuple(k == 0 for k in key)
            counts = np.array(key, dtype=np.int64)
            if self.fits(counts) and (empty not in best or loss < best[empty][1]):
                best[empty] = (counts, loss)
        return sorted(best.values(), key=lambda found: found[1])[:most]

    def judge(self, counts: np.ndarray) -> float:
        """The oracle's loss of these widths with what the limits still allow added."""
        return self._loss(self.filled(np.array(counts, dtype=np.int64)))

    def trimmed(self, empty: Collection[int]) -> np.ndarray | None:
        """Widths with nothing of the groups ``empty`` and something of the others, by the curves.

        From all units down, each time the step of least predicted loss per cost saved; ``None`` if nothing fits.
        """
        least = [widths[0] if g in empty else widths[widths > 0][0] for g, widths in enumerate(self.allowed)]
        counts = np.array([0 if g in empty else w[-1] for g, w in enumerate(self.allowed)], dtype=np.int64)
        while not self.fits(counts):
            options = []
            for g, curve in enumerate(self.curves):
                lower = self.allowed[g][(self.allowed[g] <= counts[g] - max(1, counts[g] // 24))]
                lower = lower[lower >= least[g]]
                if g in empty or len(lower) == 0:
                    continue
                fewer = counts.copy()
                fewer[g] = lower[-1]
                size = len(curve.order)
                loss = curve.error[size - fewer[g]] - curve.error[size - counts[g]]
                saved = sum(self.costs.cost(r, counts) - self.costs.cost(r, fewer)
                            for r, limit in self.limits.items() if self.costs.cost(r, counts) > limit)
                if saved > 0:
                    options.append((loss / saved, g, int(fewer[g])))
            if not options:
                return None
            _, g, width = min(options)
            counts[g] = width
        return counts

    def filled(self, counts: np.ndarray) -> np.ndarray:
        """The widths with what the limits still allow added, least predicted loss per cost first.

        Groups that were emptied stay empty.
        """
        counts = counts.copy()
        while True:
            options = []
            for g, curve in enumerate(self.curves):
                more = counts.copy()
                more[g] = self._next(g, counts[g])
                gone = counts[g] == 0 and self.allowed[g][0] == 0
                if not gone and more[g] > counts[g] and self.fits(more):
                    size = len(curve.order)
                    gain = curve.error[size - counts[g]] - curve.error[size - more[g]]
                    price = sum(self.costs.cost(r, more) - self.costs.cost(r, counts) for r in self.limits)
                    options.append((-gain / max(price, 1), g))
            if not options:
                return counts
            best = min(options)[1]
            counts[best] = self._next(best, counts[best])

    def fits(self, counts: np.ndarray) -> bool:
        """Whether the limits allow these widths."""
        return all(self.costs.cost(r, counts) <= limit for r, limit in self.limits.items())

    def _exchanged(self, counts: np.ndarray, a: int, b: int, coarse: bool) -> np.ndarray | None:
        """Fewer of group ``a``, as many more of ``b`` as that pays for."""
        wider = self._next(b, counts[b])
        lower = self.allowed[a][self.allowed[a] <= counts[a] - (max(1, round(counts[a] / 6)) if coarse else 1)]
        for width in lower[::-1] if wider > counts[b] else ():  # a head may take many channels to pay for
            grown = counts.copy()
            grown[a], grown[b] = width, wider
            if self.fits(grown):
                break
        else:
            return None
        while (wider := self._next(b, grown[b])) > grown[b]:
            last, grown[b] = grown[b], wider
            if not self.fits(grown):
                grown[b] = last
                break
        return self.filled(grown)

    def _emptied(self, counts: np.ndarray, group: int) -> np.ndarray | None:
        """Nothing of a group that may be emptied, and of the others what that pays for."""
        if counts[group] == 0 or self.allowed[group][0] > 0:
            return None
        trial = counts.copy()
        trial[group] = 0
        return self.filled(trial)

    def _next(self, group: int, count: int) -> int:
        """The next larger width that the group may have, or the present one if there is none."""
        return int(min(self.allowed[group][self.allowed[group] > count], default=count))

    @staticmethod
    def _key(counts: np.ndarray) -> tuple[int, ...]:
        return tuple(int(k) for k in counts)

    def _loss(self, counts: np.ndarray) -> float:
        key = self._key(counts)
        if key not in self.seen:
            self.seen[key] = self.oracle(self.mask(counts))
        return self.seen[key]


class UnitExchange:
    """Random exchanges of single units, and of a few units of one group for those of another, judged by the oracle.

    The curves' order around the dense network says little about which units a network of a tenth of its size should
    have; this search starts from any mask and moves off that order.  A local search: no bound, and never worse than
    its start by the oracle.

    Args:
        widths: curves, limits, allowed widths and the oracle.
        pinned: bool (n_units,), units that stay.
        alike: groups (projected streams) of which only the number of units counts.
    """

    def __init__(
        self, widths: WidthSearch, pinned: np.ndarray, seed: int = 0, alike: Collection[int] = ()
    ) -> None:
        self.widths, self.pinned, self.alike = widths, pinned, set(alike)
        self._rng = np.random.default_rng(seed)
        sizes = [len(curve.order) for curve in widths.curves]
        self._units = [np.arange(end - n, end) for n, end in zip(sizes, np.cumsum(sizes), strict=True)]
        self._rank = np.concatenate([np.argsort(curve.order) for curve in widths.curves])  # high: stays long

    def run(
        self, kept: np.ndarray, loss: float, evaluations: int, goes_on: Callable[[], bool] = lambda: True
    ) -> tuple[np.ndarray, float]:
        """The best mask found and its loss, from ``kept`` of this ``loss``, after so many networks or when told to."""
        seen = {kept.tobytes()}
        spent = 0
        for _ in range(20 * evaluations):  # moves that don't fit or were tried before cost nothing
            if spent == evaluations or not goes_on():
                break
            trial = self._moved(kept)
            if trial is None or trial.tobytes() in seen:
                continue
            seen.add(trial.tobytes())
            spent += 1
            value = self.widths.oracle(trial)
            if value < loss:
                kept, loss = trial, value
        return kept, loss

    def _moved(self, kept: np.ndarray) -> np.ndarray | None:
        a, b = self._rng.integers(len(self._units), size=2)
        if a == b and int(a) in self.alike:
            return None
        out = [u for u in self._by_rank(a) if kept[u] and not self.pinned[u]]
        back = [u for u in self._by_rank(b)[::-1] if not kept[u]]
        if not out or not back:
            return None
        trial = kept.copy()
        if a == b:
            trial[self._rng.choice(out[: max(1, 2 * len(out) // 3)])] = False
            trial[self._rng.choice(back[: max(3, len(back) // 3)])] = True
            return trial
        trial[out[: self._rng.integers(1, len(out) // 4 + 2)]] = False
        counts = self._counts(trial)
        counts[b] = self._widest(counts, b)
        if counts[b] == kept[self._units[b]].sum():
            return None
        counts = self.widths.filled(counts)
        if any(k not in allowed for k, allowed in zip(counts, self.widths.allowed, strict=True)):
            return None
        for group, count in enumerate(counts):
            off = [u for u in self._by_rank(group)[::-1] if not trial[u]]
            trial[off[: count - trial[self._units[group]].sum()]] = True
        return trial

    def _by_rank(self, group: int) -> np.ndarray:
        """Units of a group, those that leave first by the curve first."""
        units = self._units[group]
        return units[np.argsort(self._rank[units])]

    def _counts(self, kept: np.ndarray) -> np.ndarray:
        return np.array([int(kept[units].sum()) for units in self._units], dtype=np.int64)

    def _widest(self, counts: np.ndarray, group: int) -> int:
        """The largest width of one group that the limits allow beside the others'."""
        width, trial = int(counts[group]), counts.copy()
        for wider in self.widths.allowed[group][self.widths.allowed[group] > width]:
            trial[group] = wider
            if not self.widths.fits(trial):
                break
            width = int(wider)
        return width
