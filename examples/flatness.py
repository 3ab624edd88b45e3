"""Flat minima while pruning: accuracy and sharpness of digits perceptrons that lose units during training.

Networks of the same seed start from the same weights, see the same batches and are pruned by the same schedule and
solver; they differ in what keeps them flat: nothing (mu=0), the K-FAC penalty, weight decay, or SAM.  Differences are
paired over seeds.  Every setting is shown, so that a control can be judged at its best row.

Run: python examples/flatness.py [--quick] [--seeds 5] [--out flatness.json]   (the picture lies beside the JSON file)
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.records import write_json_atomic

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="two seeds, few epochs, three settings: a smoke test")
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--out", type=Path, default=Path("flatness.json"))
args = parser.parse_args()
EPOCHS, SEEDS = (6, 2) if args.quick else (40, args.seeds)
REMOVED = (0.5,) if args.quick else (0.5, 0.8)
SETTINGS = {
    "mu=0": {},
    "mu=0.03": {"flatness": 0.03},
    "mu=0.05": {"flatness": 0.05},
    "weight decay 0.1": {"weight_decay": 0.1},
    "SAM 0.1": {"sharpness_aware": 0.1},
    "SAM 0.3": {"sharpness_aware": 0.3},
}
if args.quick:
    SETTINGS = {name: SETTINGS[name] for name in ("mu=0", "mu=0.03", "SAM 0.1")}


def run(seed: int, removed: float, options: dict[str, float]) -> dict[str, float]:
    """One training run, as a flat row."""
    data = load_split("digits_flat", seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    began = time.process_time()
    report = mp.train_and_prune(
        model, data.train, holdout=data.holdout, budget=mp.Units(1 - removed), epochs=EPOCHS, seed=seed, progress=False,
        **options,
    ).report
    sharp = report.sharpness
    return {
        "seed": seed, "removed": 1 - report.ratio("units"), "accuracy": report.accuracy, "loss": report.loss,
        "train_loss": report.train_loss, "top": sharp.top_eigenvalue, "relative": sharp.relative,
        "norm_scaled": sharp.norm_scaled, "kfac_sum": sharp.kfac_sum, "cpu_seconds": time.process_time() - began,
    }


def paired(rows: list[dict[str, float]], base: list[dict[str, float]], key: str) -> str:
    """Mean difference of accuracies in points, or geometric mean of ratios, with its standard error over seeds."""
    if key == "accuracy":
        d = 100 * np.array([a[key] - b[key] for a, b in zip(rows, base, strict=True)])
        return f"{d.mean():+.2f} ± {d.std(ddof=1) / math.sqrt(len(d)):.2f}"
    logs = np.log([b[key] / a[key] for a, b in zip(rows, base, strict=True)])
    return f"{np.exp(logs.mean()):.2f} (least {np.exp(logs.min()):.2f})"


def table(removed: float, found: dict[str, list[dict[str, float]]]) -> Table:
    """Means over seeds, and paired comparisons with mu=0."""
    out = Table(title=f"{removed:.0%} of the units removed, {SEEDS} seeds, {EPOCHS} epochs")
    for name in ("setting", "accuracy", "- mu=0, points", "eigenvalue", "mu=0 / it", "relative", "mu=0 / it",
                 "K-FAC / true"):
        out.add_column(name, justify="left" if name == "setting" else "right")
    for name, rows in found.items():
        mean = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
        ratio = np.mean([row["kfac_sum"] / row["top"] for row in rows])
        base = found["mu=0"]
        differences = [paired(rows, base, key) if rows is not base else "" for key in ("accuracy", "top", "relative")]
        out.add_row(name, f"{mean['accuracy']:.2%}", differences[0], f"{mean['top']:.2f}", differences[1],
                    f"{mean['relative']:.3f}", differences[2], f"{ratio:.2f}")
    return out


def plot(results: dict[float, dict[str, list[dict[str, float]]]], path: Path) -> None:
    """Accuracy and top eigenvalue over the share of units removed: means and standard deviations over seeds."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, marker in zip(SETTINGS, "osD^v<>", strict=False):
        for axis, key in ((left, "accuracy"), (right, "top")):
            points = [(r, [row[key] for row in results[r][name]]) for r in results]
            mean, spread = [np.mean(v) for _, v in points], [np.std(v) for _, v in points]
            axis.errorbar([r for r, _ in points], mean, spread, marker=marker, capsize=2, label=name)
    left.set(xlabel="share of units removed", ylabel="held-out accuracy")
    right.set(xlabel="share of units removed", ylabel="top Hessian eigenvalue", yscale="log")
    left.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    torch.set_num_threads(1)
    results: dict[float, dict[str, list[dict[str, float]]]] = {}
    for removed in REMOVED:
        results[removed] = {name: [] for name in SETTINGS}
        for seed in range(1, SEEDS + 1):
            for name, options in SETTINGS.items():
                results[removed][name].append(run(seed, removed, options))
        Console(width=130).print(table(removed, results[removed]))
        write_json_atomic(args.out, {f"{r}": found for r, found in results.items()})
    plot(results, args.out.with_suffix(".png"))
