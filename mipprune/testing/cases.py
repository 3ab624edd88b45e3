"""Networks that every stage is tested on, as data in one place.  Small, randomly initialised, evaluation mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["NETWORKS", "NetworkCase"]


@dataclasses.dataclass(frozen=True)
class NetworkCase:
    """A network by name.

    Attributes:
        make: builds it; weights come from torch's global generator.
        shape: shape of one input sample.
        groups: sizes of its prunable groups, in execution order.
        zero_stays_zero: a unit whose making is zeroed hands 0 to its readers (not so behind a sigmoid).
        vocabulary: inputs are this many token numbers, instead of real numbers.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: tuple[int, ...]
    zero_stays_zero: bool = True
    vocabulary: int = 0

    def build(self, seed: int = 0) -> nn.Module:
        """The network with weights by ``seed``, batch-norm statistics away from their defaults, in evaluation mode."""
        torch.manual_seed(seed)
        model = self.make().eval()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.3)
        return model

    def inputs(self, n: int = 6, seed: int = 0) -> torch.Tensor:
        """``n`` samples by ``seed``: normal numbers, or token numbers where the network has a vocabulary."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return torch.randint(0, self.vocabulary, (n, *self.shape), generator=generator)
        return torch.randn(n, *self.shape, generator=generator)


class Residual(nn.Module):
    """conv-bn-relu-conv-bn plus skip, as in ResNet."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.skip = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.skip(x))


class ResidualNet(nn.Module):
    """A stem, a plain and a strided residual block, global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.block1, self.block2 = Residual(6, 6), Residual(6, 8, 2)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.block2(self.block1(self.stem(x))).mean((2, 3)))


class ResidualMLP(nn.Module):
    """Two layers that read and write the same stream: costs with a square of one count."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mix, self.out = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.inp(x))
        return self.out(x + torch.sigmoid(self.mix(x)))


class Branches(nn.Module):
    """Two branches side by side, concatenated, flattened into a linear layer; in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.mix = nn.Conv2d(7, 5, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(5 * 9, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([F.relu_(self.a(x)), F.leaky_relu(self.b(x), inplace=True)], 1)
        x = F.max_pool2d(F.gelu(self.mix(x)), 2).flatten(1)
        return self.fc2(F.silu(self.fc1(x)))


class Depthwise(nn.Module):
    """Depthwise-separable convolutions, PReLU and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dw = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1, groups=5)
        self.act, self.pw = nn.PReLU(5), nn.Conv2d(5, 6, 1)
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.dw(F.relu(self.conv(x))))
        x = F.relu(self.pw(x) * self.scale)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class FeedForward(nn.Module):
    """A transformer's feed-forward block: the hidden width is prunable, the normalised stream isn't."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.up, self.down, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 9, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
    )


def _conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 5, 3, dilation=2), nn.ELU(), nn.AvgPool1d(2), nn.Conv1d(5, 4, 2, stride=2), nn.Hardswish(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3),
    )


def _tied() -> nn.Module:
    shared = nn.Linear(5, 5)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(5, 3))


NETWORKS = (
    NetworkCase("mlp", _mlp, (6,), (9, 5)),
    NetworkCase("cnn", _cnn, (1, 6, 6), (4, 6, 8)),
    NetworkCase("conv1d", _conv1d, (3, 16), (5, 4)),
    NetworkCase("residual_net", ResidualNet, (1, 6, 6), (6, 6, 8, 8)),
    NetworkCase("residual_mlp", ResidualMLP, (5,), (7,), zero_stays_zero=False),
    NetworkCase("branches", Branches, (2, 6, 6), (4, 3, 5, 6)),
    NetworkCase("depthwise", Depthwise, (1, 6, 6), (5, 6)),
    NetworkCase("feed_forward", FeedForward, (5, 4), (6, 9)),
    NetworkCase("tied", _tied, (4,), (5,)),
)
