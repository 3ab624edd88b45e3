"""Accuracy after pruning at equal multiply-adds: mipprune beside Torch-Pruning, random and magnitude.

    python benchmarks/quality.py [--quick] [--json FILE] [--seeds N] [--peer-seeds N] [--peers FILE]
        [--models cnn,...] [--budgets 0.5] [--refit-only]

Networks, data and training are those of bar.py and, with --models lenet,perceptron, of bar_mnist.py.  Scores and
repairs use the training split, choices between repaired networks the calibration split, accuracy is that of the test
images, which nothing else sees.  The JSON file holds every single run and is written after each network and budget; a
run that is started again with the same file goes on where it stopped, and files of single --models can be run side by
side.

Stages: "one-shot" (as cut), "bn" (batch-norm recalibrated), "refit" (refit and convex head), "lm" (a run of its own,
``mp.prune`` with the second-order repair among the repairs), "finetune" (five epochs of AdamW after the last of these).
Methods: "mipprune" is ``mp.prune`` as it comes; "mipprune selection" the network that it chooses and leaves as cut for
repair=(); "random" and "magnitude" get the closed-form repairs; for "torch-pruning ..." see peers.py.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import bar
import bar_mnist
import numpy as np
import peers
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import InfeasibleError
from mipprune.game import as_data
from mipprune.graph import UnitGraph
from mipprune.pruning.baseline import magnitude_mask
from mipprune.pruning.repairing import Repairer
from mipprune.train import fine_tune

BUDGETS = (0.5, 0.2, 0.1, 0.05)

#: Of five epochs, as in the networks' own training; ours and Torch-Pruning's (peers.py) use the same.
TUNING_RATE = 3e-3

#: (method, stage, accuracy in %, share of multiply-adds, CPU seconds)
Result = tuple[str, str, float, float, float]
#: (network, seed, budget) -> its results
Runs = dict[tuple[str, int, float], list[Result]]


def staged(
    method: str, model: nn.Module, graph: UnitGraph, kept: np.ndarray, data: bar.Data, ratio: float, seconds: float
) -> Iterator[Result]:
    """Accuracy of the mask's network after each repair."""
    repairer = Repairer(graph, as_data(data.train, graph), as_data(data.calibration, graph), ())
    for stage, names in (("one-shot", ()), ("bn", ("bn",)), ("refit", ("bn", "refit", "head"))):
        begin = time.process_time()
        small, _ = repairer.deploy(kept, names)
        yield method, stage, bar.accuracy(small, data.test), ratio, seconds + time.process_time() - begin


def random_mask(graph: UnitGraph, limit: int, seed: int) -> np.ndarray:
    """The shares of the magnitude mask, other units."""
    generator = np.random.default_rng(seed)
    counts = graph.costs.counts(magnitude_mask(graph, {"macs": limit}, np.zeros(graph.n_units, bool), 1))
    kept = np.zeros(graph.n_units, dtype=bool)
    for group, count in zip(graph.groups, counts, strict=True):
        kept[group.offset + generator.permutation(group.size)[:count]] = True
    return kept


def ours(model: nn.Module, graph: UnitGraph, data: bar.Data, budget: float, lm: bool) -> Iterator[Result]:
    """``mp.prune`` as it comes, with the second-order repair, fine-tuned, and for networks that are left as cut."""
    options = {"budget": mp.Macs(budget), "holdout": data.test, "validation": data.calibration, "progress": False}
    result = mp.prune(model, data.train, **options)
    graph = mp.allow_empty(graph, data.train[0][:1])  # as prune may have done
    yield from staged("mipprune", model, graph, result.kept, data, result.report.ratio("macs"),
                      result.report.cpu_seconds)
    if lm:
        result = mp.prune(model, data.train, repair=("bn", "refit", "head", "lm"), **options)
        yield ("mipprune", "lm", bar.accuracy(result.model, data.test), result.report.ratio("macs"),
               result.report.cpu_seconds)
    begin = time.process_time()
    small = fine_tune(
        result.model, data.train, validation=data.calibration, teacher=model, epochs=5, lr=TUNING_RATE, progress=False
    ).model
    yield ("mipprune", "finetune", bar.accuracy(small, data.test), result.report.ratio("macs"),
           time.process_time() - begin)
    if budget < 0.2:
        return  # as cut, nothing is left to compare
    cut = mp.prune(model, data.train, repair=(), **options)
    yield ("mipprune selection", "one-shot", bar.accuracy(cut.model, data.test), cut.report.ratio("macs"),
           cut.report.cpu_seconds)


def refitted(model: nn.Module, data: bar.Data, budget: float) -> Iterator[Result]:
    """Only what ``mp.prune`` hands back and the magnitude baseline of its report, which has the same repairs."""
    result = mp.prune(model, data.train, budget=mp.Macs(budget), holdout=data.test, validation=data.calibration,
                      progress=False)
    report = result.report
    yield "mipprune", "refit", bar.accuracy(result.model, data.test), report.ratio("macs"), report.cpu_seconds
    yield "magnitude", "refit", 100 * report.baseline.accuracy, budget, 0.0


def simple(model: nn.Module, graph: UnitGraph, data: bar.Data, budget: float, seed: int) -> Iterator[Result]:
    """Random and largest units, the same share of every group, with our repairs."""
    limit = int(budget * graph.macs())
    masks = {"random": random_mask(graph, limit, seed),
             "magnitude": magnitude_mask(graph, {"macs": limit}, np.zeros(graph.n_units, bool), 1)}
    for method, kept in masks.items():
        yield from staged(method, model, graph, kept, data, graph.macs(kept) / graph.macs(), 0.0)


def main() -> None:
    """Measure, print, and write the JSON after every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two budgets, two criteria")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peer-seeds", type=int, default=None, help="seeds for Torch-Pruning; all by default")
    parser.add_argument("--peers", type=Path, help="file of peers.py's rows: read, and added to")
    parser.add_argument("--models", default="cnn,resnet,transformer")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--no-lm", action="store_true", help="leave the second-order repair out")
    parser.add_argument("--refit-only", action="store_true", help="only mp.prune as it comes, and magnitude")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    seeds = 1 if arguments.quick else arguments.seeds
    peer_seeds = seeds if arguments.peer_seeds is None else arguments.peer_seeds
    budgets = (0.5, 0.1) if arguments.quick else tuple(float(b) for b in arguments.budgets.split(","))
    kinds = ("l2", "taylor") if arguments.quick else peers.KINDS
    runs = _stored(arguments.json)
    digits = bar.digits()
    for seed in range(seeds):
        for name in arguments.models.split(","):
            wanted = [1.0, *budgets, *([-1.0] if seed < peer_seeds else [])]
            if all((name, seed, budget) in runs for budget in wanted):
                continue
            larger = name in bar_mnist.NETWORKS
            data = bar_mnist.mnist() if larger else digits
            model, seconds = (bar_mnist if larger else bar).trained(name, data, seed)
            runs[name, seed, 1.0] = [("dense", "one-shot", bar.accuracy(model, data.test), 1.0, seconds)]
            graph = mp.trace(model, data.train[0][:1])
            for budget in budgets:
                if (name, seed, budget) not in runs:
                    parts = [refitted(model, data, budget)] if arguments.refit_only else [
                        ours(model, graph, data, budget, not arguments.no_lm), simple(model, graph, data, budget, seed)
                    ]
                    try:
                        runs[name, seed, budget] = [result for part in parts for result in part]
                    except InfeasibleError:  # one unit a layer costs more
                        runs[name, seed, budget] = []
                    _write(arguments.json, runs)
            if seed < peer_seeds:
                for row in peers.compare(name, model, data, seed, kinds, budgets, arguments.peers):
                    if row["stage"] != "finetune-low":
                        result = row["method"], row["stage"], row["accuracy"], row["macs_ratio"], row["cpu_seconds"]
                        runs[name, seed, row["budget"]].append(result)
                runs[name, seed, -1.0] = []  # the peers are done
            _write(arguments.json, runs)
            _show(runs, name, seed)
    _write(arguments.json, runs)


def _rows(runs: Runs) -> list[dict[str, object]]:
    found: dict[tuple[str, float, str, str], list[tuple[float, float, float]]] = {}
    for (name, _, budget), results in runs.items():
        for method, stage, *figures in results:
            found.setdefault((name, budget, method, stage), []).append(tuple(figures))  # type: ignore[arg-type]
    rows: list[dict[str, object]] = []
    for (name, budget, method, stage), values in found.items():
        accuracy, ratio, cpu = np.array(values).T
        rows.append({
            "model": name, "budget": budget, "method": method, "stage": stage, "mean": float(accuracy.mean()),
            "sd": float(accuracy.std(ddof=1)) if len(accuracy) > 1 else 0.0, "seeds": len(accuracy),
            "macs_ratio": float(ratio.mean()), "macs_ratio_min": float(ratio.min()),
            "macs_ratio_max": float(ratio.max()),
            "cpu_seconds": float(cpu.mean()), "values": accuracy.tolist(),
        })
    return rows


def _stored(path: Path | None) -> Runs:
    if path is None or not path.exists():
        return {}
    return {(run["model"], run["seed"], run["budget"]): [tuple(r) for r in run["results"]]
            for run in json.loads(path.read_text()).get("runs", [])}


def _write(path: Path | None, runs: Runs) -> None:
    if path is None:
        return
    versions = {p: importlib.metadata.version(p) for p in ("torch", "numpy", "torch-pruning")}
    about = {"date": datetime.date.today().isoformat(), "python": platform.python_version(), "versions": versions}
    single = [{"model": name, "seed": seed, "budget": budget, "results": results}
              for (name, seed, budget), results in runs.items()]
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps({"about": about, "rows": _rows(runs), "runs": single}, indent=1) + "\n")
    fresh.replace(path)


def _show(runs: Runs, name: str, seed: int) -> None:
    print(f"{name}, seeds up to {seed}")
    for row in _rows(runs):
        if row["model"] == name:
            print(f"  {row['budget']:.0%} {row['method']}, {row['stage']}: {row['mean']:.2f} +- {row['sd']:.2f} "
                  f"at {row['macs_ratio']:.3f}, {row['cpu_seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
