"""Is a pruned network faster?  Dense against pruned on this machine, timed in pairs.

    python benchmarks/latency.py [--quick] [--batch 64] [--json FILE]

Three digits classifiers (a plain CNN, a small ResNet, a small transformer) are trained and pruned by ``mp.prune``: to
half their multiply-adds, to half with kept widths in multiples of 8, and to 60% of their latency.  Every pruned network
is timed against its dense one by ``mp.compare_latency`` (pairs in random order after a warm-up; one thread, its CPU
time): the ratio is the median over pairs with its 95% interval.  "Table" is what the fitted latency table says about
the same network; its own error is the median over networks that its fit didn't see.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import train
from mipprune.testing.cases import Residual


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Every 2x2 patch of an image is a token."""

    def __init__(self, width: int = 64, heads: int = 8, hidden: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.position = nn.Parameter(torch.randn(16, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def cnn() -> nn.Module:
    """Four convolutions with batch-norm, two linear layers."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 32, 1), (32, 64, 1), (64, 64, 2), (64, 128, 1)):
        layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))


def resnet() -> nn.Module:
    """A stem and four residual blocks."""
    blocks = (Residual(32, 32), Residual(32, 64, 2), Residual(64, 64), Residual(64, 128, 2))
    stem = (nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


NETWORKS = {"cnn": (cnn, 8), "resnet": (resnet, 8), "transformer": (Transformer, 20)}


def measure(name: str, batch: int, quick: bool) -> list[dict[str, Any]]:
    """One row per request."""
    build, epochs = NETWORKS[name]
    data = load_split("digits")
    torch.manual_seed(0)
    model = train(build(), *data.train, epochs=1 if quick else epochs)
    x = data.train[0][:batch]
    graph = mp.trace(model, x)
    table = mp.measure_latency(graph, x, multiple=8, seconds=2 if quick else 30)
    requests: dict[str, dict[str, Any]] = {
        "50% MACs": {"budget": mp.Macs(0.5)},
        "50% MACs, multiples of 8": {"budget": mp.Macs(0.5), "multiple": 8},
        "60% latency, multiples of 8": {"budget": mp.Latency(0.6, table), "multiple": 8},
    }
    rows = []
    for request, options in requests.items():
        begin = time.perf_counter()
        result = mp.prune(model, data.train, holdout=data.holdout, stages=1 if quick else 4, progress=False, **options)
        seconds = time.perf_counter() - begin
        timed = mp.compare_latency(model, result.model, x, seconds=1 if quick else 8)
        counts = graph.costs.counts(result.kept)
        predicted = table.predict(counts)[0] / table.total[0]
        rows.append({
            "network": name, "request": request, "macs": result.report.ratio("macs"),
            "params": result.report.ratio("params"), "table": float(predicted), "table_error": table.fit_error,
            "latency": dataclasses.asdict(timed), "dense_accuracy": result.report.dense.accuracy,
            "pruned_accuracy": result.report.pruned.accuracy, "seconds": seconds,
        })
        print(markdown(rows[-1]), flush=True)
    return rows


def markdown(row: dict[str, Any]) -> str:
    """A line of the table in RESULTS.md."""
    t = row["latency"]
    return (f"| {row['network']} | {row['request']} | {row['macs']:.1%} | {t['dense'] * 1e3:.2f} ms | "
            f"{t['pruned'] * 1e3:.2f} ms | {t['ratio']:.3f} ({t['low']:.3f} to {t['high']:.3f}) | {row['table']:.3f} | "
            f"{row['table_error']:.1%} | {row['dense_accuracy']:.1%} / {row['pruned_accuracy']:.1%} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="little training, short timings: a smoke test")
    parser.add_argument("--batch", type=int, default=64, help="images per forward pass")
    parser.add_argument("--only", choices=[*NETWORKS], help="one network")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, batch {options.batch}\n")
    print("| network | request | MACs | dense | pruned | ratio (95%) | table | table's error | accuracy |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = [row for name in ([options.only] if options.only else NETWORKS)
            for row in measure(name, options.batch, options.quick)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
