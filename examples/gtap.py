"""GTAP on the digits: does estimating again after every cut pay, and which coalitions should the index look at?

A layer of 64 neurons is cut to a quarter: by one estimate (top-n), by dropping some and estimating the others again
(iterated pruning), and by adding some and estimating the rest beside them (iterated building).  "Undecided" are the
units of the first round whose uncertainty bands reach across its cut.

Run: python examples/gtap.py [--quick]
"""

import argparse

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer samples and evaluations, for a smoke test")
quick = parser.parse_args().quick
n_evals = 2_500 if quick else 6_000

torch.set_num_threads(1)
torch.manual_seed(0)
data = load_split("digits_flat")
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
train(model, *data.train, epochs=15)
graph = mp.trace(model, data.train[0][:1])
game = mp.LayerGame(graph, "0", tuple(part[: 50 if quick else 200] for part in data.train))
held_out = mp.LayerGame(graph, "0", data.holdout, value="accuracy")
n, n_keep = game.n_players, game.n_players // 4

table = Table(title=f"{n_keep} of {n} neurons kept, {n_evals:,} evaluations a run, no retraining")
for column in ("algorithm", "keep rate", "sampling", "rounds", "undecided", "loss", "accuracy", "seconds"):
    table.add_column(column, justify="right" if column in ("loss", "accuracy", "seconds") else "left")
table.add_row("dense", *[""] * 4, f"{-game.value_full:.3f}", f"{held_out.value_full:.3f}", "")
for p, method in ((0.5, "dropout"), (None, "dropout"), (None, "auto")):
    table.add_section()
    for name in ("top_n", "iterated_pruning", "iterated_building"):
        found = getattr(mp, f"gtap_{name}")(game, n_keep, p=p, method=method, n_evals=n_evals, seed=0)
        rate, first = "target" if p is None else f"{p}", found.rounds[0]
        table.add_row(
            name, rate, first.estimate.method, str(len(found.rounds)), str(first.undecided),
            f"{-found.path_values[-1]:.3f}", f"{held_out.value(found.kept):.3f}", f"{found.seconds:.1f}",
        )
table.add_section()
norm = model[0].weight.detach().norm(dim=1).numpy()
random = np.random.default_rng(0).random((50, n))
for name, scores in (("largest weight norm", norm[None]), ("random, mean of 50", random)):
    kept = scores >= np.sort(scores, axis=1)[:, -n_keep, None]
    losses, accuracies = -game.values(kept), held_out.values(kept)
    table.add_row(name, *[""] * 4, f"{losses.mean():.3f}", f"{accuracies.mean():.3f}", "")
Console(width=110).print(table)
print(f"\nthe last run, round by round (value: minus the loss)\n{found}")
