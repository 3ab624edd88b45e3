"""Shapley Pruning on the digits: which ranking of a layer's neurons comes nearest to the best subset of every size?

All 2^14 networks that keep some of 14 neurons are evaluated, so the best one of every size is known.  Rankings by
leave-one-out, k-partial values, sampled and exact Shapley values, weight norms and the sets themselves are held
against them.

Run: python examples/shapley_pruning.py [--quick]
"""

import argparse

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

torch.set_num_threads(1)
torch.manual_seed(0)
data = load_split("digits_flat")
model = nn.Sequential(nn.Linear(64, 14), nn.ReLU(), nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, 10))
train(model, *data.train, epochs=20)
graph = mp.trace(model, data.train[0][:1])
game = mp.LayerGame(graph, "0", tuple(part[: 50 if quick else 200] for part in data.train))
n = game.n_players

ranks = mp.shapley_pruning_ranks(game, ks=(2, 4, 8), n_evals=1_000 if quick else 4_000)
print(ranks, end="\n\n")

table = mp.estimate.exact_table(game)
oracle = ranks.oracle.oracle
norm = model[0].weight.detach().norm(dim=1).numpy()
others = {"weight norm": norm, "oracle membership": oracle.membership, "Banzhaf, exact": mp.banzhaf(table)}
print("rankings that aren't estimates of the Shapley value")
judged = mp.oracle_comparison(table, {**others, "exact Shapley": ranks.estimates["exact Shapley"]})
print(judged, end="\n\n")

sizes = range(2, n, 3)
losses = Table(title="loss of the network that keeps o neurons: best of all, and by each ranking")
losses.add_column("kept by", no_wrap=True)
for size in sizes:
    losses.add_column(f"o={size}", justify="right")
losses.add_row("oracle set", *(f"{-oracle.values[o]:.3f}" for o in sizes))
for row in (*ranks.oracle.rows, *judged.rows[:-1]):
    losses.add_row(row.name, *(f"{row.gaps[o] - oracle.values[o]:.3f}" for o in sizes))
losses.add_row("random set, mean", *(f"{-oracle.mean_values[o]:.3f}" for o in sizes))
Console(width=110).print(losses)
nested = "" if oracle.nested else "not "
print(f"\nthe best sets are {nested}nested: " + (
    "a perfect ranking exists" if oracle.nested else "no ranking finds all of them, only a search over sets does"
))
