"""What second derivatives need of a model and its data, checked before any work is done."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import DataError, ModelStateError
from ..game.data import LabelledData, check_samples, read_data

__all__ = ["checked_samples", "plain_attention"]


def checked_samples(model: nn.Module, data: Any, purpose: str) -> LabelledData:
    """``data`` read into memory, for a model in evaluation mode whose numbers are finite and that runs on it.

    Args:
        purpose: what errors about training mode begin with.

    Raises:
        ModelStateError: the model is in training mode, has no parameter, or holds NaN or infinite values (says where).
        DataError: data that can't be read, are empty, hold NaN, or that the model doesn't run on.
    """
    if model.training:
        raise ModelStateError(f"{purpose}; call model.eval() first")
    if next(model.parameters(), None) is None:
        raise ModelStateError(f"{type(model).__name__} has no parameters")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelStateError(f"{name!r} holds NaN or infinite values; the network can't be measured")
    samples = read_data(data, model)
    check_samples(samples, "calibration data")
    first = samples.take(slice(0, 1)).inputs
    try:
        with torch.no_grad():
            model(*first)
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in first)
        raise DataError(f"calibration data: the network doesn't run on inputs of shape {shapes}: {error}") from error
    return samples


def plain_attention() -> AbstractContextManager[None]:
    """Scaled dot-product attention out of elementary operations: the fused ones lack forward and second derivatives."""
    return sdpa_kernel(SDPBackend.MATH)
