"""Exact beside sampled: errors, ranks, intervals, the masks that follow, and the picture of it."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import mipprune as mp
from mipprune.errors import ConfigError, DataError, MissingDependencyError
from mipprune.estimate import Estimate, banzhaf, shapley
from mipprune.game import TableGame
from mipprune.solver import Problem
from mipprune.study import Comparison, compare
from mipprune.testing.closed_form_games import AdditiveGame, SymmetricGame


def random_game(n: int, seed: int = 0) -> TableGame:
    return TableGame(np.random.default_rng(seed).normal(size=1 << n))


def made_up(values: list[float], stderr: float = 0.5, **changes: object) -> Estimate:
    n = len(values)
    fields = {"index": "shapley", "p": None, "method": "permutation", "n_evals": 7} | changes
    return Estimate(
        values=np.array(values), stderr=np.full(n, stderr), seed=0, value_full=None, value_empty=None,
        player_names=tuple("abcdefgh"[:n]), block_means=np.tile(values, (2, 1)), block_sizes=np.ones(2), **fields,
    )


def test_compare_by_hand() -> None:
    exact = dataclasses.replace(
        made_up([4.0, 3.0, 2.0, 0.0]), stderr=np.zeros(4), block_means=np.zeros((0, 4)), block_sizes=np.zeros(0)
    )
    found = compare(exact, made_up([3.0, 4.0, 2.0, 0.0], stderr=0.01), made_up([4.0, 3.0, 2.0, 0.0], p=0.5), ks=[1, 2])
    swapped, right = found.rows
    assert swapped.relative_error == pytest.approx(math.sqrt(2 / 29))
    assert swapped.max_error == 1.0
    assert swapped.spearman == pytest.approx(0.8)
    assert swapped.kendall == pytest.approx(2 / 3)
    assert swapped.overlaps == (0.0, 1.0)
    assert swapped.coverage == 0.5
    assert (right.relative_error, right.spearman, right.overlaps) == (0.0, pytest.approx(1.0), (1.0, 1.0))
    assert right.coverage is None
    assert Comparison.from_dict(found.to_dict()) == found
    table = str(found).splitlines()
    assert table[0] == "against shapley permutation"
    assert len({len(line) for line in table[1:]}) == 1
    assert "50.0%" in table[3]


def test_compare_constant_values() -> None:
    exact = shapley(SymmetricGame([0.0, 1.0, 2.0]))
    row = compare(exact, shapley(SymmetricGame([0.0, 1.0, 2.0]), method="permutation", n_evals=40)).rows[0]
    assert math.isnan(row.spearman)
    assert row.coverage == 1.0
    nothing = shapley(AdditiveGame([0.0, 0.0]))
    assert math.isnan(compare(nothing, shapley(AdditiveGame([1.0, 2.0]))).rows[0].relative_error)


def test_compare_refuses_what_it_cannot_judge() -> None:
    exact, sampled = shapley(random_game(4)), shapley(random_game(4), method="permutation", n_evals=100)
    with pytest.raises(ConfigError, match="exact"):
        compare(sampled, sampled)
    with pytest.raises(ConfigError, match="nothing"):
        compare(exact)
    with pytest.raises(ConfigError, match=r"1\.\.4"):
        compare(exact, sampled, ks=[5])
    with pytest.raises(DataError, match="other players"):
        compare(exact, shapley(random_game(5)))
    with pytest.raises(ConfigError, match="keep"):
        compare(exact, sampled, keep=[0])
    with pytest.raises(DataError, match="5 players"):
        compare(exact, sampled, keep=[2], game=random_game(5))


def test_solutions_of_exact_and_sampled_importances() -> None:
    game = TableGame(random_game(6, seed=3).table + np.bitwise_count(np.arange(64)))  # everybody is worth something
    exact = shapley(game)
    sampled = [shapley(game, method="permutation", n_evals=b, seed=1) for b in (40, 20_000)]
    found = compare(exact, *sampled, keep=[2, 4], game=game)
    assert [s.requirement for s in found.solutions] == ["keep 2"] * 4 + ["keep 4"] * 4
    masks = (np.arange(64)[:, None] >> np.arange(6) & 1).astype(bool)
    for k, (reference, rough, fine, best) in ((2, found.solutions[:4]), (4, found.solutions[4:])):
        assert (reference.label, reference.overlap, reference.regret) == ("shapley exact", 1.0, 0.0)
        assert reference.n_kept <= k
        assert best.label == "best mask"
        allowed = masks.sum(1) <= k
        assert best.true_drop == pytest.approx(game.value_full - game.table[allowed].max())
        values = np.array(exact.values)
        least = (masks[allowed] @ values).max()
        chosen = max((mask for mask in masks[allowed]), key=lambda mask: float(mask @ values))
        assert reference.true_drop == pytest.approx(game.value_full - game.value(chosen))
        for estimate, row in ((sampled[0], rough), (sampled[1], fine)):
            mask = max((mask for mask in masks[allowed]), key=lambda mask: float(mask @ estimate.values))
            assert row.regret == pytest.approx(least - mask @ values)
            assert row.overlap == pytest.approx((mask & chosen).sum() / chosen.sum())
            assert row.true_drop == pytest.approx(game.value_full - game.value(mask))
            assert row.regret >= 0
            assert row.proved
    assert Comparison.from_dict(found.to_dict()) == found
    assert "keep 4" in str(found)
    assert "best mask" in str(found)


def test_other_requirements_and_no_game() -> None:
    game = AdditiveGame([3.0, 1.0, 2.0, 0.5])
    found = mp.compare(
        shapley(game), shapley(game, method="permutation", n_evals=50),
        problems={"at most 1.5 lost": lambda surrogate: Problem.minimize_units(surrogate, max_drop=1.5)},
    )
    reference, sampled = found.solutions
    assert (reference.n_kept, sampled.overlap, sampled.regret, sampled.true_drop) == (2, 1.0, 0.0, None)
    assert "at most 1.5 lost" in str(found)


def test_the_picture_shows_what_the_record_holds(tmp_path: Path) -> None:
    game = random_game(6, seed=3)
    estimates = [f(game, method=m, n_evals=b) for f, m in ((shapley, "permutation"), (banzhaf, "one_toggle"))
                 for b in (100, 1000)]
    found = compare(shapley(game), *estimates, keep=[2, 4], game=game)
    found.plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    compare(shapley(game), *estimates).plot(tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        compare(shapley(random_game(4)), shapley(random_game(4))).plot(tmp_path / "a.png")
