"""``mipprune demo``: train two small networks on scikit-learn's digits, prune each twice, show what came out."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from .datasets import Part, Split, load_split
from .pruning import LossIncrease, Macs, PruneResult, prune
from .records import write_json_atomic

__all__ = ["DigitsCNN", "digits_mlp", "run_demo", "train"]

#: Nats of calibration loss that the task "tolerance" may cost.
TOLERANCE = 0.03


def digits_mlp() -> nn.Module:
    """A 64-128-64-10 multilayer perceptron."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


class DigitsCNN(nn.Module):
    """A stem, a strided convolution, a residual block (all with batch-norm) and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.down, self.bn1 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv1, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn1(self.down(x)))
        y = F.relu(self.bn2(self.conv1(x)))
        x = F.relu(self.bn3(self.conv2(y)) + x)
        return self.fc(x.mean((2, 3)))


MODELS = {"mlp": (digits_mlp, 30), "cnn": (DigitsCNN, 12)}


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int = 0) -> nn.Module:
    """AdamW with a one-cycle schedule, batches of 64; returns the model in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-3)
    batches = -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * batches)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def run_demo(out: Path, quick: bool = False, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """Train, prune, print one table, and write ``result.json``, the plans, the pruned models and a plot to ``out``.

    Each network is pruned for two tasks: ``"tolerance"``, the fewest units whose removal keeps the calibration loss
    within +0.03 nats, and ``"macs50"``, the best network at 50 % of the multiply-adds.  Accuracies are on held-out
    images that neither training nor selection saw.

    Args:
        quick: a third of the training epochs, for smoke tests.

    Returns:
        What ``result.json`` holds.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    out.mkdir(parents=True, exist_ok=True)
    data = load_split("digits", seed)
    selection = (torch.cat([data.train[0], data.calibration[0]]), torch.cat([data.train[1], data.calibration[1]]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small lose time to threads
    try:
        runs, results = _run_all(selection, data, out, epochs_divisor=3 if quick else 1, seed=seed, console=console)
    finally:
        torch.set_num_threads(threads)
    document = {"runs": runs}
    write_json_atomic(out / "result.json", document)
    _plot(results, out / "demo.png")
    console.print(_table(runs))
    console.print(f"written to {out}: result.json, *.plan.json, *.safetensors, demo.png", highlight=False)
    return document


def _run_all(
    selection: Part, data: Split, out: Path, epochs_divisor: int, seed: int, console: Console
) -> tuple[list[dict[str, Any]], dict[str, PruneResult]]:
    """Train and prune every network for both tasks; write plans and models."""
    runs: list[dict[str, Any]] = []
    results: dict[str, PruneResult] = {}
    for name, (make, epochs) in MODELS.items():
        torch.manual_seed(seed)
        begin = time.monotonic()
        model = train(make(), *data.train, epochs=max(1, epochs // epochs_divisor), seed=seed)
        console.print(f"trained {name} in {time.monotonic() - begin:.1f} s", highlight=False)
        for task, result in _prune_both(model, selection, data.holdout, seed).items():
            result.plan.save(out / f"{name}-{task}.plan.json")
            result.save(out / f"{name}-{task}.safetensors")
            runs.append({"model": name, "task": task, **result.report.summary()})
            results[f"{name}, {task}"] = result
    return runs, results


def _prune_both(model: nn.Module, selection: Part, holdout: Part, seed: int) -> dict[str, PruneResult]:
    common: dict[str, Any] = {"holdout": holdout, "seed": seed, "progress": False}
    return {
        "tolerance": prune(model, selection, tolerance=LossIncrease(TOLERANCE), **common),
        "macs50": prune(model, selection, budget=Macs(0.5), **common),
    }


def _table(runs: list[dict[str, Any]]) -> Table:
    table = Table(title="digits, accuracy on held-out images, no gradient step after pruning")
    for name in ("model", "task", "dense", "pruned", "units", "MACs", "params", "objective", "bound", "gap", "seconds"):
        table.add_column(name, justify="left" if name in ("model", "task") else "right")
    for r in runs:
        table.add_row(
            r["model"], r["task"], f"{r['dense_accuracy']:.2%}", f"{r['pruned_accuracy']:.2%}",
            f"{r['units_kept']}/{r['units_total']}", f"{r['macs_ratio']:.1%}", f"{r['params_ratio']:.1%}",
            f"{r['objective']:.4g}", "-" if r["bound"] is None else f"{r['bound']:.4g}",
            "proved" if r["proved"] else "-" if r["gap"] is None else f"{r['gap']:.1%}", f"{r['seconds']:.1f}",
        )
    return table


def _plot(results: dict[str, PruneResult], path: Path) -> None:
    """Kept units per layer of every run, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6), constrained_layout=True)
    for axis, (name, result) in zip(axes.flat, results.items(), strict=True):
        layers = result.report.layers
        names, sizes = [layer.group for layer in layers], [layer.size for layer in layers]
        axis.bar(names, sizes, color="0.85", label="dense")
        bars = axis.bar(names, [layer.kept for layer in layers], color="#0072b2", label="kept")
        axis.bar_label(bars, fontsize=8)
        report = result.report
        axis.set_title(
            f"{name}: {report.ratio('macs'):.0%} MACs, "
            f"{report.dense.accuracy:.1%} → {report.pruned.accuracy:.1%}", fontsize=10,
        )
        axis.set_ylabel("units")
    axes.flat[0].legend(frameon=False)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
    plt.close(figure)
