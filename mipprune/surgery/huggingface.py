"""Transformers' models: a ``config`` that says what the pruned network is, so that ``save_pretrained`` means something.

Duck-typed: nothing here imports transformers.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import torch
from torch import nn

from ..errors import PlanError
from .plan import PrunePlan
from .verify import first_tensor

__all__ = ["ConfigChange", "sync_config"]

#: Words in the names of integer fields that aren't widths.
_NOT_WIDTHS = ("layer", "token", "vocab", "position", "label", "image", "patch", "channels", "ctx", "seed", "version",
               "size_per", "stride", "kernel", "beam", "length", "group", "depth")
#: Fields that may be ``None`` for "a multiple of the hidden size".
_DERIVED = ("n_inner", "intermediate_size", "ffn_dim", "head_dim")
#: Configurations that are tried.
_MOST = 2000


@dataclasses.dataclass(frozen=True)
class ConfigChange:
    """A field of the configuration, the dense network's value and the pruned one's."""

    field: str
    dense: int | None
    pruned: int | None


@torch.no_grad()
def sync_config(
    model: nn.Module, plan: PrunePlan, example_input: torch.Tensor | tuple[torch.Tensor, ...]
) -> tuple[ConfigChange, ...]:
    """Change ``model.config`` so that the model's own class builds the pruned network from it; returns the changes.

    Fields are changed to kept counts of the plan (``hidden_size``, ``intermediate_size``, ``num_attention_heads``, ...)
    and the first combination is taken whose model has the pruned tensors' shapes and, with the pruned weights, the
    pruned network's output; so it doesn't depend on how an architecture names its fields.  Afterwards
    ``model.save_pretrained(folder)`` and ``from_pretrained(folder)`` work as for any model.

    Args:
        model: the pruned network, a transformers ``PreTrainedModel``; its configuration, and integers in its modules
            that only the configuration decides, change in place.
        plan: the plan that made it.
        example_input: what to compare outputs on.

    Raises:
        PlanError: ``model`` has no configuration, or none expresses the pruned network; says what stands in the way.
            ``mipprune.save`` and ``mipprune.load`` store any pruned network.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict") or not hasattr(model, "save_pretrained"):
        raise PlanError(f"{type(model).__name__} has no transformers configuration to keep")
    if plan.removals:
        raise PlanError(f"{plan.removals[0].module!r} left as a whole, which no configuration of "
                        f"{type(model).__name__} says; store the network with mipprune.save and mipprune.load")
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    wanted = _shapes(model)
    fields = _candidates(config, plan)
    nearest: list[str] | None = None
    combinations = itertools.product(*fields.values())
    for values in itertools.islice(combinations, _MOST):
        trial = _with(config, dict(zip(fields, values)))
        built = _build(model, trial, "meta")
        if built is None:
            continue
        found = _shapes(built)
        wrong = [n for n in wanted if found.get(n) != wanted[n]] + [n for n in found if n not in wanted]
        if not wrong and _same_output(model, trial, example):
            changes = tuple(
                ConfigChange(f, getattr(config, f), v) for f, v in zip(fields, values) if getattr(config, f) != v
            )
            for change in changes:
                setattr(config, change.field, change.pruned)
            _copy_integers(built, model)
            return changes
        if nearest is None or len(wrong) < len(nearest):
            nearest = wrong
    raise PlanError(_explain(model, plan, fields, nearest or []))


def _candidates(config: Any, plan: PrunePlan) -> dict[str, list[int | None]]:
    """Field -> values to try, its own first, so that nothing changes without need."""
    kept: dict[int, set[int]] = {}
    for size, indices in [*((c.size, c.kept) for c in plan.cuts), *((g.size, g.kept) for g in plan.groups)]:
        if len(indices) < size:
            kept.setdefault(size, set()).add(len(indices))
    everything = sorted({len(g.kept) for g in plan.groups})  # what was derived from a width may now need its number
    fields: dict[str, list[int | None]] = {}
    for name, value in vars(config).items():
        if name.startswith("_") or any(word in name for word in _NOT_WIDTHS):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value in kept:
            fields[name] = [value, *sorted(kept[value])]
        elif isinstance(value, int) and "head" in name:  # a unit may stand for several heads that share keys
            found = {value // size * k for size, counts in kept.items() if value % size == 0 for k in counts}
            fields[name] = [value, *sorted(found)]
        elif value is None and name in _DERIVED:
            fields[name] = [None, *everything]
    return fields


def _with(config: Any, values: dict[str, int | None]) -> Any:
    trial = copy.deepcopy(config)
    for name, value in values.items():
        setattr(trial, name, value)
    return trial


def _build(model: nn.Module, config: Any, device: str) -> nn.Module | None:
    """A new network of the model's class, or ``None`` if the class refuses the configuration."""
    try:
        with torch.device(device):
            return type(model)(copy.deepcopy(config)).eval()
    except Exception:  # whatever a class raises on widths that don't go together
        return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _same_output(model: nn.Module, config: Any, example: tuple[torch.Tensor, ...]) -> bool:
    """Whether a network built from ``config`` computes with the pruned weights what the pruned network computes.

    In float64, where a small network's attention to the wrong heads shows too.
    """
    built = _build(model, config, "cpu")
    assert built is not None  # it was built on "meta" before
    built.load_state_dict(model.state_dict())
    args = tuple(x.double() if x.is_floating_point() else x for x in example)
    built = built.double().to(args[0].device)
    try:
        expected = first_tensor(copy.deepcopy(model).double().eval()(*args))
        out = first_tensor(built(*args))
    except (RuntimeError, ValueError, IndexError):
        return False
    return out.shape == expected.shape and bool((out - expected).abs().max() <= 1e-9 * expected.abs().max())


def _copy_integers(built: nn.Module, model: nn.Module) -> None:
    """Take over what only the configuration decides, such as a head count that ``forward`` doesn't read."""
    for old, new in zip(model.modules(), built.modules(), strict=True):
        for name, value in vars(new).items():
            present = vars(old).get(name)
            if type(value) is int and type(present) is int and value != present:
                setattr(old, name, value)


def _explain(model: nn.Module, plan: PrunePlan, fields: dict[str, list[int | None]], wrong: list[str]) -> str:
    uneven = []
    for name in fields:
        size = getattr(model.config, name)
        groups = [g for g in plan.groups if g.size == size]
        if len({len(g.kept) for g in groups}) > 1:
            counts = ", ".join(f"{g.group} {len(g.kept)}" for g in groups[:4])
            uneven.append(f"{name} is one number for all layers, which keep different ones of {size} ({counts})")
    text = "; ".join(uneven) or f"no widths in it give {', '.join(wrong[:3]) or 'the pruned output'} as pruned"
    return (f"the configuration of {type(model).__name__} can't express the pruned network: {text}. Prune every "
            f"layer to equal widths and leave what it derives from others (pin=), or store it with mipprune.save and "
            f"mipprune.load")
