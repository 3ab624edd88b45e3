"""Every architecture passes the same checks: units, identity, dead units, mask = surgery, exact costs, files."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.surgery import PrunePlan, load, save
from mipprune.surgery.verify import first_tensor
from mipprune.testing.architectures import ARCHITECTURES, HUGGING_FACE
from mipprune.testing.cases import NetworkCase
from mipprune.testing.counting import counted_costs
from mipprune.testing.masking import kill_units

from .test_graph import masks

DENSITIES = (0.25, 0.5, 0.8)


class Traced(NamedTuple):
    model: nn.Module
    x: torch.Tensor
    graph: mp.UnitGraph
    seconds: float


@functools.cache
def traced(case: NetworkCase) -> Traced:
    """The case in float64, traced once for all tests; CPU seconds of tracing."""
    if case in HUGGING_FACE:
        pytest.importorskip("transformers")
    model, x = case.build().double(), case.inputs(5)
    x = x.double() if x.is_floating_point() else x
    start = time.process_time()
    graph = mp.trace(model, x[:1])
    return Traced(model, x, graph, time.process_time() - start)


every = pytest.mark.parametrize(
    "case", [*ARCHITECTURES, *(pytest.param(c, marks=pytest.mark.slow) for c in HUGGING_FACE)], ids=lambda c: c.name
)


def random_masks(graph: mp.UnitGraph) -> list[np.ndarray]:
    """One mask per density, at least one unit kept in every group."""
    rng = np.random.default_rng(7)
    out = []
    for density in DENSITIES:
        kept = rng.random(graph.n_units) < density
        kept[[g.offset + int(rng.integers(g.size)) for g in graph.groups]] = True
        out.append(kept)
    return out


def tolerance(case: NetworkCase) -> float:
    return 1e-6 if case.name in ("llama_gqa", "qwen3") else 1e-10  # their norms work in float32 whatever they get


@every
def test_finds_the_units_in_time(case: NetworkCase) -> None:
    found = traced(case)
    assert tuple(g.size for g in found.graph.groups) == case.groups
    if case is not ARCHITECTURES[0]:  # the first one pays for loading torch's exporter
        assert found.seconds < 6.0  # 1 to 2 on an idle machine; a guard against tracing that explodes, not a benchmark
    for pinned in found.graph.pinned:
        assert pinned.reason
        assert pinned.n_units > 0


@every
def test_keeping_all_is_the_identity(case: NetworkCase) -> None:
    model, x, graph, _ = traced(case)
    plan = PrunePlan.from_mask(graph, np.ones(graph.n_units, dtype=bool))
    assert not plan.cuts
    assert not plan.repairs
    with torch.no_grad():
        dense = first_tensor(model(x))
        assert torch.equal(first_tensor(plan.apply(model)(x)), dense)
        torch.testing.assert_close(graph.program.run([x]), dense, rtol=0, atol=tolerance(case))


@every
def test_mask_equals_surgery(case: NetworkCase) -> None:
    model, x, graph, _ = traced(case)
    for kept in random_masks(graph):
        small = PrunePlan.from_mask(graph, kept).apply(model)
        gates = torch.from_numpy(kept).double()
        with torch.no_grad():
            expected = first_tensor(small(x))
            torch.testing.assert_close(graph.program.run([x], gates), expected, rtol=0, atol=tolerance(case))
            each = graph.program.run([x], gates.repeat(len(x), 1))
            torch.testing.assert_close(each, expected, rtol=0, atol=tolerance(case))


@every
def test_every_sample_may_have_its_own_mask(case: NetworkCase) -> None:
    _, x, graph, _ = traced(case)
    kept = torch.from_numpy(masks(graph.n_units, len(x), graph.costs.sizes)).double()
    with torch.no_grad():
        together = graph.program.run([x], kept)
        apart = torch.cat([graph.program.run([x[i : i + 1]], kept[i]) for i in range(len(x))])
    torch.testing.assert_close(together, apart, rtol=0, atol=tolerance(case))


@every
def test_costs_are_exact(case: NetworkCase) -> None:
    model, x, graph, _ = traced(case)
    assert (graph.macs(), graph.params()) == counted_costs(model, x)
    for kept in random_masks(graph):
        small = PrunePlan.from_mask(graph, kept).apply(model)
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)


@every
def test_removing_dead_units_changes_nothing(case: NetworkCase) -> None:
    _, x, graph, _ = traced(case)
    alive = ~graph.program.averaged
    for kept in random_masks(graph):
        dead = ~kept & alive
        killed = kill_units(graph, dead)
        small = PrunePlan.from_mask(graph, ~dead).apply(killed)
        with torch.no_grad():
            torch.testing.assert_close(first_tensor(small(x)), first_tensor(killed(x)), rtol=0, atol=tolerance(case))


@every
def test_prefix_agrees_with_the_whole_run(case: NetworkCase) -> None:
    _, x, graph, _ = traced(case)
    rng = np.random.default_rng(1)
    for group in graph.groups[:3]:
        base = rng.random(graph.n_units) < 0.7
        own = rng.random((3, group.size)) < 0.6
        out = graph.program.prefix([x], group.units, base).run(torch.from_numpy(own).double())
        for row, coalition in zip(out, own, strict=True):
            kept = base.copy()
            kept[group.units] = coalition
            with torch.no_grad():
                expected = graph.program.run([x], torch.from_numpy(kept).double())
            torch.testing.assert_close(row, expected, rtol=0, atol=tolerance(case))


@every
def test_survives_a_file(case: NetworkCase, tmp_path: Path) -> None:
    model, x, graph, _ = traced(case)
    plan = PrunePlan.from_mask(graph, random_masks(graph)[1])
    small = plan.apply(model)
    save(tmp_path / "small.safetensors", small, plan)
    again = load(tmp_path / "small.safetensors", case.build(seed=3).double())
    with torch.no_grad():
        torch.testing.assert_close(first_tensor(again(x)), first_tensor(small(x)), rtol=0, atol=tolerance(case))
