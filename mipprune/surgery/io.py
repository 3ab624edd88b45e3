"""Save and load pruned networks: one safetensors file that holds the weights and the plan.  Nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..errors import PlanError
from ..records import write_bytes_atomic
from .plan import PrunePlan

__all__ = ["load", "load_plan", "save"]

_KEY = "mipprune.plan"


def save(path: str | os.PathLike[str], model: nn.Module, plan: PrunePlan) -> None:
    """Write the pruned ``model`` and the ``plan`` that made it to ``path`` (a safetensors file), atomically."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # tied weights are stored once
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous()
    payload = safetensors.torch.save(tensors, metadata={_KEY: json.dumps(plan.to_dict(), allow_nan=False)})
    write_bytes_atomic(path, payload)


def load_plan(path: str | os.PathLike[str]) -> PrunePlan:
    """The plan inside a file that :func:`save` wrote, or a plan's own JSON file.

    Raises:
        PlanError: the file is neither.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix == ".json":
        return PrunePlan.load(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:
        raise PlanError(f"{path}: not a safetensors file ({error})") from error
    if _KEY not in metadata:
        raise PlanError(f"{path}: a safetensors file without a prune plan; it wasn't written by mipprune.save")
    try:
        return PrunePlan.from_dict(json.loads(metadata[_KEY])).checked()
    except Exception as error:
        raise PlanError(f"{path}: the prune plan inside is corrupt ({error})") from error


def load(path: str | os.PathLike[str], dense: nn.Module) -> nn.Module:
    """Rebuild the pruned network from a file that :func:`save` wrote.

    Args:
        dense: a network of the dense architecture, with any weights; it isn't changed.

    Raises:
        PlanError: the file isn't a pruned network, or was pruned from another architecture.
    """
    small = load_plan(path).apply(dense)
    tensors = safetensors.torch.load_file(path)
    own = small.state_dict(keep_vars=True)
    stored = {id(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if name not in tensors and id(tensor) not in stored]
    unknown = sorted(set(tensors) - set(own))
    wrong = [n for n in tensors if n in own and own[n].shape != tensors[n].shape]
    if missing or unknown or wrong:
        raise PlanError(f"{path}: the stored weights don't fit the plan (missing {missing[:3]}, unknown {unknown[:3]}, "
                        f"of another shape {wrong[:3]})")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return small
