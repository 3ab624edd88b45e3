"""Train a small network on scikit-learn's digits and keep only the units that it needs."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import mipprune as mp

x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for index in torch.randperm(1200).repeat(30).split(64):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[index]), y[index]).backward()
    optimizer.step()

result = mp.prune(
    model.eval(), (x[:1200], y[:1200]), holdout=(x[1200:], y[1200:]), tolerance=mp.LossIncrease(0.05)
)
print(result)
result.save("pruned.safetensors")
