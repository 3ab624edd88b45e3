"""Convolutional networks, each with the idea that its namesake is known for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cases import NetworkCase

__all__ = ["CONVOLUTIONAL"]


def _lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4),
    )


class LiteralLeNet(nn.Module):
    """The same with the flattened size written down, as tutorials have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.conv2 = nn.Conv2d(1, 6, 3), nn.MaxPool2d(2, 2), nn.Conv2d(6, 8, 2)
        self.fc1, self.fc2 = nn.Linear(8 * 2 * 2, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.pool(F.relu(self.conv1(x))))
        x = F.relu(x).view(-1, 8 * 2 * 2)
        return self.fc2(F.relu(self.fc1(x)))


def _vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 6), (6, 6), (6, 8)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), *head)


class UNet(nn.Module):
    """Down, up by a transposed convolution and by interpolation, skips by concatenation with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.bottom, self.up2 = nn.Conv2d(6, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.mix2, self.mix1 = nn.Conv2d(12, 5, 3, padding=1), nn.Conv2d(9, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(F.max_pool2d(a, 2)))
        c = self.up2(F.relu(self.bottom(F.max_pool2d(b, 2))))
        c = F.pad(c, (0, b.shape[-1] - c.shape[-1], 0, b.shape[-2] - c.shape[-2]))
        b = F.relu(self.mix2(torch.cat([b, c], 1)))
        b = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.relu(self.mix1(torch.cat([a, b], 1))))


class DenseNet(nn.Module):
    """Every layer reads all layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.transition, self.fc = nn.Conv2d(13, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        x = F.avg_pool2d(F.relu(self.transition(torch.cat(features, 1))), 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SqueezeExcite(nn.Module):
    """Channels weighted by a small network of their own means."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, optionally squeeze-excite, project, add."""

    def __init__(self, channels_in: int, hidden: int, channels_out: int, excite: bool) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(channels_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.dw = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.se = SqueezeExcite(hidden, 3) if excite else nn.Identity()
        self.project, self.bn3 = nn.Conv2d(hidden, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
        self.residual = channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.bn1(self.expand(x)))
        y = self.bn3(self.project(self.se(F.relu6(self.bn2(self.dw(y))))))
        return x + y if self.residual else y


def _inverted(excite: bool) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Hardswish(), InvertedResidual(6, 8, 6, excite),
        InvertedResidual(6, 7, 5, excite), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4),
    )


class ResNeXt(nn.Module):
    """Grouped convolution inside a bottleneck: whole groups leave."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.reduce = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.bn, self.grouped = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.expand, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.expand(F.relu(self.grouped(F.relu(self.bn(self.reduce(x)))))))
        return self.fc(x.mean((-2, -1)))


class ShuffleNet(nn.Module):
    """Few large groups and a channel shuffle by hand; a split of channels and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 2
        self.stem, self.conv1 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1, groups=2)
        self.dw, self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1, groups=2)
        self.branch, self.fc = nn.Conv2d(6, 6, 1), nn.Linear(12, 4)

    def shuffle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(F.relu(self.conv1(F.relu(self.stem(x)))))
        left, right = self.conv2(self.dw(x)).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        return self.fc(x.mean((2, 3)))


class ConvNeXt(nn.Module):
    """Depthwise 7x7, layer-norm over channels last, an inverted bottleneck with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw = nn.Conv2d(1, 6, 2, 2), nn.Conv2d(6, 6, 7, padding=3, groups=6)
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma = nn.Parameter(torch.rand(6))
        self.weight, self.bias = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mean = x.mean(1, keepdim=True)  # a layer-norm over channels first, by hand
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        x = self.weight[:, None, None] * x + self.bias[:, None, None]
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        return self.fc((x + y).mean((2, 3)))


class Inception(nn.Module):
    """Four branches side by side, one of them pooled, with factorised kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3, padding=1)
        self.b1, self.b2a, self.b2b = nn.Conv2d(5, 3, 1), nn.Conv2d(5, 3, 1), nn.Conv2d(3, 4, (1, 3), padding=(0, 1))
        self.b3, self.b4 = nn.Conv2d(5, 3, 3, padding=2, dilation=2), nn.Conv2d(5, 2, 1)
        self.norm, self.fc = nn.InstanceNorm2d(12, affine=True), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        pooled = self.b4(F.avg_pool2d(x, 3, 1, 1))
        x = torch.cat([self.b1(x), self.b2b(F.relu(self.b2a(x))), self.b3(x), pooled], 1)
        return self.fc(F.adaptive_max_pool2d(F.elu(self.norm(x)), 1).flatten(1))


class GroupNormNet(nn.Module):
    """Group-norms with many groups, few groups and one; a residual in between; a 3-d convolution first."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.n1 = nn.Conv3d(1, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.c2, self.n2 = nn.Conv3d(8, 8, 1), nn.GroupNorm(2, 8)
        self.c3, self.n3, self.fc = nn.Conv3d(8, 6, 1), nn.GroupNorm(1, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.n1(self.c1(x)))
        x = F.relu(self.n2(self.c2(x)))
        return self.fc(F.mish(self.n3(self.c3(x))).mean((2, 3, 4)))


class SuperResolution(nn.Module):
    """Pixel shuffle and unshuffle, a global skip, a gated convolution (GLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.head = nn.PixelUnshuffle(2), nn.Conv2d(4, 6, 3, padding=1)
        self.gate, self.up = nn.Conv2d(6, 10, 3, padding=1), nn.Conv2d(5, 12, 1)
        self.shuffle, self.tail = nn.PixelShuffle(2), nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.gate(F.relu(self.head(self.down(x)))), 1)
        return x + self.tail(F.relu(self.shuffle(self.up(y))))


class DGCNN(nn.Module):
    """Points and their neighbours: features of edges by gathering, maximum over neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.k = 3
        self.c1, self.c2 = nn.Conv2d(6, 5, 1), nn.Conv2d(10, 6, 1)
        self.c3, self.fc = nn.Conv1d(11, 7, 1), nn.Linear(14, 4)

    def edges(self, x: Tensor, index: Tensor) -> Tensor:
        centre = x.unsqueeze(-1).expand(-1, -1, -1, self.k)
        near = torch.gather(centre, 2, index.unsqueeze(1).expand(-1, x.shape[1], -1, -1))
        return torch.cat([near - centre, centre], 1)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x.unsqueeze(-1) - x.unsqueeze(-2)).pow(2).sum(1)
        index = distance.topk(self.k, dim=-1, largest=False)[1]
        a = F.leaky_relu(self.c1(self.edges(x, index)), 0.2).amax(-1)
        b = F.leaky_relu(self.c2(self.edges(a, index)), 0.2).amax(-1)
        c = F.relu(self.c3(torch.cat([a, b], 1)))
        return self.fc(torch.cat([c.amax(-1), c.mean(-1)], 1))


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response norm, channels last: norms over positions, divided by their mean over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.rand(1, 1, 1, channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(-1, keepdim=True) + 1e-6))) + self.beta + x


class ConvNeXtV2(nn.Module):
    """A block with global response norm, then linear attention over pixels by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dw = nn.Conv2d(3, 6, 2, 2), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.mlp = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 10), nn.GELU(), ResponseNorm(10), nn.Linear(10, 6))
        self.heads, self.qkv, self.proj = 2, nn.Conv2d(6, 24, 1, bias=False), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mlp(self.dw(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in self.qkv(x).chunk(3, 1))
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
        y = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2)).reshape(b, -1, h, w)
        return self.fc((x + self.proj(y)).mean((2, 3)))


class AttentionGate(nn.Module):
    """Attention U-Net: a skip weighted by one map, made from itself and what comes up (a transposed convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.from_up, self.from_skip = nn.Conv2d(4, 3, 1), nn.Conv2d(5, 3, 1)
        self.psi = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())
        self.mix, self.out = nn.Conv2d(9, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        up = self.up(F.relu(self.bottom(skip)))
        gate = self.psi(F.relu(self.from_up(up) + self.from_skip(skip)))
        return self.out(F.relu(self.mix(torch.cat([skip * gate, up], 1))))


CONVOLUTIONAL = (
    NetworkCase("lenet", _lenet, (1, 8, 8), (6, 8, 12, 10)),
    NetworkCase("literal_lenet", LiteralLeNet, (1, 8, 8), (6, 8, 10)),
    NetworkCase("vgg", _vgg, (1, 6, 6), (6, 6, 8, 10)),
    NetworkCase("unet", UNet, (1, 9, 9), (4, 6, 8, 6, 5, 4)),
    NetworkCase("densenet", DenseNet, (1, 6, 6), (4, 3, 3, 3, 6)),
    NetworkCase("mobilenet", lambda: _inverted(False), (1, 6, 6), (6, 8, 7, 5)),
    NetworkCase("efficientnet", lambda: _inverted(True), (1, 6, 6), (6, 8, 3, 7, 3, 5)),
    NetworkCase("resnext", ResNeXt, (1, 5, 5), (6, 4)),
    NetworkCase("shufflenet", ShuffleNet, (1, 5, 5), (4, 2, 6, 6)),
    NetworkCase("convnext", ConvNeXt, (1, 8, 8), (6, 12)),
    NetworkCase("inception", Inception, (1, 6, 6), (5, 2, 3, 3, 4, 3)),
    NetworkCase("group_norm", GroupNormNet, (1, 3, 3, 3), (4, 4, 6)),
    NetworkCase("super_resolution", SuperResolution, (1, 6, 6), (6, 5, 3)),
    NetworkCase("dgcnn", DGCNN, (3, 8), (5, 6, 7)),
    NetworkCase("convnext_v2", ConvNeXtV2, (3, 8, 8), (6, 10, 2)),
    NetworkCase("attention_gate", AttentionGate, (1, 6, 6), (5, 8, 4, 3, 4)),
)
