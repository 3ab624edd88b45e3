"""``prune`` with refits: selection, width search, repairs, certificate, diagnosis and fine-tuning."""

from __future__ import annotations

import copy
import itertools
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

import mipprune as mp
from mipprune.costs import CostModel
from mipprune.curvature import RefitCurve, refit_curves
from mipprune.demo import train
from mipprune.errors import BudgetError, ConfigError, DataError, InfeasibleError
from mipprune.game import as_data
from mipprune.pruning import delivery, refit_search
from mipprune.pruning.certificate import certify_accuracy, clopper_pearson_upper
from mipprune.pruning.diagnosis import diagnose
from mipprune.pruning.multiples import least_counts
from mipprune.pruning.oracle import Losses, RefitOracle
from mipprune.pruning.unit_exchange import UnitExchange
from mipprune.pruning.widths import WidthSearch
from mipprune.repair import CutNetwork, DenseRun, Sweep, refit_cut
from mipprune.train import fine_tune


@pytest.fixture(scope="module")
def mlp(digits_flat: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    return train(model, *digits_flat.train, epochs=12)


@pytest.fixture(scope="module")
def pruned(mlp: nn.Module, digits_flat: Any) -> mp.PruneResult:
    return mp.prune(mlp, digits_flat.train, budget=mp.Macs(0.25), holdout=digits_flat.test,
                    validation=digits_flat.calibration, progress=False)


def test_the_default_road_refits_and_uses_the_budget(pruned: mp.PruneResult, mlp: nn.Module, digits_flat: Any) -> None:
    report = pruned.report
    assert report.surrogate == "refit"
    assert 0.24 <= report.ratio("macs") <= 0.25
    assert report.solution.bound <= report.solution.objective
    assert (report.stages[-1].kept == pruned.kept).all()
    plain = mp.prune(mlp, digits_flat.train, budget=mp.Macs(0.25), holdout=digits_flat.test, repair=(), progress=False)
    assert plain.report.surrogate == "joint"
    assert report.pruned.accuracy > plain.report.pruned.accuracy
    assert report.pruned.accuracy > report.baseline.accuracy - 0.01


def test_repairs_are_reported_apart(pruned: mp.PruneResult) -> None:
    steps = pruned.report.repairs
    assert [step.name for step in steps] == ["cut", "refit", "head"]  # there is no batch-norm
    taken = [step.loss for step in steps if step.taken]
    assert taken == sorted(taken, reverse=True)
    for step in steps:
        assert f"{step.name}: loss {step.loss:.4f}" in str(pruned)
    assert type(pruned.report).from_dict(pruned.report.to_dict()) == pruned.report


def test_a_repair_that_harms_is_not_taken(mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(cut: Any, dense: Any) -> bool:
        for tensor in cut.tensors.values():
            tensor.mul_(-1)
        return True

    monkeypatch.setattr("mipprune.pruning.repairing.refit_head", spoil)
    result = mp.prune(mlp, digits_flat.train, budget=mp.Macs(0.5), holdout=digits_flat.test, progress=False)
    assert not result.report.repairs[-1].taken
    assert result.report.repair == ("refit",)
    assert result.report.pruned.accuracy > 0.85
    assert "not taken" in str(result)


def toy_curves(n: int) -> tuple[list[RefitCurve], CostModel]:
    error = np.arange(n + 1, dtype=float) ** 2
    curve = RefitCurve(np.arange(n), error, np.zeros(n + 1))
    model = nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 2))
    graph = mp.trace(model, torch.zeros(1, 3))
    return [curve, curve], graph.costs


def widths_from(curves: list[RefitCurve], *fewest: int) -> list[np.ndarray]:
    return [np.arange(least, len(curve.order) + 1) for curve, least in zip(curves, fewest, strict=True)]


def test_width_search_finds_the_best_widths_and_counts_its_evaluations() -> None:
    curves, costs = toy_curves(8)
    limit = costs.cost("macs", np.array([5, 5]))

    def oracle(kept: np.ndarray) -> float:
        counts = costs.counts(kept)
        return -float(3 * min(counts[0], 2) + counts[1])

    best = min(
        -float(3 * min(a, 2) + b) for a in range(1, 9) for b in range(1, 9)
        if costs.cost("macs", np.array([a, b])) <= limit
    )
    widths = WidthSearch(curves, costs, {"macs": limit}, widths_from(curves, 1, 1), oracle)
    counts, loss = widths.run(np.array([5, 5]), 100, lambda: True)
    assert loss == best == oracle(widths.mask(counts))
    assert costs.cost("macs", counts) <= limit
    few = WidthSearch(curves, costs, {"macs": limit}, widths_from(curves, 4, 1), oracle)
    counts, _ = few.run(np.array([5, 5]), 3, lambda: True)
    assert len(few.seen) <= 3
    assert counts[0] >= 4


def test_width_search_empties_a_group_where_no_step_leads_there() -> None:
    curves, costs = toy_curves(8)
    limit = costs.cost("macs", np.array([5, 5]))

    def oracle(kept: np.ndarray) -> float:
        counts = costs.counts(kept)
        return -100.0 if counts[0] == 0 else -float(9 * counts[0] + counts[1])

    widths = WidthSearch(curves, costs, {"macs": limit}, widths_from(curves, 0, 1), oracle)
    counts, loss = widths.run(np.array([5, 5]), 40, lambda: True)
    assert loss == -100
    assert counts.tolist() == [0, 8]  # what emptying saved went to the other group, none of it back
    found = widths.finalists(2)
    assert [bool(counts[0] == 0) for counts, _ in found] == [True, False]
    assert all(costs.cost("macs", counts) <= limit and oracle(widths.mask(counts)) == value for counts, value in found)
    assert found[1][1] == min(value for key, value in widths.seen.items() if key[0] > 0)
    never = WidthSearch(curves, costs, {"macs": limit}, widths_from(curves, 1, 1), oracle)
    assert never.run(np.array([5, 5]), 40, lambda: True)[0][0] > 0


def test_the_search_starts_at_the_best_of_its_starts() -> None:
    curves, costs = toy_curves(8)
    widths = WidthSearch(
        curves, costs, {"macs": costs.cost("macs", np.array([5, 5]))}, widths_from(curves, 1, 1),
        lambda kept: abs(float(costs.counts(kept)[0]) - 3),
    )
    for start in ([5, 5], [2, 8], [4, 6]):
        widths.judge(np.array(start))
    assert widths.finalists(1)[0][0].tolist() == [3, 8]  # [2, 8] with what was left added


def test_leftover_budget_is_filled_up() -> None:
    curves, costs = toy_curves(8)
    limit = costs.cost("macs", np.array([6, 5]))
    widths = WidthSearch(curves, costs, {"macs": limit}, widths_from(curves, 1, 1), lambda kept: 0.0)
    filled = widths.filled(np.array([2, 2]))
    assert costs.cost("macs", filled) <= limit
    assert all(costs.cost("macs", filled + step) > limit for step in np.eye(2, dtype=int))


def test_widths_that_are_not_allowed_are_not_tried() -> None:
    curves, costs = toy_curves(8)
    limit = costs.cost("macs", np.array([6, 5]))
    allowed = [np.array([2, 4, 6, 8]), np.array([3, 6, 8])]
    seen = []
    widths = WidthSearch(curves, costs, {"macs": limit}, allowed, lambda kept: seen.append(costs.counts(kept)) or 0.0)
    counts, _ = widths.run(np.array([2, 3]), 30, lambda: True)
    assert len(seen) > 3
    assert all(a in allowed[0] and b in allowed[1] and costs.cost("macs", np.array([a, b])) <= limit for a, b in seen)
    assert all(counts == widths.filled(counts))


def test_exchanges_find_units_that_the_curves_order_hides() -> None:
    curves, costs = toy_curves(8)
    limit = costs.cost("macs", np.array([4, 4]))
    worth = np.random.default_rng(0).permutation(16).astype(float)  # nothing to do with the curves
    pinned = np.zeros(16, dtype=bool)
    pinned[int(np.argmin(worth))] = True
    seen: list[np.ndarray] = []

    def oracle(kept: np.ndarray) -> float:
        seen.append(costs.counts(kept))
        assert kept[pinned].all()
        return -float(worth[kept].sum())

    widths = WidthSearch(curves, costs, {"macs": limit}, widths_from(curves, 2, 3), oracle)
    start = widths.mask(np.array([4, 4])) | pinned
    start[np.flatnonzero(start & ~pinned)[: start.sum() - 8]] = False
    path = UnitExchange(widths, pinned, seed=1).run(start, 200)
    assert 3 < len(seen) <= 201
    loss = oracle(path[-1])
    assert loss < oracle(start) - 10
    assert all(oracle(a) > oracle(b) for a, b in itertools.pairwise([start, *path]))
    assert all(a >= 2 and b >= 3 and costs.cost("macs", np.array([a, b])) <= limit for a, b in seen)
    best = max(worth[:8][np.argsort(worth[:8])[-a:]].sum() + worth[8:][np.argsort(worth[8:])[-b:]].sum()
               for a in range(2, 9) for b in range(3, 9) if costs.cost("macs", np.array([a, b])) <= limit)
    assert -loss >= 0.8 * best  # a local optimum
    same = UnitExchange(widths, pinned, seed=1).run(start, 200)
    assert (same[-1] == path[-1]).all()
    assert UnitExchange(widths, pinned).run(start, 50, lambda: False) == []
    early = UnitExchange(widths, pinned, seed=1).run(start, 200, enough=oracle(start) - 5)
    assert [(a == b).all() for a, b in zip(early, path, strict=False)] == [True] * len(early)
    assert oracle(early[-1]) <= oracle(start) - 5 < oracle([start, *early][-2])


@pytest.mark.parametrize("keep_empty", [False, True])
def test_exchanges_can_leave_empty_groups_alone(keep_empty: bool) -> None:
    curves, costs = toy_curves(8)
    limit = costs.cost("macs", np.array([2, 2]))
    seen: list[np.ndarray] = []

    def oracle(kept: np.ndarray) -> float:
        seen.append(costs.counts(kept))
        return float(-len(seen))  # every move is taken

    widths = WidthSearch(curves, costs, {"macs": limit}, widths_from(curves, 0, 0), oracle)
    start = widths.mask(np.array([2, 2]))
    UnitExchange(widths, np.zeros(16, dtype=bool), keep_empty=keep_empty).run(start, 60)
    assert (np.array(seen) == 0).any() != keep_empty


def test_exchanges_keep_to_allowed_widths() -> None:
    curves, costs = toy_curves(8)
    limit = costs.cost("macs", np.array([6, 6]))
    allowed = [np.array([2, 4, 6, 8]), np.array([2, 4, 6, 8])]
    seen: list[np.ndarray] = []
    widths = WidthSearch(curves, costs, {"macs": limit}, allowed, lambda kept: seen.append(costs.counts(kept)) or 0.0)
    UnitExchange(widths, np.zeros(16, dtype=bool)).run(widths.mask(np.array([6, 6])), 40)
    assert len(seen) > 3
    assert all((counts % 2 == 0).all() for counts in seen)


def test_an_empty_branch_is_refitted_to_a_constant() -> None:
    torch.manual_seed(0)

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 6)
            self.last = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            return self.last(x + self.down(self.up(x).relu()))

    model, x = Branch().eval(), torch.randn(50, 5)
    graph = mp.trace(model, x[:1])
    data = as_data((x, torch.zeros(50, dtype=torch.int64)), graph)
    group = next(g for g in graph.groups if g.name == "up")
    kept = np.ones(graph.n_units, dtype=bool)
    kept[group.units] = False
    cut = CutNetwork(graph, kept)
    refit_cut(cut, DenseRun(graph, data))
    stream = model.first(x).relu()
    mean = model.down(model.up(stream).relu()).mean(0)
    expected = stream + mean  # the best that is left of the branch
    bias = next(t for node, t in cut.tensors.items() if node.endswith("down_bias"))
    torch.testing.assert_close(bias, mean.detach(), atol=1e-5, rtol=1e-5)
    dense = model.last(stream + model.down(model.up(stream).relu()))
    assert (cut.run((x,)) - dense).square().mean() <= (model.last(expected) - dense).square().mean() + 1e-6
    curve = refit_curves(graph, data)[graph.groups.index(group)]
    assert len(curve.error) == group.size + 1
    assert curve.error[-1] >= curve.error[-2] > 0


def test_the_oracle_judges_on_what_the_refit_did_not_see(mlp: nn.Module, digits_flat: Any) -> None:
    graph = mp.trace(mlp, digits_flat.train[0][:1])
    data = as_data(digits_flat.train, graph)
    oracle = RefitOracle(graph, data, as_data(digits_flat.calibration, graph))
    assert len(oracle.fit.data) + len(oracle.fit.judged_logits) == len(data) + len(digits_flat.calibration[1])
    kept = np.ones(graph.n_units, dtype=bool)
    assert oracle(kept) == pytest.approx(0, abs=1e-6)
    kept[:12] = False
    assert oracle(kept) > 0.01
    fitted = RefitOracle(graph, data, None, head=True, labels=True)
    assert fitted(kept) == fitted(kept) > 0  # of labels and dense logits, after the head's fit
    assert fitted(np.ones(graph.n_units, dtype=bool)) < fitted(kept)


@pytest.mark.parametrize("head", [False, True])
def test_what_a_network_takes_over_from_another_changes_nothing(head: bool) -> None:
    torch.manual_seed(0)
    model, x = TinyResNet().eval(), torch.randn(60, 1, 6, 6)
    graph = mp.allow_empty(mp.trace(model, x[:1]), x[:1])
    data = as_data((x, torch.randint(0, 3, (60,))), graph)
    oracle = RefitOracle(graph, data, None, head, labels=head)
    rng = np.random.default_rng(1)
    kept = np.ones(graph.n_units, dtype=bool)
    taken = 0
    for _ in range(20):
        group = graph.groups[rng.integers(len(graph.groups))]
        kept = kept.copy()
        kept[group.offset + rng.integers(1, group.size)] ^= True
        if rng.random() < 0.2 and least_counts(graph, 1)[graph.groups.index(group)] == 0:
            kept[group.units] = False
        taken += Sweep(CutNetwork(graph, kept), oracle.fit, before=[old for _, _, old in oracle._best]).start > 0
        assert oracle(kept) == RefitOracle(graph, data, None, head, labels=head)(kept)
    assert taken >= 2


class TinyResNet(nn.Module):
    """A stem, a residual branch that may be emptied, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(1, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.a, self.na = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.b, self.nb = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.n0(self.stem(x)).relu()
        x = (self.nb(self.b(self.na(self.a(x)).relu())) + x).relu()
        return self.fc(x.mean((2, 3)))


def test_interrupted_while_searching_widths(mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(refit_search, "RefitOracle", stop)
    result = mp.prune(mlp, digits_flat.train, budget=mp.Macs(0.5), holdout=digits_flat.test, progress=False)
    assert result.solution.termination == "interrupted"
    assert result.report.ratio("macs") <= 0.5
    assert threading.active_count() < 20


def test_an_interrupt_keeps_the_best_network_that_was_tried(
    mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"budget": mp.Macs(0.3), "holdout": digits_flat.test, "progress": False}
    seen: list[np.ndarray] = []

    def losses(self: RefitOracle, kept: np.ndarray) -> Losses:
        if all((kept != old).any() for old in seen):
            seen.append(kept.copy())  # every further network is better
            if len(seen) == 6:
                signal.raise_signal(signal.SIGINT)
        return Losses(1 / (1 + [(kept == old).all() for old in seen].index(True)), 1.0)

    monkeypatch.setattr(RefitOracle, "losses", losses)
    handler = signal.getsignal(signal.SIGINT)
    result = mp.prune(mlp, digits_flat.train, **options)
    assert result.solution.termination == "interrupted"
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(seen) == 6
    assert (result.kept == seen[-1]).all()


def test_interrupted_while_the_report_is_made(
    mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refit_search, "FEWEST_TRIALS", 3)
    monkeypatch.setattr(refit_search, "MOST_TRIALS", 3)
    diagnose, times = delivery.diagnose, 1

    def interrupt(*arguments: Any) -> Any:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return diagnose(*arguments)

    monkeypatch.setattr(delivery, "diagnose", interrupt)
    options = {"budget": mp.Macs(0.5), "holdout": digits_flat.test, "progress": False}
    handler = signal.getsignal(signal.SIGINT)
    result = mp.prune(mlp, digits_flat.train, **options)
    assert result.report.ratio("macs") <= 0.5  # finished before: not lost
    assert signal.getsignal(signal.SIGINT) is handler
    times = 2
    with pytest.raises(KeyboardInterrupt):
        mp.prune(mlp, digits_flat.train, **options)
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("seed", ["a", 1.5, -1, True, None])
def test_seeds_that_are_no_numbers_are_refused(seed: Any, mlp: nn.Module, digits_flat: Any) -> None:
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        mp.prune(mlp, digits_flat.train, budget=mp.Macs(0.5), seed=seed)


@pytest.mark.parametrize("k", [0, 1, 7, 50])
def test_clopper_pearson_is_exact(k: int) -> None:
    bound = clopper_pearson_upper(k, 50, 0.95)
    if k < 50:
        assert binom.cdf(k, 50, bound) == pytest.approx(0.05)
    else:
        assert bound == 1
    with pytest.raises(DataError):
        clopper_pearson_upper(3, 2, 0.95)
    with pytest.raises(DataError):
        clopper_pearson_upper(1, 2, 1.0)


def test_certificates_cover_at_the_stated_rate() -> None:
    rng = np.random.default_rng(0)
    for p in (0.01, 0.05, 0.3):
        missed = np.mean([clopper_pearson_upper(int(k), 200, 0.9) < p for k in rng.binomial(200, p, 2000)])
        assert missed <= 0.1 + 0.02


def test_certificate_counts(mlp: nn.Module, digits_flat: Any) -> None:
    graph = mp.trace(mlp, digits_flat.train[0][:1])
    data = as_data(digits_flat.test, graph)
    other = copy.deepcopy(mlp)
    with torch.no_grad():
        other[-1].bias[3] += 5
        a, b = mlp(data.inputs[0]).argmax(1), other(data.inputs[0]).argmax(1)
    found = certify_accuracy(mlp, other, data, 0.9)
    assert found.disagreements == int((a != b).sum())
    assert found.lost == int(((a == data.targets) & (b != data.targets)).sum()) > 0
    assert found.drop_bound == clopper_pearson_upper(found.lost, len(data), 0.9)
    assert found.at(0.99).drop_bound > found.drop_bound


def test_accuracy_drop_goes_down_the_ladder(mlp: nn.Module, digits_flat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_search, "FEWEST_TRIALS", 3)
    monkeypatch.setattr(refit_search, "MOST_TRIALS", 3)
    drop = mp.AccuracyDrop(0.05, confidence=0.9)
    result = mp.prune(mlp, digits_flat.train, holdout=digits_flat.test, tolerance=drop, minimize="macs", progress=False)
    certificate = result.report.certificate
    assert certificate.confidence == 0.9
    assert certificate.drop_bound <= 0.05
    assert result.report.ratio("macs") <= 0.8
    assert "90% confidence" in str(result)
    with pytest.raises(InfeasibleError, match="certified") as caught:
        mp.prune(mlp, digits_flat.train, holdout=digits_flat.test, tolerance=mp.AccuracyDrop(1e-4), progress=False)
    assert caught.value.nearest > 1e-4
    with pytest.raises(BudgetError):
        mp.AccuracyDrop(0.0)
    with pytest.raises(BudgetError):
        mp.prune(mlp, digits_flat.train, budget=mp.Macs(0.5), tolerance=drop)


def test_diagnosis_names_the_layer_that_loses(mlp: nn.Module, digits_flat: Any) -> None:
    graph = mp.trace(mlp, digits_flat.train[0][:1])
    data = as_data(digits_flat.test, graph).take(slice(0, 500))
    kept = np.ones(graph.n_units, dtype=bool)
    kept[1:24] = False
    found = diagnose(graph, kept, data)
    assert found.accuracy[1] == pytest.approx(float((mlp(data.inputs[0]).argmax(1) == data.targets).double().mean()))
    assert found.accuracy[0] < 0.5
    assert str(found).startswith("most is lost in 0 alone")


def test_batch_norm_shifts_are_told(digits: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                          nn.Linear(64, 10))
    x, y = (tensor[:500] for tensor in digits.test)
    model.train()(x)
    model[3].momentum = 1.0
    model(x)
    model.eval()
    graph = mp.trace(model, x[:1])
    data = as_data((x, y), graph)
    kept = np.ones(graph.n_units, dtype=bool)
    assert diagnose(graph, kept, data).shifts[0] == pytest.approx(0, abs=1e-4)
    kept[:3] = False
    found = diagnose(graph, kept, data)
    with torch.no_grad():
        hidden = model[1](model[0](x))
        hidden[:, :3] = 0
        z = (model[2](hidden).mean((0, 2, 3)) - model[3].running_mean) / (model[3].running_var + 1e-5).sqrt()
    assert found.norms == ("3",)
    assert found.shifts[0] == pytest.approx(float(z.square().mean().sqrt()), rel=1e-3)


def test_fine_tuning_keeps_the_best_checkpoint(pruned: mp.PruneResult, mlp: nn.Module, digits_flat: Any) -> None:
    before = copy.deepcopy(pruned.model.state_dict())
    options = {"validation": digits_flat.calibration, "epochs": 2, "progress": False}
    tuned = fine_tune(pruned.model, digits_flat.train, teacher=mlp, **options)
    assert len(tuned.losses) == 3
    assert tuned.losses[tuned.best_epoch] == min(tuned.losses)
    x, y = digits_flat.calibration
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(tuned.model(x), y))
    assert loss == pytest.approx(min(tuned.losses), abs=1e-5)
    assert all(torch.equal(before[k], v) for k, v in pruned.model.state_dict().items())
    wild = fine_tune(pruned.model, digits_flat.train, lr=50.0, **options)
    assert wild.best_epoch == 0
    assert all(torch.equal(before[k], v) for k, v in wild.model.state_dict().items())
    with pytest.raises(ConfigError):
        fine_tune(pruned.model, digits_flat.train, validation=digits_flat.calibration, epochs=0)
