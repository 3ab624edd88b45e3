"""Exact beside sampled, on one layer of 16 units: the scores, the masks they lead to, and what those masks cost.

All 2^16 coalitions are evaluated once, so every claim is checked against the truth.

Run: python examples/compare_exact_vs_sampled.py [--quick] [--plot FILE.png]
"""

import argparse

import torch
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import train
from mipprune.estimate import exact_table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer samples and budgets, for a smoke test")
parser.add_argument("--plot", metavar="FILE", help="write a picture too")
options = parser.parse_args()
budgets = [200, 1_000] if options.quick else [200, 1_000, 5_000, 25_000]

torch.set_num_threads(1)
torch.manual_seed(0)
data = load_split("digits_flat")
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
train(model, *data.train, epochs=15)
x, y = (part[: 30 if options.quick else 180] for part in data.calibration)
layer = mp.LayerGame(mp.trace(model, x[:1]), "2", (x, y))
game = exact_table(layer)  # 65,536 values of "minus the cross-entropy"
print(f"layer '2': {game.n_players} players, value {game.value_full:.4f} with all, {game.value_empty:.4f} with none\n")

exact = mp.shapley(game, method="exact")
shared = [mp.shapley(game, method="permutation", n_evals=b) for b in budgets]
regression = [mp.shapley(game, method="regression", n_evals=b) for b in budgets]
own = [mp.shapley(layer, method="sample_permutation", n_evals=b) for b in budgets]  # every image an order of its own
comparison = mp.compare(exact, *shared, *regression, *own, ks=[8], keep=[4, 8], game=game)
print(comparison, end="\n\n")
reuse = [mp.banzhaf(game, method="reuse", n_evals=b) for b in budgets]
print(mp.compare(mp.banzhaf(game, method="exact"), *reuse, ks=[8], keep=[8], game=game))
if options.plot:
    comparison.plot(options.plot)
