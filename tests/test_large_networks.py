"""Networks of ordinary size trace within seconds (the issue's bound is 30), with exact costs."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mipprune as mp
from mipprune.testing.counting import counted_costs

pytestmark = pytest.mark.slow


class Bottleneck(nn.Module):
    """As in ResNet-50."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.b2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.c3, self.b3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or before != 4 * width:
            self.skip = nn.Sequential(nn.Conv2d(before, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))))
        return F.relu(self.b3(self.c3(y)) + self.skip(x))


def resnet50() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
                               nn.MaxPool2d(3, 2, 1)]
    before = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            layers.append(Bottleneck(before, width, stride if i == 0 else 1))
            before = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def test_resnet50() -> None:
    model, x = resnet50().eval(), torch.randn(1, 3, 224, 224)
    start = time.process_time()
    graph = mp.trace(model, x)
    assert time.process_time() - start < 30
    inner = sum(2 * width * blocks for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)))
    assert (len(graph.groups), graph.n_units) == (37, inner + 64 + 256 + 512 + 1024 + 2048)
    assert (graph.macs(), graph.params()) == counted_costs(model, x)


def test_bert_base() -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3)).eval()
    x = torch.randint(0, 1000, (1, 128))
    start = time.process_time()
    graph = mp.trace(model, x)
    assert time.process_time() - start < 30
    assert [g.size for g in graph.groups] == [768, *[12, 3072] * 12, 768]
    assert (graph.macs(), graph.params()) == counted_costs(model, x)
