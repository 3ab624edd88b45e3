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
    """Write the pruned ``model`` and the ``plan`` that made it to ``path`` (a safetensors file), atomically.

    Tied weights are stored once; dtypes are kept.  The file holds tensors and JSON, no code.

    Raises:
        PlanError: the model's state holds something that isn't a tensor (``get_extra_state``).
    """
    seen: set[int] = set()
    storages: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise PlanError(f"{name!r} in the model's state is a {type(tensor).__name__}, not a tensor; a safetensors "
                            f"file can't hold it")
        if id(tensor) in seen:  # tied weights are stored once
            continue
        seen.add(id(tensor))
        stored = tensor.detach().cpu().contiguous()
        if stored.untyped_storage().data_ptr() in storages:  # a view of another tensor
            stored = stored.clone()
        storages.add(stored.untyped_storage().data_ptr())
        tensors[name] = stored
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

    Every weight gets the file's values and dtype (a network saved in half precision comes back in half precision), on
    the device that ``dense`` has it on.  Tied weights stay tied.

    Args:
        dense: a network of the dense architecture, with any weights; it isn't changed.  On the ``meta`` device it
            takes no memory, and the weights come to the CPU.

    Raises:
        PlanError: the file isn't a pruned network, was pruned from another architecture, or ``dense`` is on the
            ``meta`` device and has buffers that files don't hold.
    """
    small = load_plan(path).apply(dense)
    tensors = safetensors.torch.load_file(path)
    own = {n: t for n, t in small.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
    stored = {id(own[name]) for name in tensors if name in own}
    missing = [name for name, tensor in own.items() if name not in tensors and id(tensor) not in stored]
    unknown = sorted(set(tensors) - set(own))
    wrong = [n for n in tensors if n in own and own[n].shape != tensors[n].shape]
    if missing or unknown or wrong:
        raise PlanError(f"{path}: the stored weights don't fit the plan (missing {missing[:3]}, unknown {unknown[:3]}, "
                        f"of another shape {wrong[:3]})")
    _replace(small, {id(own[name]): tensor for name, tensor in tensors.items()})
    lost = [n for n, t in [*small.named_parameters(), *small.named_buffers()] if t.is_meta]
    if lost:
        raise PlanError(f"{path}: {lost[:3]} are computed when the network is built and not stored; load into a dense "
                        f"network on a real device instead of 'meta'")
    return small


def _replace(model: nn.Module, by_id: dict[int, torch.Tensor]) -> None:
    """Put new tensors in the place of old ones (by identity), in every module that shares them."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, old in kind.items():
                if old is None or id(old) not in by_id:
                    continue
                if id(old) not in made:
                    new = by_id[id(old)].to("cpu" if old.is_meta else old.device)
                    is_parameter = isinstance(old, nn.Parameter)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                kind[name] = made[id(old)]  # type: ignore[assignment]
