"""Tracing: the right units, exact costs, and masks that agree with a reference that knows nothing of the tracer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mipprune as mp
from mipprune.errors import ModelStateError, TraceError, UnknownLayerError
from mipprune.surgery import PrunePlan
from mipprune.testing.cases import NETWORKS, NetworkCase, Residual
from mipprune.testing.masking import masked_model

cases = pytest.mark.parametrize("case", NETWORKS, ids=lambda c: c.name)


def masks(n: int, count: int, sizes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Random masks that keep at least one unit per group."""
    rng = np.random.default_rng(seed)
    kept = rng.random((count, n)) < rng.uniform(0.2, 0.9, (count, 1))
    starts = np.cumsum(sizes) - sizes
    kept[:, starts + rng.integers(0, sizes, (count, len(sizes)))[0]] = True
    return kept


@cases
def test_finds_the_groups(case: NetworkCase) -> None:
    graph = mp.trace(case.build(), case.inputs(1))
    assert tuple(g.size for g in graph.groups) == case.groups
    assert [g.offset for g in graph.groups] == np.cumsum([0, *case.groups[:-1]]).tolist()


@cases
def test_tracing_changes_nothing(case: NetworkCase) -> None:
    model = case.build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    mp.trace(model, case.inputs(2))
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@cases
def test_program_runs_the_network(case: NetworkCase) -> None:
    model, x = case.build().double(), case.inputs().double()
    graph = mp.trace(model, x)
    assert torch.equal(graph.program.run([x]), model(x))


@cases
def test_gates_agree_with_the_masked_reference(case: NetworkCase) -> None:
    model, x = case.build().double(), case.inputs().double()
    graph = mp.trace(model, x)
    for kept in masks(graph.n_units, 5, graph.costs.sizes):
        out = graph.program.run([x], torch.from_numpy(kept).double())
        torch.testing.assert_close(out, masked_model(graph, kept)(x), rtol=0, atol=1e-12)


@cases
def test_prefix_agrees_with_the_whole_run(case: NetworkCase) -> None:
    model, x = case.build().double(), case.inputs().double()
    graph = mp.trace(model, x)
    rng = np.random.default_rng(1)
    for group in graph.groups:
        for base in (None, rng.random(graph.n_units) < 0.7):
            own = rng.random((4, group.size)) < 0.5
            out = graph.program.prefix([x], group.units, base).run(torch.from_numpy(own).double())
            for row, coalition in zip(out, own, strict=True):
                kept = np.ones(graph.n_units, dtype=bool) if base is None else base.copy()
                kept[group.units] = coalition
                torch.testing.assert_close(row, masked_model(graph, kept)(x), rtol=0, atol=1e-12)


def counted(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """MACs and parameters as torch's own counter sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x[:1])
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


@cases
def test_costs_are_exact(case: NetworkCase) -> None:
    model, x = case.build(), case.inputs()
    graph = mp.trace(model, x)
    assert (graph.macs(), graph.params()) == counted(model, x)
    for kept in masks(graph.n_units, 6, graph.costs.sizes):
        small = PrunePlan.from_mask(graph, kept).apply(model)
        assert (graph.macs(kept), graph.params(kept)) == counted(small, x)


@cases
def test_marginal_cost_is_the_difference(case: NetworkCase) -> None:
    graph = mp.trace(case.build(), case.inputs())
    counts = graph.costs.sizes
    for resource in ("units", "params", "macs"):
        cost = graph.costs[resource]
        for g in range(len(counts)):
            fewer = counts - (np.arange(len(counts)) == g)
            assert cost(counts) - cost(fewer) == cost.marginal(counts)[g]


def test_residual_stream_is_one_group() -> None:
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), Residual(6, 6), nn.Conv2d(6, 2, 1)).eval()
    graph = mp.trace(model, torch.randn(1, 1, 5, 5))
    assert graph.groups[0].producers == ("0", "1.conv2")
    assert graph.groups[0].consumers == ("1.conv1", "2")
    assert graph.group("1.conv2") is graph.groups[0]
    assert ("0", "1.conv1") in graph.coupling.edges


class Oddities(nn.Module):
    def __init__(self, forward: object) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.run = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self, x)  # type: ignore[operator]


def traced(forward: object) -> mp.UnitGraph:
    return mp.trace(Oddities(forward).eval(), torch.randn(2, 4))


def test_unknown_op_names_module_op_and_line() -> None:
    class Odd(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](torch.erfinv(self[0](x)))

    model = nn.Sequential(nn.Linear(4, 4), Odd(nn.Linear(4, 6), nn.Linear(6, 3))).eval()
    with pytest.raises(TraceError, match=r"module '1' \(Odd\), op aten\.erfinv.*test_graph\.py.*erfinv") as error:
        mp.trace(model, torch.randn(2, 4))
    assert "register_rule" in str(error.value)


def test_a_rule_can_be_added() -> None:
    from mipprune.graph import Context, Value, register_rule
    from mipprune.graph.registry import RULES

    @register_rule("aten.erfinv.default")
    def keep(context: Context, x: Value) -> torch.Tensor:
        context.pin(x.labels, "inverse error function")
        return torch.zeros_like(x.labels)

    try:
        graph = traced(lambda m, x: m.fc2(torch.erfinv(m.fc1(x))))
        assert not graph.groups
        assert "inverse error function" in graph.pinned[0].reason
    finally:
        del RULES["aten.erfinv.default"]


def test_control_flow_is_a_clear_error() -> None:
    with pytest.raises(TraceError, match="control flow"):
        traced(lambda m, x: m.fc2(m.fc1(x)) if x.sum() > 0 else m.fc2(torch.relu(m.fc1(x))))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y if y.mean() > 0 else -y


def test_control_flow_is_found() -> None:
    """Module path, class, file and code line, also of a module inside others."""
    model = nn.Sequential(nn.Linear(4, 4), Branching()).eval()
    with pytest.raises(TraceError, match=r"in module '1' \(Branching\), at File .*test_graph\.py.*y\.mean\(\) > 0"):
        mp.trace(model, torch.randn(1, 4))


def test_an_unknown_operation_of_the_model_itself_needs_a_module() -> None:
    with pytest.raises(TraceError, match=r"module of its own.*ignore=\['odd'\]"):
        traced(lambda m, x: m.fc2(torch.fft.fft(m.fc1(x)).real))


def test_hard_coded_batch_is_a_clear_error() -> None:
    with pytest.raises(TraceError, match="batch size is hard-coded"):
        traced(lambda m, x: m.fc2(m.fc1(x.view(2, 4))))
    with pytest.raises(TraceError, match=r"(?s)hard-coded.*on one sample, not on two.*test_graph\.py.*view\(1, 4\)"):
        traced(lambda m, x: m.fc2(m.fc1(x.view(1, 4))))


def test_literal_reshape_pins_with_the_reason() -> None:
    graph = traced(lambda m, x: m.fc2(m.fc1(x).view(-1, 2, 3).flatten(1)))
    assert not graph.groups
    assert "literal size" in graph.pinned[0].reason
    with pytest.raises(UnknownLayerError, match="literal size"):
        graph.group("fc1")


def test_sizes_taken_from_the_tensor_dont_pin() -> None:
    assert traced(lambda m, x: m.fc2(m.fc1(x).view(x.size(0), -1))).groups[0].size == 6


def test_training_mode_dropout_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    with pytest.raises(ModelStateError, match=r"module '1' \(Dropout\).*eval"):
        mp.trace(model, torch.randn(2, 4))


def test_training_mode_batch_norm_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.raises(ModelStateError, match=r"module '1'.*eval"):
        mp.trace(model, torch.randn(2, 4))


def test_functional_dropout_left_on_is_refused() -> None:
    with pytest.raises(ModelStateError, match="random"):
        traced(lambda m, x: m.fc2(F.dropout(m.fc1(x), 0.5)))


def test_functional_batch_norm_by_batch_statistics_is_refused() -> None:
    with pytest.raises(ModelStateError, match="statistics of the batch"):
        traced(lambda m, x: m.fc2(F.batch_norm(m.fc1(x), None, None, training=True)))
    mean, var = torch.zeros(6), torch.ones(6)
    with pytest.raises((ModelStateError, TraceError)):
        traced(lambda m, x: m.fc2(F.batch_norm(m.fc1(x), mean, var, training=True)))


def test_nan_weights_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(ModelStateError, match=r"'2\.weight'"):
        mp.trace(model, torch.randn(2, 4))


def test_wrong_layer_name_suggests_the_right_one() -> None:
    graph = mp.trace(NETWORKS[3].build(), NETWORKS[3].inputs())
    with pytest.raises(UnknownLayerError, match=r"did you mean .*'block1\.conv1'"):
        graph.group("block1.conv")
    with pytest.raises(UnknownLayerError, match="network's output"):
        graph.group("fc")


def test_in_place_write_to_a_viewed_tensor() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = m.fc1(x)
        view = h.view(x.size(0), 6)
        h.relu_()
        return m.fc2(view)

    with pytest.raises(TraceError, match="in place"):
        traced(forward)


def test_in_place_write_is_seen_by_later_readers() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        h = m.fc1(x)
        h.relu_()
        return m.fc2(h) + m.fc2(h * 2)

    model = Oddities(forward).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(mp.trace(model, x).program.run([x]), model(x))


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(TraceError, match=r"doesn't run on inputs of shape \(2, 5\)"):
        mp.trace(Oddities(lambda m, x: m.fc2(m.fc1(x))).eval(), torch.randn(1, 5))


@pytest.mark.parametrize("example", [torch.randn(0, 4), "x", ()], ids=["empty", "text", "nothing"])
def test_bad_example_input(example: object) -> None:
    with pytest.raises(mp.errors.DataError, match="example_input"):
        mp.trace(Oddities(lambda m, x: m.fc2(m.fc1(x))).eval(), example)  # type: ignore[arg-type]
