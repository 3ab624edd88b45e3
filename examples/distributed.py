"""Shapley values of a layer by several processes: the same bits as by one.

Run: torchrun --nproc-per-node 2 examples/distributed.py [--out values.json]
(alone, ``python examples/distributed.py``, it is one process; with GPUs, every process takes its own)
"""

import argparse
import os
from pathlib import Path

import torch
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, help="the estimate as JSON, written by the first process")
parser.add_argument("--evals", type=int, default=4_000)
options = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(0)  # every process makes the same network
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
inputs, targets = (part[:200] for part in load_split("digits_flat").train)

communicator = mp.TorchCommunicator() if "RANK" in os.environ else None
if communicator is not None and torch.cuda.is_available():
    device = f"cuda:{communicator.local_rank}"
    model, inputs, targets = model.to(device), inputs.to(device), targets.to(device)
game = mp.LayerGame(mp.trace(model, inputs[:1]), "0", (inputs, targets))
found = mp.shapley(game, n_evals=options.evals, seed=0, communicator=communicator)
if communicator is None or communicator.rank == 0:
    print(f"{found.n_evals} evaluations by {communicator.size if communicator else 1} process(es); best units:")
    for i in found.top(5):
        print(f"  {game.player_names[i]:>6}: {found.values[i]:.5f} nats, standard error {found.stderr[i]:.1e}")
    if options.out:
        found.save(options.out)
if communicator is not None:
    communicator.close()
