"""Configurations of transformers' models follow the plan where they can, and say why where they can't."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import PlanError
from mipprune.surgery import PrunePlan, load, save
from mipprune.surgery.huggingface import sync_config

IDS = torch.arange(18).reshape(2, 9) % 50 + 3
IMAGES = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)


def bert() -> tuple[nn.Module, torch.Tensor]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=24, max_position_embeddings=16, num_labels=3)
    return BertForSequenceClassification(config), IDS


def vit() -> tuple[nn.Module, torch.Tensor]:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=8,
                       patch_size=4, num_channels=1, num_labels=3)
    return ViTForImageClassification(config), IMAGES


def gpt2() -> tuple[nn.Module, torch.Tensor]:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=16, num_labels=3, pad_token_id=0,
                        bos_token_id=1, eos_token_id=2, use_cache=False)
    return GPT2ForSequenceClassification(config), IDS


def llama() -> tuple[nn.Module, torch.Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, intermediate_size=24, max_position_embeddings=16, use_cache=False)
    return LlamaForCausalLM(config), IDS


Make = Callable[[], tuple[nn.Module, torch.Tensor]]


@functools.cache
def traced(make: Make) -> tuple[mp.UnitGraph, torch.Tensor]:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, x = make()
    return mp.trace(model.eval(), x), x


def kind(name: str) -> str:
    if any(word in name for word in ("attention", "attn")):
        return "heads"
    return "ffn" if any(word in name for word in ("intermediate", "mlp")) else "hidden"


def half(graph: mp.UnitGraph, kinds: set[str], **more: int) -> PrunePlan:
    """Keep the second half of every group of the ``kinds``, and ``more`` of groups whose name holds a word."""
    kept = np.ones(graph.n_units, dtype=bool)
    for group in graph.groups:
        count = group.size // 2 if kind(group.name) in kinds else group.size
        count += sum(extra for word, extra in more.items() if f".{word[1:]}." in group.name)
        kept[group.offset : group.offset + group.size - count] = False
    return PrunePlan.from_mask(graph, kept)


EXPRESSIBLE = [
    (bert, {"ffn"}, {"intermediate_size": 12}),
    (bert, {"ffn", "heads", "hidden"}, {"intermediate_size": 12, "hidden_size": 8, "num_attention_heads": 2}),
    (vit, {"ffn"}, {"intermediate_size": 12}),
    (gpt2, {"ffn"}, {"n_inner": 32}),
    (gpt2, {"heads", "hidden"}, {"n_embd": 8, "n_head": 2, "n_inner": 64}),
    (llama, {"ffn"}, {"intermediate_size": 12}),
    (llama, {"heads"}, {"num_attention_heads": 2, "num_key_value_heads": 1}),
    (llama, {"hidden"}, {"hidden_size": 8}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "kinds", "expected"), EXPRESSIBLE, ids=lambda v: getattr(v, "__name__", None))
def test_the_round_trip(make: Make, kinds: set[str], expected: dict[str, int], tmp_path: Path) -> None:
    graph, x = traced(make)
    before = graph.model.config.to_dict()
    plan = half(graph, kinds)
    small: Any = plan.apply(graph.model)
    changes = sync_config(small, plan, x)
    assert {c.field: c.pruned for c in changes} == expected
    assert {c.field: c.dense for c in changes} == {name: before[name] for name in expected}
    small.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {name: stored[name] for name in expected} == expected
    again = type(small).from_pretrained(tmp_path).eval()
    assert torch.equal(again(x).logits, small(x).logits)
    for old, new in zip(small.modules(), again.modules(), strict=True):  # also what forward doesn't read
        for name, value in vars(new).items():
            assert type(value) is not int or vars(old)[name] == value
    assert graph.model.config.to_dict() == before  # the dense model's configuration is another object


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "kinds", "more", "said"),
    [
        (bert, {"heads"}, {}, "no widths in it give bert.encoder.layer.0.attention.self.query.weight"),
        (llama, {"ffn"}, {"_1": 3}, "intermediate_size is one number for all layers, which keep different ones of 24"),
    ],
)
def test_what_a_configuration_cannot_say(
    make: Make, kinds: set[str], more: dict[str, int], said: str, tmp_path: Path
) -> None:
    graph, x = traced(make)
    plan = half(graph, kinds, **more)
    small: Any = plan.apply(graph.model)
    before = small.config.to_dict()
    with pytest.raises(PlanError, match=said):
        sync_config(small, plan, x)
    assert small.config.to_dict() == before
    save(tmp_path / "small.safetensors", small, plan)  # what the error proposes works
    again: Any = load(tmp_path / "small.safetensors", make()[0].eval())
    assert torch.equal(again(x).logits, small(x).logits)


@pytest.mark.slow
def test_equal_shapes_with_other_heads_are_not_enough() -> None:
    """Four heads of 2 have the tensors of two heads of 4: only the output tells."""
    graph, x = traced(gpt2)
    plan = half(graph, {"heads", "hidden"})
    small: Any = plan.apply(graph.model)
    assert ("n_head", 2) in {(c.field, c.pruned) for c in sync_config(small, plan, x)}


def test_other_models_have_no_configuration() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    plan = PrunePlan.from_mask(mp.trace(model, torch.randn(1, 3)), np.array([True, True, False, True]))
    with pytest.raises(PlanError, match="Sequential has no transformers configuration"):
        sync_config(plan.apply(model), plan, torch.randn(1, 3))
