"""Bound beside measured gap over keep rate, depth, width and kind of network, on digits: tables and a plot.

Neurons (T1, T2, T5) and single weights (T3, T4, T6).  Run: python examples/bounds.py [--quick] [--out bounds.json]
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import DigitsCNN
from mipprune.records import write_json_atomic

SAMPLES = 64
WEIGHT_MASKS, WEIGHT_SAMPLES, WEIGHT_KEEPS = 40, 32, (0.3, 0.5, 0.7, 0.8, 0.9)
SHOWN = ("64-128-10", "64-128-64-10", "cnn", "residual")


def network(kind: str, epochs: int, seed: int = 0) -> nn.Module:
    """A network for digits, trained with weight decay (not at all for no epochs).

    "64-128-10" is a perceptron with 128 hidden units, "cnn" has two convolutions, "residual" is the demo's network.
    """
    torch.manual_seed(seed)
    if kind == "residual":
        model: nn.Module = DigitsCNN()
    elif kind == "cnn":
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(24, 10),
        )
    else:
        widths = [int(width) for width in kind.split("-")]
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*layers[:-1])
    x, y = load_split(dataset(kind)).train
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()


def dataset(kind: str) -> str:
    """The digits as rows for perceptrons, as images for convolutions."""
    return "digits" if kind in ("cnn", "residual") else "digits_flat"


def row(kind: str, keep: float, epochs: int, n_masks: int) -> dict[str, float]:
    """Bounds and measured gaps (means over samples) at one keep rate.

    "least": no bound that is linear in the mask can be less loose, as its coefficients are at least the gaps of single
    units.
    """
    model = network(kind, epochs)
    x, y = load_split(dataset(kind)).calibration
    data = x[:SAMPLES], y[:SAMPLES]
    graph = mp.trace(model, x[:1])
    gap = mp.bounds.neuron_gap(graph, data)
    found = mp.bounds.validate_neurons(graph, data, keep=keep, n_masks=n_masks, gap=gap)
    kept = np.random.default_rng(0).random((n_masks, graph.n_units)) < keep
    real = mp.bounds.measured_gaps(graph, data[0], kept)
    rms = np.sqrt((real**2).mean(1))
    alone = mp.bounds.measured_gaps(graph, data[0], ~np.eye(graph.n_units, dtype=bool))
    linear = (~kept).astype(np.float64) @ alone
    random = mp.bounds.random_pruning(graph, data, keep=keep).rms
    sampled = mp.bounds.sampled_pruning(graph, data, keep=keep, seed=1).values
    usual = np.quantile(real, 0.95, axis=0)
    return {
        "least": float(np.median(linear[real > 0] / real[real > 0])), "violations": found.violations,
        "sampled": float(np.median(sampled[usual > 0] / usual[usual > 0])), "coverage": found.lowest_coverage,
        "T1": found.loose_linear, "T2": found.loose_quadratic, "T5": found.loose_random,
        "measured": float(rms.mean()), "bound": float(gap.quadratic(kept).mean()), "random": random,
    }


def weight_rows(kind: str, epochs: int, n_masks: int) -> dict[str, dict[str, float]]:
    """Looseness of the bounds for removed weights, by keep rate."""
    model = network(kind, epochs)
    x, y = load_split(dataset(kind)).calibration
    data = x[:WEIGHT_SAMPLES], y[:WEIGHT_SAMPLES]
    found = {keep: mp.bounds.validate_weights(model, data, keep=keep, n_masks=n_masks) for keep in WEIGHT_KEEPS}
    return {str(keep): {key: float(value) for key, value in each.to_dict().items() if key != "record"}
            for keep, each in found.items()}


def main() -> None:
    """Run the grids, print and store their tables, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bounds.json"))
    parser.add_argument("--quick", action="store_true", help="few masks, no convolutions: figures mean nothing")
    args = parser.parse_args()
    out = args.out
    torch.set_num_threads(1)
    n_masks, epochs, n_weight_masks = (20, 1, 3) if args.quick else (300, 15, WEIGHT_MASKS)
    shown = SHOWN[:2] if args.quick else SHOWN
    deep = {depth: "-".join(["64"] * (depth + 1) + ["10"]) for depth in (1, 2, 3, 4)}
    grids = {
        "keep rate": {keep: (deep[1], keep, epochs) for keep in (0.5, 0.7, 0.8, 0.9, 0.95)},
        "hidden layers": {depth: (deep[depth], 0.8, epochs) for depth in deep},
        "width": {width: (f"64-{width}-{width}-10", 0.8, epochs) for width in (16, 32, 64, 128)},
        "hidden layers, untrained": {depth: (deep[depth], 0.8, 0) for depth in deep},
        "network, keep": {f"{kind}, {keep}": (kind, keep, epochs) for kind in shown for keep in (0.5, 0.8, 0.95)},
    }
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name, grid in grids.items():
        print(f"| {name} | T1 | least linear | T2 | T5 | sampled | violations | lowest coverage |")
        print("|---|---|---|---|---|---|---|---|")
        results[name] = {}
        for key, cell in grid.items():
            results[name][str(key)] = r = row(*cell, n_masks)
            loose = f"{r['T1']:.1f} | {r['least']:.1f} | {r['T2']:.2f} | {r['T5']:.1f} | {r['sampled']:.2f}"
            print(f"| {key} | {loose} | {r['violations']} | {r['coverage']:.2f} |", flush=True)
    print("| network | keep | T3 | T4 | T4, magnitude | T6 | violations | lowest coverage |")
    print("|---|---|---|---|---|---|---|---|")
    weights: dict[str, dict[str, dict[str, float]]] = {}
    for kind, n in itertools.product((*(deep[depth] for depth in (1, 2, 3)), *shown), (epochs, 0)):
        name = f"{kind} {'trained' if n else 'untrained'}"
        weights[name] = weight_rows(kind, n, n_weight_masks)
        for keep, r in weights[name].items():
            loose = [r["loose_" + key] for key in ("any", "known", "magnitude", "rescaled")]
            cells = " | ".join(f"{value:.{0 if value >= 100 else 1}f}" for value in loose)
            print(f"| {name} | {keep} | {cells} | {r['violations']:.0f} | {r['lowest_coverage']:.2f} |", flush=True)
    write_json_atomic(out, {**results, "weights": weights})
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, found) in zip(figure.subplots(1, 4), results.items(), strict=False):  # the last is a table alone
        # colours of Okabe and Ito, and markers, so that no one needs to tell colours apart
        styles = (("measured", "measured", "#000000", "o"), ("bound", "bound T2", "#0072B2", "s"),
                  ("random", "bound T5, 95%", "#D55E00", "^"))
        for key, label, colour, marker in styles:
            places, heights = [float(k) for k in found], [r[key] for r in found.values()]
            axis.plot(places, heights, color=colour, marker=marker, label=label)
        axis.set(xlabel=name, yscale="log", ylabel="rms gap of the logits")
    axis.legend(fontsize=7, frameon=False)
    figure.savefig(out.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
