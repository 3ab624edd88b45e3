"""Exact beside sampled, on one layer of 16 units: the scores, the masks they lead to, and what those masks cost.

All 2^16 coalitions are evaluated once, so every claim is checked against the truth.

Run: python examples/compare_exact_vs_sampled.py [--quick]
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
from mipprune.estimate import exact_table

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer samples and budgets, for a smoke test")
quick = parser.parse_args().quick
budgets = [200, 1_000] if quick else [200, 1_000, 5_000, 25_000]
kept = 8

torch.set_num_threads(1)
torch.manual_seed(0)
data = load_split("digits_flat")
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
train(model, *data.train, epochs=15)
x, y = (part[: 30 if quick else 180] for part in data.calibration)
graph = mp.trace(model, x[:1])
game = exact_table(mp.LayerGame(graph, "2", (x, y)))  # 65,536 values of "minus the cross-entropy", then no network
n = game.n_players

print(f"layer '2': {n} players, value {game.value_full:.4f} with all, {game.value_empty:.4f} with none\n")
exact = {"shapley": mp.shapley(game, method="exact"), "banzhaf": mp.banzhaf(game, method="exact")}
sampled = {
    "shapley": [mp.shapley(game, method="permutation", n_evals=b, seed=0) for b in budgets],
    "banzhaf": [mp.banzhaf(game, method="one_toggle", n_evals=b, seed=0) for b in budgets],
}
for index in exact:
    print(mp.compare(exact[index], *sampled[index], ks=[kept]), end="\n\n")


def loss_increase(mask: np.ndarray) -> float:
    """True loss increase of the network that keeps ``mask``."""
    return game.value_full - game.value(mask)


def best_mask(values: np.ndarray) -> np.ndarray:
    """The MIP's choice of ``kept`` units under an additive surrogate with these scores."""
    problem = mp.Problem.minimize_drop(mp.surrogates.Additive(values), budgets={"units": kept})
    solution = mp.solve(problem)
    assert solution.proved
    return solution.kept


sizes = np.array([i.bit_count() for i in range(1 << n)])
index = np.flatnonzero(sizes == kept)[np.argmax(game.table[sizes == kept])]
optimum = (index >> np.arange(n) & 1).astype(bool)

table = Table(title=f"the {kept} units to keep, and the network's true loss increase without the others")
for column in ("scores", "same units as exact scores", "same units as the true optimum", "loss increase"):
    table.add_column(column, justify="left" if column == "scores" else "right")
table.add_row("true optimum of all subsets", "", f"{kept}/{kept}", f"{loss_increase(optimum):.4f}")
for name, reference in exact.items():
    chosen = best_mask(reference.values)
    table.add_row(f"{name}, exact, MIP optimum", f"{kept}/{kept}", f"{(chosen & optimum).sum()}/{kept}",
                  f"{loss_increase(chosen):.4f}")
    for estimate in sampled[name]:
        mask = best_mask(estimate.values)
        table.add_row(f"{name}, {estimate.n_evals:,} evaluations", f"{(mask & chosen).sum()}/{kept}",
                      f"{(mask & optimum).sum()}/{kept}", f"{loss_increase(mask):.4f}")
Console(width=110).print(table)
