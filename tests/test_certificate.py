"""Certificates: what passes the check lies below the enumerated optimum, and a changed file doesn't pass."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipprune.costs import CostModel
from mipprune.errors import CertificateError, DataError, InfeasibleError, SolverError
from mipprune.solver import (
    Certificate,
    Evaluation,
    Problem,
    Solution,
    certify,
    check_certificate,
    load_certificate,
    load_problem,
    save_certificate,
    save_problem,
    solve,
)
from mipprune.solver.arithmetic import Ball, Dyadic
from mipprune.solver.certificate import Leaf
from mipprune.solver.certificate_bound import LeafBounds
from mipprune.solver.certificate_start import smooth_points
from mipprune.solver.least_sum import least_sum
from mipprune.solver.minorants import minorant_rule
from mipprune.surrogates import Additive, LinearHead, Quadratic, Surrogate
from mipprune.testing.problems import N_KINDS, random_problem, random_surrogate


def solved(seed: int, *, wide: bool = True) -> tuple[Problem, Solution] | None:
    try:
        problem = random_problem(seed, wide=wide)
        return problem, solve(problem, "brute")
    except InfeasibleError:
        return None


def first_solved(seed: int) -> tuple[Problem, Solution]:
    return next(found for found in map(solved, itertools.count(seed)) if found is not None)


def closed(problem: Problem, objective: float, bound: float) -> bool:
    return bound > objective - (1e-6 * max(1e-3, abs(objective)) if problem.objective == "drop" else 0.5)


def test_a_checker_that_sums_in_another_order_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = Quadratic(np.linspace(0.01, 0.1, 12), 0.3 * np.eye(12))
    problem = Problem.minimize_drop(surrogate, budgets={"units": 5})
    certificate = solve(problem, certificate=True).certificate
    assert certificate is not None
    here = LeafBounds.bound
    monkeypatch.setattr(LeafBounds, "bound", lambda *args: np.nextafter(float(here(*args)), -np.inf))
    assert check_certificate(problem, certificate).bound >= certificate.bound


@pytest.mark.parametrize("batch", range(7))
def test_certified_bounds_lie_below_the_enumerated_optimum(batch: int) -> None:
    checked = 0
    for seed in range(50 * batch, 50 * batch + 50):
        found = solved(seed)
        if found is None:
            continue
        problem, optimum = found
        certificate = certify(problem, optimum).certificate
        assert certificate is not None
        report = check_certificate(problem, certificate)
        exact = check_certificate(problem, certificate, exact=True)
        assert certificate.bound <= report.bound <= exact.bound, seed  # float64 errs on the safe side
        assert exact.bound <= optimum.objective + 1e-9, seed
        assert closed(problem, optimum.objective, certificate.bound), seed  # so small that the proof is complete
        checked += 1
    assert checked >= 30  # 7 batches: over 200 instances


def test_a_root_certificate_is_weaker_but_right() -> None:
    weaker = 0
    for seed in range(60):
        found = solved(seed)
        if found is None:
            continue
        problem, optimum = found
        certificate = certify(problem, optimum, max_leaves=1).certificate
        assert certificate is not None
        assert certificate.kind == "root"
        bound = check_certificate(problem, certificate, exact=True).bound
        assert bound <= optimum.objective + 1e-9
        weaker += not closed(problem, optimum.objective, bound)
    assert weaker > 5  # else the test above says nothing about trees


def lagrangian(problem: Problem, leaf: Leaf, kept: np.ndarray, evaluation: Evaluation) -> float:
    """The Lagrangian of a mask, ``inf`` if its counts aren't allowed."""
    if problem.count_violations(problem.costs.counts(kept)[None])[0]:
        return np.inf
    value = evaluation.objective + sum(
        leaf.budgets[name] * (evaluation.costs[name] - limit) for name, limit in problem.budgets.items()
    )
    if problem.max_drop is not None:
        value += leaf.drop * (evaluation.drop - problem.drop_limit)
    return value + float(leaf.forbidden @ (1 - (problem.forbidden != kept).sum(1)))


def test_any_multipliers_give_a_bound() -> None:
    """The check doesn't rely on good multipliers: random ones, in any leaf, stay below every mask of that leaf."""
    rng = np.random.default_rng(0)
    compared = linear = 0
    for seed in [*range(60), *range(60, 420, 6)]:
        found = solved(seed)
        if found is None:
            continue
        problem = found[0]
        n, terms = problem.n_units, problem.surrogate.n_terms
        points = rng.random((2, n))
        share = np.round(rng.random(terms) * 2**10) / 2**10
        uses = problem.objective == "drop" or problem.max_drop is not None
        leaf = Leaf(
            objective=1.0,
            drop=float(rng.exponential()) if problem.max_drop is not None else 0.0,
            budgets={name: float(rng.exponential(0.1)) for name in problem.budgets},
            forbidden=rng.exponential(size=len(problem.forbidden)),
            point=np.repeat([0, 1], terms if uses else 0),
            term=np.tile(np.arange(terms if uses else 0), 2),
            share=np.concatenate([share, 1 - share]) if uses else np.zeros(0),
        )
        keep, remove = problem.keep.copy(), problem.remove.copy()
        for unit in rng.permutation(np.flatnonzero(~(keep | remove)))[: n // 3]:
            (keep if rng.random() < 0.5 else remove)[unit] = True
        masks = np.array(list(itertools.product([False, True], repeat=n)))
        inside = masks[(masks[:, keep].all(1)) & ~masks[:, remove].any(1)]
        evaluations = [problem.evaluate(mask) for mask in inside]
        values = [e.objective for e in evaluations if e.feasible]
        least = min((lagrangian(problem, leaf, *pair) for pair in zip(inside, evaluations)), default=np.inf)
        for arithmetic in (Ball, Dyadic):
            bound = LeafBounds(problem, points, arithmetic).bound(leaf, keep, remove)
            if problem.surrogate.is_linear and problem.objective == "drop":
                assert bound == pytest.approx(least, abs=1e-9), seed  # nothing is relaxed
                linear += arithmetic is Ball and len(problem.forbidden) > 0
            else:
                assert bound <= least + 1.0  # whole numbers are rounded up
            if values:
                assert bound <= min(values) + 1e-9, (seed, arithmetic)
                compared += 1
    assert compared > 40
    assert linear > 3


# -- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", range(N_KINDS))
def test_minorants_lie_below_their_terms_and_touch_them(kind: int) -> None:
    rng = np.random.default_rng(kind)
    surrogate = random_surrogate(rng, 6, kind)
    terms = np.arange(surrogate.n_terms)
    others = [*rng.random((20, 6)), *(rng.random((20, 6)) < 0.5).astype(float)]
    for z in (*rng.random((4, 6)), np.zeros(6), np.ones(6)):
        ball = minorant_rule(surrogate, Ball).below(z, terms)
        exact = minorant_rule(surrogate, Dyadic).below(z, terms)
        for term in terms:
            constant, slope = exact[0][term].scalar(), [exact[1][term, i].scalar() for i in range(6)]
            rough = ball[0][term].scalar()
            assert 0 <= constant - rough < 1e-9  # the ball's lower end is below, and near
            for other in others:
                below = constant + sum(s * Fraction(v) for s, v in zip(slope, other.tolist(), strict=True))
                assert float(below) <= surrogate.terms(other)[0][term] + 1e-12
            touch = constant + sum(s * Fraction(v) for s, v in zip(slope, z.tolist(), strict=True))
            assert float(touch) == pytest.approx(surrogate.terms(z)[0][term], abs=1e-9)


def test_balls_hold_the_exact_results() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(4, 30)) * 10.0 ** rng.integers(-8, 9, (4, 30)) for _ in range(2))
    both = {}
    for arithmetic in (Ball, Dyadic):
        x, y = arithmetic.of(a), arithmetic.of(np.ascontiguousarray(b.T))
        product = x @ y
        entries = [product[i, j] for i in range(4) for j in range(4)]
        both[arithmetic] = [*entries, product.sum(), (x * arithmetic.of(b)).sum(), x.reshape(-1).cumsum()[97],
                            x.sum(0).sum(),
                            product[0, 1] - product[1, 0], x[2, 3].over(7)]
    for ball, exact in zip(both[Ball], both[Dyadic], strict=True):
        true = exact.scalar()
        mid, rad = Fraction(float(ball.mid)), Fraction(float(ball.rad))
        assert mid - rad <= true + Fraction(1, 2**90)
        assert true <= mid + rad
        assert rad <= abs(mid) * Fraction(1, 10**3) + Fraction(1, 10**3)


def test_logarithms_are_bounded_from_above() -> None:
    values = np.random.default_rng(2).random(200)
    logs = Dyadic.logs_above(values)
    for value, rough, fine in zip(values, Ball.logs_above(values).mid, logs.ints, strict=True):
        assert Fraction(int(fine), 1 << logs.shift) <= Fraction(rough)
        assert rough == pytest.approx(np.log(value), abs=1e-13)
    rows = np.array([[0.0, -800.0, 3.0], [-50.0, -50.0, -50.0]])
    exact, rough = Dyadic.of(rows).logsumexp_above(), Ball.of(rows).logsumexp_above()
    for i, row in enumerate(rows):
        assert exact[i].scalar() <= Fraction(rough.mid[i])
        assert rough.mid[i] == pytest.approx(np.logaddexp.reduce(row), abs=1e-12)
        assert float(exact[i].scalar()) >= np.logaddexp.reduce(row) - 1e-14


@pytest.mark.parametrize("arithmetic", [Ball, Dyadic])
def test_least_sums_are_enumerated_minima(arithmetic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for trial in range(30):
        sizes = rng.integers(1, 5, 5).tolist()
        scopes = [(v,) for v in range(5)] + [p for p in itertools.combinations(range(5), 2) if rng.random() < 0.5]
        tables = [rng.integers(-9, 10, [sizes[v] for v in scope]).astype(float) for scope in scopes]
        true = min(
            sum(table[tuple(x[v] for v in scope)] for scope, table in zip(scopes, tables, strict=True))
            for x in itertools.product(*map(range, sizes))
        )
        factors = [(scope, arithmetic.of(table)) for scope, table in zip(scopes, tables, strict=True)]
        assert float(least_sum(sizes, factors, arithmetic).scalar()) == pytest.approx(true), trial
        with monkeypatch.context() as patch:
            patch.setattr("mipprune.solver.least_sum.MAX_ENTRIES", 6)
            assert float(least_sum(sizes, factors, arithmetic).scalar()) <= true + 1e-9


# -- files, and what is done to them -------------------------------------------------------------------------------


def example() -> tuple[Problem, Certificate]:
    rng = np.random.default_rng(7)
    weight = 2 * rng.normal(size=(3, 9))
    activations = rng.random((25, 9))
    surrogate = LinearHead(activations, weight, 0.1 * weight[:, 0], (activations @ weight.T).argmax(1), 3)
    problem = Problem.build(surrogate, "units", max_drop=0.02, budgets={"units": 8}, forbidden=rng.random((2, 9)) < 0.5)
    certificate = certify(problem, solve(problem, "brute")).certificate
    assert certificate is not None
    assert len(certificate.leaves) > 1
    return problem, certificate


def leaves_of(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all plain values."""
    if isinstance(data, dict):
        return [found for key, value in data.items() for found in leaves_of(value, (*path, key))]
    if isinstance(data, list) and data:
        picks = {0, len(data) // 2, len(data) - 1}
        return [found for key in sorted(picks) for found in leaves_of(data[key], (*path, key))]
    return [path]


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if abs(value) < 1e9 else 0
    if isinstance(value, str):
        return {"float64": "float32", "bool": "int64", "int64": "int32"}.get(value, "0" * 64)
    return 1


def test_a_change_of_any_field_is_rejected(tmp_path: Path) -> None:
    problem, certificate = example()
    path = tmp_path / "c.json"
    save_certificate(path, problem, certificate)
    data = json.loads(path.read_text())
    paths = leaves_of(data)
    assert {p[:2] for p in paths} >= {("certificate", f.name) for f in dataclasses.fields(Certificate)}
    for where in paths:
        forged = copy.deepcopy(data)
        inner = forged
        for key in where[:-1]:
            inner = inner[key]
        if inner[where[-1]] == []:
            continue
        inner[where[-1]] = changed(inner[where[-1]])
        path.write_text(json.dumps(forged))
        try:
            read = load_certificate(path)
        except (CertificateError, InfeasibleError):
            continue
        if read == (problem, certificate):
            assert where[-1] == "dtype", where  # the same numbers in another type
            continue
        with pytest.raises(CertificateError):
            check_certificate(*read)
    for key in ("problem", "certificate"):
        path.write_text(json.dumps({k: v for k, v in data.items() if k != key}))
        with pytest.raises(CertificateError, match="not a certificate"):
            load_certificate(path)


def reseal(certificate: Certificate, **changes: Any) -> Certificate:
    return dataclasses.replace(certificate, **changes, seal="")


def test_a_forger_who_renews_the_seal_is_rejected() -> None:
    problem, good = example()
    assert check_certificate(problem, good).claimed == good.bound
    leaf = good.leaves[0]
    split = good.tree.tolist()
    worse = ~good.kept
    forgeries = {
        "another problem": {"problem_digest": "0" * 64},
        "claims the bound": {"bound": good.bound + 1},
        "objective is": {"objective": good.objective - 1},
        "isn't feasible": {"kept": worse},
        "cut short": {"tree": np.array(split[:-1])},
        "is cut short": {"tree": np.array(split[:-1]), "leaves": good.leaves[:-1]},
        "nodes left over": {"tree": np.array([*split, -1])},
        "more leaves than": {"leaves": good.leaves[:-1]},
        "isn't free": {"tree": np.array([split[0], split[0], *split[2:]])},
        "outside the box": {"points": good.points + 1.0},
        "negative": {"leaves": (dataclasses.replace(leaf, drop=-1.0), *good.leaves[1:])},
        "not finite": {"leaves": (dataclasses.replace(leaf, drop=float("nan")), *good.leaves[1:])},
        "add up": {"leaves": (dataclasses.replace(leaf, share=0 * leaf.share), *good.leaves[1:])},
        "multiples of": {"leaves": (dataclasses.replace(leaf, share=leaf.share + 1e-14), *good.leaves[1:])},
        "doesn't exist": {"leaves": (dataclasses.replace(leaf, point=leaf.point + 99), *good.leaves[1:])},
        "weight must be": {"leaves": (dataclasses.replace(leaf, objective=2.0), *good.leaves[1:])},
        "doesn't have": {"leaves": (dataclasses.replace(leaf, budgets={"macs": 1.0}), *good.leaves[1:])},
        "for 9 units": {"kept": good.kept[:-1]},
    }
    for message, change in forgeries.items():
        with pytest.raises(CertificateError, match=message):
            check_certificate(problem, reseal(good, **change))
    # a refutation that isn't one, and a tree that drops half of the masks by claiming the rest
    idle = dataclasses.replace(leaf, objective=0.0, drop=0.0, budgets={}, forbidden=0 * leaf.forbidden)
    for change in ({"leaves": (idle, *good.leaves[1:])}, {"tree": np.array([-1]), "leaves": (good.leaves[-1],)}):
        with pytest.raises(CertificateError, match="claims the bound"):
            check_certificate(problem, reseal(good, **change))


def test_a_certificate_of_a_solution_comes_back_from_its_file(tmp_path: Path) -> None:
    problem, certificate = example()
    save_certificate(tmp_path / "c.json", problem, certificate)
    again, read = load_certificate(tmp_path / "c.json")
    assert (again, read) == (problem, certificate)
    solution = solve(problem, "brute", certificate=True)
    assert solution.certificate == certificate
    assert "certified bound" in str(solution)
    assert Solution.from_dict(solution.to_dict()) == solution
    with pytest.raises(CertificateError, match="isn't feasible"):
        certify(problem, dataclasses.replace(solution, kept=~solution.kept))


def test_stored_problems_come_back_equal(tmp_path: Path) -> None:
    for seed in range(12):
        try:
            problem = random_problem(seed, wide=True)
        except InfeasibleError:
            continue
        for name in ("p.json", "p.npz"):
            save_problem(tmp_path / name, problem)
            again = load_problem(tmp_path / name)
            assert again == problem
            assert again.digest == problem.digest
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no zip")
    (tmp_path / "bad.json").write_text("[1]")
    for name in ("bad.npz", "bad.json"):
        with pytest.raises(DataError, match=name):
            load_problem(tmp_path / name)


def test_the_digest_sees_every_number() -> None:
    importance = np.arange(5.0)
    problem = Problem.minimize_units(Additive(importance), max_drop=2.0)
    assert problem.digest == Problem.minimize_units(Additive(importance), max_drop=2.0).digest
    others = [
        Problem.minimize_units(Additive(importance + 1e-16), max_drop=2.0),
        Problem.minimize_units(Additive(importance), max_drop=np.nextafter(2.0, 3.0)),
        Problem.minimize_units(Additive(importance), max_drop=2.0, keep=[1]),
        Problem.minimize_units(Additive(importance), max_drop=2.0, budgets={"units": 5}),
        Problem.minimize_units(Additive(importance), max_drop=2.0, costs=CostModel.units_only(5, "fc")),
    ]
    assert len({problem.digest, *(other.digest for other in others)}) == 6


def test_a_stored_problem_is_solved_and_certified_without_torch(tmp_path: Path) -> None:
    problem, solution = first_solved(4)
    save_problem(tmp_path / "p.npz", problem)
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # importing it is an error from here on
        "import mipprune as mp\n"
        "problem = mp.solver.load_problem('p.npz')\n"
        "solution = mp.solve(problem, 'highs', certificate=True)\n"
        "mp.solver.save_certificate('c.json', problem, solution.certificate)\n"
        "print(solution.objective)\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(solution.objective, abs=1e-6)
    assert closed(problem, solution.objective, check_certificate(*load_certificate(tmp_path / "c.json")).bound)


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign(Surrogate):
    """A surrogate of a class that the checker has no rule for."""

    inner: Quadratic

    linear = property(lambda self: self.inner.linear)
    n_terms = property(lambda self: self.inner.n_terms)

    def terms(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.inner.terms(z)

    def drops(self, z: np.ndarray) -> np.ndarray:
        return self.inner.drops(z)


def test_a_foreign_surrogate_is_checked_on_trust_and_says_so() -> None:
    rng = np.random.default_rng(0)
    problem = Problem.minimize_drop(Foreign(Quadratic(rng.random(8), rng.normal(size=(3, 8)))), budgets={"units": 4})
    solution = solve(problem, "brute", certificate=True)
    assert solution.certificate is not None
    report = check_certificate(problem, solution.certificate)
    assert not report.proves
    assert report.bound <= solution.objective
    with pytest.raises(SolverError, match="register_minorant"):
        check_certificate(problem, solution.certificate, exact=True)


def test_smooth_points_give_the_relaxations_bound_at_once() -> None:
    """The tangent at the minimiser of the smooth Lagrangian makes the root's bound, before any linear program."""
    rng = np.random.default_rng(5)
    activations, weight = rng.random((80, 30)), rng.normal(size=(4, 30))
    head = LinearHead(activations, weight, np.zeros(4), (activations @ weight.T).argmax(1), 4)
    for problem in (
        Problem.minimize_units(head, max_drop=0.05),
        Problem.minimize_drop(Quadratic(rng.random(30), rng.normal(size=(12, 30))), budgets={"units": 14}),
    ):
        solution = solve(problem, "scip")
        z = list(smooth_points(problem, solution.kept, lambda: True))[-1]
        value, gradient = problem.surrogate.drop_and_gradient(z)
        if problem.objective == "drop":
            assert z.sum() == pytest.approx(16, abs=0.5)
            order = np.sort(gradient)[:16]
            bound = value - gradient @ z + order.sum()  # the tangent's least value under the budget
        else:
            assert value == pytest.approx(0.05, abs=0.005)
            prices = gradient[(z > 1e-6) & (z < 1 - 1e-6)]  # units that are neither kept nor removed cost the same
            assert np.ptp(prices) < 1e-3 * prices.mean()
            assert np.ceil((1 - z).sum() - 0.05) <= solution.objective
        certificate = certify(problem, solution, max_leaves=1).certificate
        assert certificate is not None
        assert check_certificate(problem, certificate, exact=True).bound >= (
            bound - 1e-6 if problem.objective == "drop" else np.ceil((1 - z).sum() - 0.05)
        )
    linear = Problem.minimize_units(Additive(np.ones(30)), max_drop=3.0)
    assert list(smooth_points(linear, np.ones(30, dtype=bool), lambda: True)) == []
