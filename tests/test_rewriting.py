"""Sizes in the code of methods: replaced where nothing else repairs them, listed, carried by plans, never guessed."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mipprune as mp
from mipprune.errors import PlanError
from mipprune.surgery import PrunePlan
from mipprune.surgery.verify import first_tensor
from mipprune.testing.architectures import ATTENTION
from mipprune.testing.counting import counted_costs

GPT = next(case for case in ATTENTION if case.name == "small_gpt")


@functools.cache
def gpt() -> tuple[nn.Module, Tensor, mp.UnitGraph]:
    model, x = GPT.build().double(), GPT.inputs(3)
    return model, x, mp.trace(model, x)


def half(graph: mp.UnitGraph, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kept = rng.random(graph.n_units) < 0.5
    kept[[g.offset + int(rng.integers(g.size)) for g in graph.groups]] = True
    return kept


def agrees(model: nn.Module, x: Tensor, graph: mp.UnitGraph) -> nn.Module:
    """The last of three random cuts, each equal to its mask and of the stated cost."""
    for seed in range(3):
        kept = half(graph, seed)
        small = PrunePlan.from_mask(graph, kept).apply(model)
        with torch.no_grad():
            expected = graph.program.run([x], torch.from_numpy(kept).double())
            torch.testing.assert_close(first_tensor(small(x)), expected, rtol=0, atol=1e-10)
        assert (graph.macs(kept), graph.params(kept)) == counted_costs(small, x)
    return small


class Net(nn.Module):
    """Two layers with something in between."""

    def __init__(self, width: int = 12, reader: int = 12) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, width), nn.Linear(reader, 3)

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.inp(x)))


def traced(kind: type[Net], **options: Any) -> tuple[nn.Module, Tensor, mp.UnitGraph]:
    torch.manual_seed(0)
    model, x = kind().eval().double(), torch.randn(4, 5, dtype=torch.float64)
    return model, x, mp.trace(model, x, **options)


def test_the_teaching_gpt_loses_heads_neurons_and_stream() -> None:
    model, x, graph = gpt()
    expressions = [(r.slot.site.module, r.expression) for r in graph.rewrites]
    each = ["C // self.n_head"] * 3 + ["C"]
    assert sorted(expressions) == sorted([(f"h.{i}.attn", e) for i in range(2) for e in each])
    assert "code of h.0.attn.forward: `C` at its line 8 becomes self.pruned_size_3" in str(graph)
    small = agrees(model, x, graph)
    for length in (1, 4, 8):  # the number of tokens stays free
        assert small(x[:, :1].expand(-1, length))[0].shape == (3, 1, 20)
    logits, loss = small(x, x)  # a path that tracing didn't take
    assert logits.shape == (3, 6, 20)
    loss.backward()
    assert type(small.h[0].attn).__name__ == "CausalAttention"
    assert isinstance(small.h[0].attn, type(model.h[0].attn))
    assert small.wte.weight is small.lm_head.weight


def test_the_pruned_network_is_copied_pickled_stored_and_traced_again(tmp_path: Path) -> None:
    model, x, graph = gpt()
    plan = PrunePlan.from_mask(graph, half(graph))
    small = plan.apply(model)
    expected = small(x)[0]
    assert torch.equal(copy.deepcopy(small)(x)[0], expected)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x)[0], expected)
    mp.save(tmp_path / "small.safetensors", small, plan)
    assert torch.equal(mp.load(tmp_path / "small.safetensors", GPT.build(seed=3).double())(x)[0], expected)
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    assert "view" not in (tmp_path / "plan.json").read_text()  # it says where, not what the code is
    again = mp.trace(small, x)
    assert not again.rewrites  # attributes now
    agrees(small, x, again)


def test_without_rewriting_the_units_are_pinned_with_the_reason() -> None:
    model, x, _ = gpt()
    graph = mp.trace(model, x, rewrite=False)
    assert [g.size for g in graph.groups] == [20, 20]
    assert not graph.rewrites
    assert any("would be wrong after pruning" in p.reason for p in graph.pinned)


class Literal(Net):
    def between(self, x: Tensor) -> Tensor:
        return x.view(-1, 3, 4).flatten(1)


class Torch(Net):
    def between(self, x: Tensor) -> Tensor:
        return torch.reshape(x, (x.shape[0], 12)).relu()


class Helper(Net):
    """The size stands in another method, which another one calls."""

    def flat(self, x: Tensor, *, times: float = 2.0) -> Tensor:
        """Documented."""
        return x.view(x.size(0), 4, 3).flatten(1) * times

    def between(self, x: Tensor) -> Tensor:
        return self.flat(x, times=3.0)


class Private(Net):
    """Names with two underscores, and a default from outside."""

    def __scaled(self, x: Tensor) -> Tensor:
        return x * 2

    def between(self, x: Tensor, scale: float = 1 + 1) -> Tensor:
        return self.__scaled(x.view(-1, 12)) / scale


class Parent(Literal):
    """The method is inherited, and calls a parent's by ``super``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1, 5)) + self.out(self.inp(x).view(-1, 12))


class ScaledSize(Net):
    """One attribute is a size and a number: the size gets one of its own, the number stays."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12

    def between(self, x: Tensor) -> Tensor:
        return (x.view(-1, self.width) * float(self.width) ** -0.5).relu()


@pytest.mark.parametrize("kind", [Literal, Torch, Helper, Private, Parent, ScaledSize], ids=lambda k: k.__name__)
def test_sizes_are_replaced_where_they_stand(kind: type[Net]) -> None:
    model, x, graph = traced(kind)
    assert graph.rewrites
    assert graph.groups
    small = agrees(model, x, graph)
    assert all(type(a) is type(b) for a, b in zip(model.children(), small.children()))
    assert mp.trace(model, x, rewrite=False).n_units == 0


class TwoWidths(nn.Module):
    """One place in the code serves two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 4), nn.Linear(5, 6), nn.Linear(10, 2)

    def flat(self, x: Tensor, width: int) -> Tensor:
        return x.view(x.shape[0], width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.flat(self.a(x), 4), self.flat(self.b(x), 6)], 1))


def test_a_place_that_serves_two_widths_pins_them() -> None:
    model, x = TwoWidths().eval(), torch.randn(2, 5)
    graph = mp.trace(model, x)
    assert not graph.groups
    assert not graph.rewrites
    assert {p.module: "one place in the code serves widths that leave differently" in p.reason for p in graph.pinned}[
        "a"]


class Reused(nn.Module):
    """A place that also serves something that isn't prunable, with a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 4), nn.Linear(9, 2)

    def flat(self, x: Tensor, width: int) -> Tensor:
        return x.view(-1, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.flat(x, 5), self.flat(self.inp(x), 4)], 1))


class Unseen(Reused):
    """The other result isn't used, so that the captured graph knows nothing of it; the code runs all the same."""

    def forward(self, x: Tensor) -> Tensor:
        self.flat(x, 5)
        return self.out(F.pad(self.flat(self.inp(x), 4), (0, 5)))


@pytest.mark.parametrize("kind", [Reused, Unseen], ids=lambda k: k.__name__)
def test_a_place_that_also_serves_others_is_left_alone(kind: type[nn.Module]) -> None:
    graph = mp.trace(kind().eval(), torch.randn(2, 5))
    assert not graph.groups
    assert not graph.rewrites


class Unmapped(Net):
    """Arguments that can't be told from the code: a tuple by name, and a star."""

    def between(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], 3, 4)
        return x.view(shape).view(*shape[:1], *(12,))


class Split(Net):
    """A torch function that is Python itself: its arguments aren't the call's."""

    def between(self, x: Tensor) -> Tensor:
        return torch.cat(torch.split(x, 4, 1), 1)


class Rebound(Net):
    """``self`` is something else by the time."""

    def between(self, x: Tensor) -> Tensor:
        out = x.view(-1, 12)
        self = None  # noqa: F841
        return out


@pytest.mark.parametrize("kind", [Unmapped, Split, Rebound], ids=lambda k: k.__name__)
def test_what_can_not_be_told_is_pinned(kind: type[Net]) -> None:
    _, _, graph = traced(kind)
    assert not graph.groups
    assert not graph.rewrites
    assert "the literal size" in graph.pinned[0].reason


def test_code_without_source_is_left_alone() -> None:
    scope = {"Net": Net, "__name__": "nowhere"}
    exec("class Typed(Net):\n    def between(self, x):\n        return x.view(-1, 12)\n", scope)
    _, _, graph = traced(scope["Typed"])  # type: ignore[arg-type]
    assert not graph.groups
    assert "the literal size 12" in graph.pinned[0].reason


def test_rewriting_is_left_out_where_it_is_not_needed() -> None:
    """A literal whose units are pinned by something else stays as it is."""

    class Pinned(Net):
        def between(self, x: Tensor) -> Tensor:
            return x.view(-1, 12).sort(-1).values

    _, _, graph = traced(Pinned)
    assert not graph.rewrites


def test_plans_name_code_that_changed() -> None:
    model, x, graph = traced(Literal)
    plan = PrunePlan.from_mask(graph, np.array([True, False, True]))
    other = dataclasses.replace(plan.rewrites[0], code="0" * 64)
    with pytest.raises(PlanError, match="isn't the code that it was made for"):
        dataclasses.replace(plan, rewrites=(other, *plan.rewrites[1:])).apply(model)
    other = dataclasses.replace(plan.rewrites[0], method="gone")
    with pytest.raises(PlanError, match="whose source can't be found"):
        dataclasses.replace(plan, rewrites=(other,)).apply(model)
    everything = PrunePlan.from_mask(graph, np.ones(graph.n_units, dtype=bool))
    assert not everything.rewrites
    assert type(everything.apply(model)) is Literal
    assert torch.equal(everything.apply(model)(x), model(x))


@pytest.mark.slow
def test_prune_takes_the_teaching_gpt() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gpt = GPT.build()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.gpt(tokens)[0][:, -1]

    model, x = Classifier().eval(), GPT.inputs(60)
    with torch.no_grad():
        y = model(x).argmax(1)
    result = mp.prune(model, (x, y), budget=mp.Macs(0.5), stages=1, repair=(), surrogate="quadratic", progress=False)
    assert result.report.ratio("macs") <= 0.5
    assert result.plan.rewrites
    assert result.report.verification.max_abs_diff < 1e-4


def test_casts_do_not_hide_where_sizes_come_from() -> None:
    """torch.export writes checks beside casts that carry the notes of what they check."""

    class Cast(Net):
        def between(self, x: Tensor) -> Tensor:
            y = x.view(x.shape[0], 4, -1)
            return y.float().reshape(y.shape[0], y.shape[1] * y.shape[2]).double().relu()

    model, x, graph = traced(Cast)
    assert graph.groups
    assert not graph.rewrites
    for seed in range(2):
        kept = half(graph, seed)
        small = PrunePlan.from_mask(graph, kept).apply(model)
        expected = graph.program.run([x], torch.from_numpy(kept).double())
        torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_pruned_network_compiles_and_exports() -> None:
    model, x, graph = gpt()
    small = PrunePlan.from_mask(graph, half(graph)).apply(model)
    with torch.no_grad():
        expected = small(x)[0]
        compiled = torch.compile(small, backend="eager")
        torch.testing.assert_close(compiled(x)[0], expected, rtol=0, atol=1e-12)
        program = torch.export.export(small, (x,))
        torch.testing.assert_close(program.module()(x)[0], expected, rtol=0, atol=1e-12)
    assert F.softmax(expected, -1).sum() > 0
