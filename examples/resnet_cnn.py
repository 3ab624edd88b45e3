"""Prune a small ResNet on scikit-learn's digits: channels tied by residual additions, widths in multiples of 4.

Run: python examples/resnet_cnn.py [--quick]
"""

import sys

import torch
from torch import nn

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import train
from mipprune.testing.cases import Residual

quick = "--quick" in sys.argv
torch.set_num_threads(1)
torch.manual_seed(0)
data = load_split("digits")
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Residual(16, 16), Residual(16, 32, stride=2),
    Residual(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
)
train(model, *data.train, epochs=1 if quick else 10)

result = mp.prune(model, data.train, holdout=data.holdout, budget=mp.Macs(0.5), multiple=4, stages=1 if quick else 4)
print(result)
print(mp.compare_latency(model, result.model, data.holdout[0][:64], seconds=1.0))

result.save("resnet.safetensors")
again = mp.load("resnet.safetensors", model)
print("kept input channels of the last block:", result.plan.kept_indices("5.conv1.weight").get(1, "all"))
print("same after loading:", torch.equal(again(data.holdout[0]), result.model(data.holdout[0])))
