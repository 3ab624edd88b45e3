"""Runs of an estimation: rules that stop it, checkpoints it goes on from, the samples' own marginals, proxies."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mipprune.errors import BudgetError, ConfigError, DataError
from mipprune.estimate import CutResolved, Estimate, PinnedGame, banzhaf, semivalue, shapley
from mipprune.estimate import checkpoint as checkpoint_module
from mipprune.estimate.density import SHAPLEY, Density
from mipprune.estimate.exact import first_differences
from mipprune.estimate.proxy import draw_pilot, fit_proxy
from mipprune.estimate.stopping import check_after
from mipprune.game import Game, TableGame
from mipprune.testing.sample_games import MeanOfTables, mean_of_networks


def random_game(n: int, seed: int = 0) -> TableGame:
    return TableGame(np.random.default_rng(seed).normal(size=1 << n))


def two_classes(n_strong: int, n_weak: int, noise: float = 0.3) -> TableGame:
    """Strong players are worth 1, weak ones 0, and every coalition's value is off by noise of its own."""
    n = n_strong + n_weak
    bits = np.arange(1 << n)[:, None] >> np.arange(n) & 1
    rng = np.random.default_rng(n)
    return TableGame(bits[:, :n_strong].sum(1) + noise * rng.normal(size=1 << n))


def same(a: Estimate, b: Estimate) -> bool:
    return {**a.to_dict(), "seconds": 0} == {**b.to_dict(), "seconds": 0}


METHODS = {
    "permutation": lambda game, **k: shapley(game, method="permutation", **k),
    "regression": lambda game, **k: shapley(game, method="regression", **k),
    "reuse": lambda game, **k: banzhaf(game, method="reuse", **k),
    "adjusted": lambda game, **k: semivalue(game, p=0.3, method="adjusted", **k),
    "sample_permutation": lambda game, **k: shapley(game, method="sample_permutation", **k),
}
each_method = pytest.mark.parametrize("method", METHODS)


def game_for(method: str, n: int = 7) -> Game:
    return mean_of_networks(n) if method.startswith("sample_") else random_game(n)


# -- a rule that stops -------------------------------------------------------------------------------------------------


@each_method
def test_a_clear_cut_ends_the_sampling(method: str) -> None:
    tables = np.stack([two_classes(3, 5).table] * 3)
    game = MeanOfTables(tables) if method.startswith("sample_") else TableGame(tables[0])
    found = METHODS[method](game, n_evals=200_000, stop=CutResolved(3))
    assert found.termination == "resolved"
    assert found.n_evals < 20_000
    assert set(found.top(3)) == {0, 1, 2}
    for batch_size in (1, 77):
        assert same(found, METHODS[method](game, n_evals=200_000, stop=CutResolved(3), batch_size=batch_size))


def test_a_tie_across_the_cut_never_resolves_without_a_margin() -> None:
    game = two_classes(3, 5)
    assert shapley(game, method="permutation", n_evals=20_000, stop=CutResolved(5)).termination == "completed"
    found = shapley(game, method="permutation", n_evals=200_000, stop=CutResolved(5, margin=0.2))
    assert found.termination == "resolved"


def test_cuts_that_were_called_resolved_are_right_as_often_as_promised() -> None:
    # values 0.2 apart around the cut and noise: the rule is conservative, so far fewer than 10% may be wrong
    rng = np.random.default_rng(0)
    bits = np.arange(64)[:, None] >> np.arange(6) & 1
    game = TableGame(bits @ (0.2 * np.arange(6)) + 0.3 * rng.normal(size=64))
    truth = shapley(game).values
    wrong, resolved = 0, 0
    for seed in range(60):
        found = shapley(game, method="permutation", n_evals=60_000, seed=seed, stop=CutResolved(3, confidence=0.9))
        if found.termination == "resolved":
            resolved += 1
            kept = found.top(3)
            wrong += truth[kept].min() < np.delete(truth, kept).max()
    assert resolved > 30
    assert wrong <= 6


@given(st.integers(0, 10_000))
def test_looks_come_at_fixed_growing_numbers(n: int) -> None:
    following = check_after(n)
    assert following > n
    assert check_after(following - 1) == following
    assert check_after(following) <= following * 1.25 + 1


@pytest.mark.parametrize(("rule", "text"), [
    (lambda: CutResolved(3, confidence=1.0), "confidence"),
    (lambda: CutResolved(3, margin=-1.0), "margin"),
    (lambda: shapley(random_game(5), n_evals=20, stop=CutResolved(5)), "1..4"),
    (lambda: shapley(random_game(5), n_evals=20, stop=CutResolved(0)), "1..4"),
])
def test_bad_rules(rule, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        rule()


# -- checkpoints -------------------------------------------------------------------------------------------------------


class Failing(Game):
    """Ctrl-C at a given evaluation."""

    def __init__(self, inner: Game, at: int) -> None:
        self.inner, self.at, self.count = inner, at, 0

    @property
    def n_players(self) -> int:
        return self.inner.n_players

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        self.count += len(coalitions)
        if self.count > self.at:
            raise KeyboardInterrupt
        return self.inner.values(coalitions)


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("sample_")])
@pytest.mark.parametrize("at", [1200, 2000])
def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(method: str, at: int, tmp_path: Path) -> None:
    game, file = random_game(6), tmp_path / "run.npz"
    whole = METHODS[method](game, n_evals=3000, seed=3)
    part = METHODS[method](Failing(game, at), n_evals=3000, seed=3, checkpoint=file)
    assert part.termination == "interrupted"
    again = Failing(game, 10**9)
    assert same(METHODS[method](again, n_evals=3000, seed=3, checkpoint=file), whole)
    assert again.count < whole.n_evals
    assert same(METHODS[method](Failing(game, 1000), n_evals=3000, seed=3, checkpoint=file), whole)


@pytest.mark.parametrize("keep_samples", [False, True])
def test_sample_wise_runs_resume_and_grow(keep_samples: bool, tmp_path: Path) -> None:
    game, file = mean_of_networks(6), tmp_path / "run.npz"
    options = {"method": "sample_permutation", "keep_samples": keep_samples}
    shapley(game, n_evals=200, checkpoint=file, **options)
    assert same(shapley(game, n_evals=1000, checkpoint=file, **options), shapley(game, n_evals=1000, **options))


def test_a_checkpoint_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    game, file = random_game(6), tmp_path / "run.npz"
    shapley(game, method="permutation", n_evals=300, seed=1, checkpoint=file)
    before = file.read_bytes()
    for other in (
        lambda: shapley(game, method="permutation", n_evals=300, seed=2, checkpoint=file),
        lambda: shapley(game, method="one_toggle", n_evals=300, seed=1, checkpoint=file),
        lambda: shapley(random_game(6, seed=9), method="permutation", n_evals=300, seed=1, checkpoint=file),
        lambda: shapley(PinnedGame(random_game(7), [6]), method="permutation", n_evals=300, seed=1, checkpoint=file),
    ):
        with pytest.raises(DataError, match=r"run\.npz"):
            other()
        assert file.read_bytes() == before
    for junk in (b"", b"junk", before[: len(before) // 2]):
        file.write_bytes(junk)
        with pytest.raises(DataError, match="not a checkpoint"):
            shapley(game, method="permutation", n_evals=300, seed=1, checkpoint=file)


def test_a_directory_that_takes_no_files_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_bytes_atomic", full)
    with pytest.warns(UserWarning, match="No space left"):
        found = shapley(random_game(6), method="permutation", n_evals=300, checkpoint=tmp_path / "x.npz")
    assert found.termination == "completed"


def test_a_killed_process_loses_at_most_what_came_after_the_last_write(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, time, numpy as np
        from mipprune.estimate import checkpoint, shapley
        from mipprune.game import Game
        checkpoint.SAVE_SECONDS = 0.0
        class Slow(Game):
            n_players = 6
            def values(self, coalitions):
                time.sleep(0.01)
                return np.cos(coalitions @ np.arange(6.0))
        shapley(Slow(), method="permutation", n_evals=100_000, seed=1, batch_size=32, checkpoint=sys.argv[1])
    """)
    file = tmp_path / "run.npz"
    process = subprocess.Popen([sys.executable, "-c", code, str(file)])
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()

    class Same(Game):
        n_players = 6

        def values(self, coalitions: np.ndarray) -> np.ndarray:
            return np.cos(coalitions @ np.arange(6.0))

    with np.load(file) as saved:
        done = int(saved["counts"][1])
    assert done > 0
    budget = 2 + 10 * (done + 50)
    assert same(
        shapley(Same(), method="permutation", n_evals=budget, seed=1, checkpoint=file),
        shapley(Same(), method="permutation", n_evals=budget, seed=1),
    )


# -- the samples' own marginals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sample_permutation", "sample_one_toggle"])
def test_the_marginals_of_every_sample(method: str) -> None:
    game = mean_of_networks(6)
    exact = np.array([first_differences(table, SHAPLEY) for table in game.tables])
    found = shapley(game, method=method, n_evals=60_000, keep_samples=True)
    assert found.samples is not None
    assert found.samples.values.shape == exact.shape
    np.testing.assert_allclose(found.samples.values.mean(0), found.values, atol=1e-12)
    error, varies = found.samples.values - exact, found.samples.noise > 1e-20
    np.testing.assert_allclose(error[~varies], 0, atol=1e-9)
    score = error[varies] / np.sqrt(found.samples.noise[varies])
    assert np.abs(score).max() < 6
    assert np.sqrt((score**2).mean()) == pytest.approx(1, abs=0.3)
    np.testing.assert_allclose(found.samples.std, exact.std(0, ddof=1), rtol=0.05)
    np.testing.assert_allclose(found.risk_averse(2.0), found.values + 2 * found.samples.std)
    assert same(Estimate.from_dict(found.to_dict()), found)
    assert shapley(game, method=method, n_evals=60_000).samples is None


def test_the_spread_over_the_data_holds_no_sampling_noise() -> None:
    # all samples alike: what differs between them is noise alone
    game = MeanOfTables(np.stack([random_game(6).table] * 400))
    found = shapley(game, method="sample_permutation", n_evals=600, keep_samples=True)
    assert found.samples is not None
    raw = found.samples.values.std(0)
    assert (found.samples.std < 0.5 * raw).all()


def test_marginals_of_samples_need_a_sample_wise_method() -> None:
    with pytest.raises(DataError, match="keep_samples"):
        shapley(random_game(5), n_evals=20, keep_samples=True)
    with pytest.raises(ConfigError, match="sample-wise"):
        shapley(mean_of_networks(5), method="permutation", keep_samples=True)
    with pytest.raises(ConfigError, match="keep_samples=True"):
        shapley(random_game(5)).risk_averse()
    assert shapley(mean_of_networks(5), keep_samples=True).method == "sample_permutation"


# -- regression, reuse, proxies ----------------------------------------------------------------------------------------


def quadratic_game(n: int, seed: int) -> TableGame:
    rng = np.random.default_rng(seed)
    bits = (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(float)
    pairs = rng.normal(size=(n, n))
    return TableGame(bits @ rng.normal(size=n) + ((bits @ pairs) * bits).sum(1) + 3.0)


@given(st.integers(0, 10_000), st.booleans())
def test_regression_is_exact_where_values_add_up(seed: int, antithetic: bool) -> None:
    weights = np.random.default_rng(seed).normal(size=7)
    bits = np.arange(128)[:, None] >> np.arange(7) & 1
    found = shapley(TableGame(bits @ weights), method="regression", n_evals=100, seed=seed, antithetic=antithetic)
    np.testing.assert_allclose(found.values, weights, atol=1e-10)
    np.testing.assert_allclose(found.stderr, 0, atol=1e-10)


@given(st.integers(0, 10_000))
def test_regression_is_efficient_and_pairs_cancel_pairwise_terms(seed: int) -> None:
    game = random_game(6, seed)
    found = shapley(game, method="regression", n_evals=90, seed=seed)
    assert found.values.sum() == pytest.approx(game.value_full - game.value_empty)
    quadratic = quadratic_game(6, seed)
    found = shapley(quadratic, method="regression", n_evals=90, seed=seed)
    np.testing.assert_allclose(found.values, shapley(quadratic).values, atol=1e-9)


def test_regression_converges_to_shapley_and_plain_least_squares_does_not() -> None:
    game = random_game(6, seed=4)
    truth = shapley(game).values
    found = shapley(game, method="regression", n_evals=200_000)
    assert np.abs(found.values - truth).max() < 5 * found.stderr.max()
    assert np.abs(truth - banzhaf(game).values).max() > 20 * found.stderr.max()  # the unweighted fit


def test_regression_knows_how_much_its_own_fit_takes_off_the_residuals() -> None:
    game = random_game(8, seed=1)
    found = [shapley(game, method="regression", n_evals=66, seed=seed) for seed in range(400)]
    real = np.std([e.values for e in found], axis=0)
    stated = np.sqrt(np.mean([e.stderr**2 for e in found], axis=0))
    assert (stated / real).mean() == pytest.approx(1, abs=0.08)


def test_reuse_is_the_difference_of_two_means() -> None:
    game, n_evals = random_game(5), 400
    found = semivalue(game, p=0.6, method="reuse", n_evals=n_evals, seed=3, antithetic=False)
    from mipprune.estimate.designs import uniforms

    masks = uniforms(3, 0, found.n_evals - 2, 6)[:, 1:] < 0.6
    values = game.values(masks)
    expected = [values[masks[:, i]].mean() - values[~masks[:, i]].mean() for i in range(5)]
    np.testing.assert_allclose(found.values, expected)


@pytest.mark.parametrize("p", [None, 0.5, 0.3])
def test_a_proxy_of_a_quadratic_game_is_the_game(p: float | None) -> None:
    density, game = SHAPLEY if p is None else Density(p), quadratic_game(7, seed=2)
    drawn = draw_pilot(0, 400, 7, density)
    proxy = fit_proxy(drawn, game.values(drawn), density)
    assert proxy.explained > 1 - 1e-6
    everything = (np.arange(128)[:, None] >> np.arange(7) & 1).astype(bool)
    np.testing.assert_allclose(proxy.values(everything), game.table, atol=1e-2)
    np.testing.assert_allclose(proxy.index, first_differences(game.table, density), atol=1e-2)
    one_by_one = np.concatenate([proxy.values(row[None]) for row in everything])
    assert (one_by_one == proxy.values(everything)).all()


@given(st.integers(0, 1000), st.sampled_from([None, 0.5, 0.2]))
def test_the_index_of_a_proxy_is_that_of_its_table(seed: int, p: float | None) -> None:
    density, game = SHAPLEY if p is None else Density(p), random_game(5, seed)
    drawn = draw_pilot(seed, 60, 5, density)
    proxy = fit_proxy(drawn, game.values(drawn), density)
    table = proxy.values((np.arange(32)[:, None] >> np.arange(5) & 1).astype(bool))
    np.testing.assert_allclose(proxy.index, first_differences(table, density), atol=1e-9)


def test_a_proxy_helps_where_coalitions_are_not_complements() -> None:
    game = TableGame(quadratic_game(8, seed=1).table + 0.05 * random_game(8).table)
    truth = semivalue(game, p=0.2).values

    def error(method: str) -> float:
        found = [semivalue(game, p=0.2, method=method, n_evals=2000, seed=seed).values for seed in range(5)]
        return float(np.sqrt(np.mean((np.array(found) - truth) ** 2)))

    assert error("adjusted") < 0.2 * min(error("reuse"), error("one_toggle"))


def test_p_follows_the_number_of_players_to_keep() -> None:
    game = random_game(8)
    assert semivalue(game, n_keep=2).p == 0.25
    assert same(semivalue(game, n_keep=2), semivalue(game, p=0.25))
    with pytest.raises(ConfigError, match="either p"):
        semivalue(game)
    with pytest.raises(ConfigError, match="either p"):
        semivalue(game, p=0.5, n_keep=4)
    with pytest.raises(ConfigError, match="8 players"):
        semivalue(game, n_keep=9)


def test_errors_of_the_response_methods() -> None:
    with pytest.raises(BudgetError, match=r"at least 54 evaluations \(28 with antithetic=False"):
        shapley(random_game(5), method="regression", n_evals=53)
    with pytest.raises(ConfigError, match="0 < p < 1"):
        semivalue(random_game(4), p=1.0, method="reuse")
    with pytest.raises(ConfigError, match="unknown method"):
        banzhaf(random_game(4), method="regression")
