"""The bar: data, networks, training and the counting of multiply-adds that every method of quality.py shares.

scikit-learn's digits (60% training, 10% calibration, 30% test, by class), three small networks and how they are
trained.  Nothing here knows a pruning library.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

__all__ = ["EPOCHS", "NETWORKS", "Attention", "Data", "accuracy", "digits", "fit", "macs", "trained"]

Part = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Data:
    """Three disjoint parts, each ``(inputs, targets)``."""

    train: Part
    calibration: Part
    test: Part


def digits(seed: int = 0) -> Data:
    """1,077 / 180 / 540 images of shape (1, 8, 8), float32 in [0, 1].

    The bar has one split, that of seed 0; its seeds are those of the networks' training.
    """
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    x, x_cal, y, y_cal = train_test_split(x, y, test_size=1 / 7, stratify=y, random_state=seed)
    pairs = ((x, y), (x_cal, y_cal), (x_test, y_test))
    return Data(*((torch.tensor(a), torch.tensor(b)) for a, b in pairs))


class CNN(nn.Module):
    """Three convolutions with batch-norm and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.c2, self.b2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.c3, self.b3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.f1, self.f2 = nn.Linear(512, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b1(self.c1(x)).relu()
        x = F.max_pool2d(self.b2(self.c2(x)).relu(), 2)
        x = self.b3(self.c3(x)).relu()
        return self.f2(self.f1(x.flatten(1)).relu())


class Residual(nn.Module):
    """relu(conv-bn-relu-conv-bn + skip); the skip is a 1x1 convolution with batch-norm where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.c2, self.b2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.skip: nn.Module = nn.Identity()
        if n_in != n_out or stride != 1:
            self.skip = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b2(self.c2(self.b1(self.c1(x)).relu()))
        return (y + self.skip(x)).relu()


class ResNet(nn.Module):
    """Six residual blocks of 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.l1 = nn.Sequential(Residual(16, 16, 1), Residual(16, 16, 1))
        self.l2 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32, 1))
        self.l3 = nn.Sequential(Residual(32, 64, 2), Residual(64, 64, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.l3(self.l2(self.l1(self.stem(x)))).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, _ = x.shape
        parts = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(y.reshape(n, t, self.num_heads * self.head_dim))


class Encoder(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.n1, self.attn, self.n2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.n1(x))
        return x + self.mlp(self.n2(x))


class Transformer(nn.Module):
    """Eight tokens, the rows of the image."""

    def __init__(self, width: int = 32, heads: int = 4, hidden: int = 96, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.pos = nn.Parameter(torch.randn(1, 8, width) * 0.02)
        self.blocks = nn.Sequential(*(Encoder(width, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.flatten(1, 2)) + self.pos
        return self.head(self.norm(self.blocks(x)).mean(1))


NETWORKS = {"cnn": CNN, "resnet": ResNet, "transformer": Transformer}
EPOCHS = {"cnn": 12, "resnet": 12, "transformer": 40}


def fit(model: nn.Module, part: Part, epochs: int, seed: int, lr: float = 3e-3) -> float:
    """AdamW, batches of 64, one-cycle schedule; returns CPU seconds."""
    begin = time.process_time()
    x, y = part
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    steps = epochs * -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return time.process_time() - begin


def trained(name: str, data: Data, seed: int) -> tuple[nn.Module, float]:
    """The network of a seed in evaluation mode, and the CPU seconds its training took."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    return model, fit(model, data.train, EPOCHS[name], seed)


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> float:
    """Share of correct predictions, in %."""
    return 100 * float((model.eval()(part[0]).argmax(1) == part[1]).float().mean())


def macs(model: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds per sample of convolutions, linear layers and attention products, counted by hooks."""
    total = 0

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, Attention):
            total += 2 * inputs[0].shape[1] ** 2 * module.num_heads * module.head_dim

    handles = [m.register_forward_hook(hook) for m in model.modules()]
    with torch.no_grad():
        model.eval()(x[:1])
    for handle in handles:
        handle.remove()
    return total
