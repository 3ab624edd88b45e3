"""Tiny random configurations of HuggingFace transformers (extra ``hf``); nothing is downloaded."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from ..cases import NetworkCase

__all__ = ["HUGGING_FACE"]

_TEXT = {"vocab_size": 20, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _make(model: str, config: str, **settings: Any) -> nn.Module:
    import transformers

    return getattr(transformers, model)(getattr(transformers, config)(**settings))


def _case(name: str, shape: tuple[int, ...], groups: tuple[int, ...], *classes: str, **settings: Any) -> NetworkCase:
    vocabulary = settings.get("vocab_size", 0)
    return NetworkCase(name, functools.partial(_make, *classes, **settings), shape, groups, vocabulary=vocabulary)


HUGGING_FACE = (
    _case("bert", (6,), (16, 4, 24, 4, 24, 16), "BertForSequenceClassification", "BertConfig", hidden_size=16,
          num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, max_position_embeddings=8, num_labels=3,
          **_TEXT),
    _case("vit", (1, 8, 8), (16, 4, 24, 4, 24), "ViTForImageClassification", "ViTConfig", image_size=8, patch_size=4,
          num_channels=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
          num_labels=3),
    _case("gpt2", (6,), (16, 4, 64, 4, 64), "GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=2, n_head=4,
          n_positions=8, **_TEXT),
    _case("llama_gqa", (6,), (32, 4, 24, 4, 24), "LlamaForCausalLM", "LlamaConfig", hidden_size=32,
          num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, intermediate_size=24,
          max_position_embeddings=8, **_TEXT),
    _case("qwen3", (6,), (32, 4, 24), "Qwen3ForCausalLM", "Qwen3Config", hidden_size=32, num_hidden_layers=1,
          num_attention_heads=8, num_key_value_heads=4, head_dim=4, intermediate_size=24, **_TEXT),
    _case("t5_encoder", (6,), (4, 24, 24), "T5EncoderModel", "T5Config", d_model=16, d_kv=4, num_heads=4, d_ff=24,
          num_layers=2, **_TEXT),
    _case("swin", (3, 32, 32), (8, 2, 32, 32, 16, 4, 64), "SwinForImageClassification", "SwinConfig", image_size=32,
          patch_size=4, embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=4, num_labels=3),
)
