"""Prune the feed-forward widths and attention heads of a transformers model; store it as any other.

Needs transformers.  Run: python examples/transformer.py [--quick]
"""

import sys

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.demo import train


class Logits(nn.Module):
    """What is pruned is a classifier: images in, logits out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).logits


quick = "--quick" in sys.argv
torch.manual_seed(0)
data = load_split("digits")
sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2}
vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes))
model = train(Logits(vit), *data.train, epochs=1 if quick else 15)
stream = "net.vit.embeddings.patch_embeddings.projection"  # the residual stream keeps its width
result = mp.prune(model, data.train, holdout=data.holdout, budget=mp.Macs(0.5), pin=[stream], stages=1 if quick else 4)
print(result)
result.save("vit.safetensors")
print(mp.load("vit.safetensors", model).net.vit.layers[0].mlp)
