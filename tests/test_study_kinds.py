"""Every kind of cells says what a direct call of the function that it wraps says."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.game.data import LabelledData, read_data
from mipprune.study import Study
from mipprune.study.report import write_report
from mipprune.study.summary import overview


@functools.cache
def trained() -> nn.Module:
    """Trained a little, so that one mask is worth another accuracy than the next."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    x, y = samples(200, seed=2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def network() -> nn.Module:
    return copy.deepcopy(trained())


def samples(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def ran(path: Path, kind: str, holdout: Any = None, **axes: Any) -> tuple[Study, dict[str, Any]]:
    """A study of one cell, and its row."""
    study = Study("one", path / "s.db")
    study.add_model("net", network(), samples(), holdout=holdout)
    assert study.add(kind, **axes) == 1
    summary = study.run()
    assert summary.failed == 0, [cell.error for cell in study.storage.cells("one", state="failed")]
    cell, = study.storage.cells("one", kind=kind)
    assert cell.result is not None
    return study, cell.result


@functools.cache
def traced() -> mp.UnitGraph:
    return mp.trace(network(), samples()[0][:1])


def game(layer: str, n: int = 40, value: str = "cross_entropy") -> mp.LayerGame:
    x, y = samples()
    return mp.LayerGame(traced(), layer, (x[:n], y[:n]), value=value)


@pytest.mark.parametrize("algorithm", ["top_n", "iterated_pruning", "iterated_building"])
def test_gtap(tmp_path: Path, algorithm: str) -> None:
    x, y = samples(50, seed=1)
    _, row = ran(tmp_path, "gtap", (x, y), layer="2", algorithm=algorithm, keep=0.4, n_evals=400, samples=30, seed=5)
    function = getattr(mp, f"gtap_{algorithm}")
    found = function(game("2", 30), 2, method="dropout", n_evals=400, seed=5)
    judge = mp.LayerGame(traced(), "2", (x, y), value="accuracy")
    assert (row["kept"], row["players"], row["evals_used"], row["rounds"]) == (2, 5, found.n_evals, len(found.rounds))
    assert row["loss"] == -found.path_values[-1] == -game("2", 30).value(found.kept)
    assert row["dense_loss"] == -game("2", 30).value_full
    with torch.no_grad():  # the accuracy without the package's game
        hidden = network()[:4](x)
        accuracy, other = (
            (network()[4](hidden * torch.tensor(mask)).argmax(1) == y).double().mean().item()
            for mask in (found.kept, ~found.kept)
        )
        dense = (network()(x).argmax(1) == y).double().mean().item()
    assert accuracy != other, "an accuracy that any mask would have shows nothing"
    assert row["accuracy"] == pytest.approx(accuracy)
    assert row["accuracy"] == judge.value(found.kept)
    assert row["dense_accuracy"] == pytest.approx(dense)


def test_ranks(tmp_path: Path) -> None:
    _, row = ran(tmp_path, "ranks", layer="2", k=1, n_evals=300, samples=30, seed=2)
    found = mp.shapley_pruning_ranks(game("2", 30), ks=(1,), n_evals=300, seed=2, oracle=True)
    assert found.oracle is not None
    expected = {f"above best: {r.name}": r.mean_gap for r in found.oracle.rows}
    assert len(expected) >= 3
    assert {k: v for k, v in row.items() if k.startswith("above")} == expected
    assert row["nested"] == found.oracle.oracle.nested
    assert row["players"] == 5
    assert all(value >= -1e-12 for value in expected.values())


def test_interactions(tmp_path: Path) -> None:
    _, row = ran(tmp_path, "interactions", layer="2", p=0.3, n_evals=600, samples=30, seed=4)
    found = mp.interactions(game("2", 30), p=0.3, n_evals=600, seed=4)
    assert row["pairs"] == [found.values[i, j] for i in range(5) for j in range(i + 1, 5)]
    assert row["largest_stderr"] == found.stderr.max()
    assert (row["evals_used"], row["players"]) == (found.n_evals, 5)


@pytest.mark.parametrize("formulation", ["oamip", "sound"])
def test_oamip(tmp_path: Path, formulation: str) -> None:
    pytest.importorskip("pyscipopt")
    x, y = samples(50, seed=1)
    given = {"threshold": 0.3, "loss_weight": 2.0} if formulation == "oamip" else {"margin": 0.01}
    _, row = ran(tmp_path, "oamip", (x, y), formulation=formulation, layer="2", samples=4, seed=1, **given)
    options: dict[str, Any] = given if formulation == "sound" else {"oamip": mp.relu.OamipOptions(**given)}
    own = read_data(samples(), network()).take(slice(0, 4))
    found = mp.relu.select(traced(), own, formulation, layer="2", seed=1, **options)
    assert (row["units"], row["kept"], row["proved"]) == (len(found.kept), found.n_kept, found.proved)
    assert (row["objective"], row["bound"]) == (found.objective, found.bound)
    assert row["termination"] == found.termination
    assert row["sample_accuracy"] == found.accuracy
    graph = traced()
    with torch.no_grad():
        masks = [torch.tensor(found.kept[graph.group(name).units]) for name in ("0", "2")]
        hidden = network()[:2](x) * masks[0]
        hidden = network()[2:4](hidden) * masks[1]
        accuracy = (network()[4](hidden).argmax(1) == y).double().mean().item()
    assert row["accuracy"] == pytest.approx(accuracy)


def test_train_and_prune(tmp_path: Path) -> None:
    held = samples(50, seed=1)
    options: dict[str, Any] = {"flatness": 0.01, "weight_decay": 0.001, "sharpness_aware": 0.05, "epochs": 2, "seed": 3}
    _, row = ran(tmp_path, "train_and_prune", held, units=0.6, **options)
    report = mp.train_and_prune(
        network(), samples(), holdout=held, budget=mp.Units(0.6), progress=False, **options
    ).report
    assert row["units_ratio"] == report.ratio("units") <= 0.6
    assert (row["accuracy"], row["loss"], row["train_loss"]) == (report.accuracy, report.loss, report.train_loss)
    assert (row["top_eigenvalue"], row["kfac_sum"]) == (report.sharpness.top_eigenvalue, report.sharpness.kfac_sum)
    assert row["relative_sharpness"] == report.sharpness.relative
    assert row["held_out"] == 50
    assert row["termination"] == report.termination


@pytest.mark.parametrize(  # of each another limit by one unit, or by a factor of two, has another answer
    ("layer", "surrogate", "asked"),
    [("0", "head", {"keep": 0.4}), ("0", "head", {"max_drop": 0.05}), ("2", "quadratic", {"keep": 0.8})],
)
def test_solve(tmp_path: Path, layer: str, surrogate: str, asked: dict[str, float]) -> None:
    study, row = ran(tmp_path, "solve", layer=layer, surrogate=surrogate, solver="nlp", samples=30, seed=1, **asked)
    x, y = samples()
    graph, data = traced(), LabelledData((x[:30],), y[:30])
    if surrogate == "head":
        fit = mp.fit_linear_head(graph, layer, data)
        convex: Any = mp.surrogates.LinearHead(fit.activations, fit.weight, fit.bias, fit.targets)
    else:
        units = graph.group(layer).units
        joint = mp.expand_gates(graph, data, joint=True)  # the layer's block of the whole, by another road
        convex = mp.surrogates.Quadratic.from_curvature(joint.gradient[units], joint.joint[units, units])
    problem = (mp.Problem.minimize_units(convex, max_drop=asked["max_drop"]) if "max_drop" in asked
               else mp.Problem.minimize_drop(convex, budgets={"units": round(asked["keep"] * convex.n_units)}))
    best = mp.solve(problem, "brute")
    assert row["objective"] == pytest.approx(best.objective, rel=1e-6, abs=1e-9)
    assert (row["kept"], row["units"], row["used"]) == (best.n_kept, convex.n_units, "nlp")
    assert row["proved"]
    seconds, objectives, bounds = zip(*row["progress"], strict=True)
    assert list(seconds) == sorted(seconds)
    assert objectives[-1] == row["objective"]
    assert bounds[-1] == row["bound"]
    assert "progress" in study.table("solve")[0]
    assert "progress" not in study.table("solve", timing=False)[0]


def test_the_report_draws_how_solvers_went(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from mipprune.study.figures import traces_figure

    study = Study("two", tmp_path / "s.db")
    study.add_model("net", network(), samples())
    study.add("solve", layer=["0", "2"], surrogate="quadratic", keep=0.5, solver=["nlp", "highs"], seed=[0, 1])
    assert study.run().failed == 0
    found = overview(study.storage, "two").traces
    assert [one.title for one in found] == [
        "net, layer 0: quadratic surrogate, keeping 50%", "net, layer 2: quadratic surrogate, keeping 50%",
    ]
    assert [solver for solver, _ in found[0].searches] == ["nlp", "nlp", "highs", "highs"]
    axis = traces_figure(found[0]).axes[0]
    steps = [line for line in axis.lines if line.get_drawstyle() == "steps-post"]
    assert len(steps) == 4 * 2
    for (_, events), lines in zip(found[0].searches, zip(steps[::2], steps[1::2], strict=True), strict=True):
        for which, line in zip((1, 2), lines, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), [event[which] for event in events])
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["nlp", "highs"]
    page, text, *_ = write_report(study.storage, "two", tmp_path / "report")
    assert page.read_text().count("incumbent and bound over time") == 2
    assert "progress" not in text.read_text()
