"""How far the network itself inside the program goes: kept units, bound and time by size, formulation and solver.

Run: OMP_NUM_THREADS=1 python benchmarks/relu.py [--quick] [--json FILE]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import train
from mipprune.records import write_json_atomic

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="two seconds a solve, short training")
parser.add_argument("--json", type=Path, help="write the rows to this file")
options = parser.parse_args()
time_limit, epochs = (2.0, 5) if options.quick else (30.0, 40)


def perceptron(*hidden: int) -> nn.Module:
    """Flattened digits to ten classes through hidden layers of these widths."""
    widths = (64, *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in zip(widths, hidden):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


def convolutions() -> nn.Module:
    """Two convolutions with batch-norm, average and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(5, 6, 2), nn.BatchNorm2d(6),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 10),
    )


CASES: dict[str, tuple[Any, int, dict[str, Any]]] = {  # network, images per class, settings
    "perceptron 9-6": (lambda: perceptron(9, 6), 1, {}),
    "perceptron 9-6, 2 more may miss": (lambda: perceptron(9, 6), 1, {"more": 2}),
    "convolutions 5-6": (convolutions, 1, {}),
    "perceptron 24-16": (lambda: perceptron(24, 16), 1, {}),
    "perceptron 128-64": (lambda: perceptron(128, 64), 1, {}),
    "perceptron 128-64, 50 images": (lambda: perceptron(128, 64), 5, {}),
    "layer of 128 with a linear head": (lambda: perceptron(128, 64), 5, {"layer": "1"}),
}


def main() -> None:
    """Every case with both formulations and, for the sound one, two solvers."""
    torch.set_num_threads(1)
    data = load_split("digits")
    rows = []
    for case, (make, per_class, settings) in CASES.items():
        torch.manual_seed(0)
        model = train(make(), *data.train, epochs=epochs)
        x, y = data.train
        index = [i for c in range(10) for i in (y == c).nonzero()[:per_class, 0].tolist()]
        images = x[index], y[index]
        graph = mp.trace(model, x[:1])
        chosen = {key: value for key, value in settings.items() if key == "layer"}
        if chosen:
            chosen["head"] = mp.fit_linear_head(graph, chosen["layer"], mp.game.as_data(data.train, graph))
        for formulation, solver in (("sound", "highs"), ("sound", "scip"), ("oamip", "highs")):
            if formulation == "sound" and settings.get("more"):
                with torch.no_grad():
                    logits = model(images[0]).double().numpy()
                missed = int(mp.relu.Margin(0.1, 0).violated(logits, images[1].numpy()))
                chosen["max_violated"] = min(missed + settings["more"], len(index))
            cpu = time.process_time()
            found = mp.relu.select(graph, images, formulation, solver=solver, time_limit=time_limit, **chosen)
            rows.append({
                "case": case, "formulation": formulation, "solver": solver, "n": graph.n_units, "samples": len(index),
                "kept": found.n_kept, "objective": found.objective, "bound": found.bound, "gap": found.gap,
                "seconds": found.seconds, "cpu": time.process_time() - cpu, "proved": found.proved,
                "binaries": found.n_integer, "rows": found.n_rows,
            })
    table = Table(title=f"digits, margin 0.1 or lambda 5, at most {time_limit:g} s a solve")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("case", "formulation", "solver") else "right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=170).print(table)
    if options.json:
        write_json_atomic(options.json, {"rows": rows})


main()
