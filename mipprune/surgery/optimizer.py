"""An optimizer's state, cut like the parameters it belongs to, so that training goes on where it was."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from ..errors import OptimizerError
from .plan import PrunePlan

__all__ = ["transfer_optimizer"]


def transfer_optimizer(
    plan: PrunePlan,
    dense: nn.Module,
    pruned: nn.Module,
    optimizer: torch.optim.Optimizer,
    into: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """An optimizer of the ``pruned`` network that goes on where the dense network's ``optimizer`` stopped.

    State of a parameter's shape (momentum, ``exp_avg``, ``exp_avg_sq``) is cut with the plan's indices, scalars
    (``step``) are kept, and so are the parameter groups with their options.  A step of an elementwise optimizer (SGD
    with momentum, RMSprop, Adam, AdamW, ...) then moves every kept weight exactly as in the dense network, given the
    same gradients.

    Args:
        dense: the network whose parameters ``optimizer`` holds; neither it nor ``optimizer`` is changed.
        pruned: what :meth:`PrunePlan.apply` made of ``dense`` (its weights may have been repaired since).
        into: an optimizer over the pruned parameters to fill instead of a new one of the same class, for classes that
            can't be built from ``(groups, **defaults)``; same groups, same order.

    Raises:
        OptimizerError: the optimizer holds a parameter that ``dense`` doesn't have, state of another shape
            (LBFGS, Adafactor: factors that mix entries can't be cut), or can't be built anew.
        PlanError: ``pruned`` doesn't have the plan's shapes.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in dense.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    plan.check_pruned(dense, pruned)
    targets = dict(pruned.named_parameters(remove_duplicate=False))
    groups: list[dict[str, Any]] = []
    state: dict[torch.Tensor, dict[str, Any]] = {}
    for options in optimizer.param_groups:
        mine = []
        for parameter in options["params"]:
            if id(parameter) not in names:
                raise OptimizerError(
                    f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that {type(dense).__name__} "
                    f"doesn't have; pass the dense network that it was made for"
                )
            aliases = names[id(parameter)]
            if any(plan.removes(name) for name in aliases):
                continue
            mine.append(targets[aliases[0]])
            if parameter in optimizer.state:
                state[mine[-1]] = _cut_state(plan, aliases, parameter, optimizer.state[parameter], mine[-1].device)
        own = {key: copy.deepcopy(value) for key, value in options.items() if key != "params"}  # an lr may be a tensor
        groups.append({**own, "params": mine})
    new = _like(optimizer, groups) if into is None else into
    _check_same_parameters(new, groups)
    for present, group in zip(new.param_groups, groups):
        present.update(group)
    new.state.clear()
    new.state.update(state)  # not by load_state_dict, which casts all state to the parameter's dtype
    return new


def _cut_state(
    plan: PrunePlan, aliases: list[str], parameter: torch.Tensor, state: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) and (value is None or isinstance(value, (bool, int, float, str))):
            out[key] = value
        elif isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            out[key] = plan.cut(aliases, value).to(device, copy=True)
        elif isinstance(value, torch.Tensor) and value.ndim == 0:
            out[key] = value.clone()
        else:
            what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"type {type(value).__name__}"
            raise OptimizerError(
                f"the optimizer's state {key!r} of {aliases[0]!r} has {what}, the parameter "
                f"{tuple(parameter.shape)}: such state can't be cut; make a new optimizer for the pruned network"
            )
    return out


def _like(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """A new optimizer of the same class and defaults over other parameters."""
    accepted = inspect.signature(type(optimizer)).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    defaults = {key: value for key, value in optimizer.defaults.items() if every or key in accepted}
    fresh = [dict(group) for group in groups]  # the constructor fills in defaults
    try:
        return type(optimizer)(fresh, **defaults)
    except Exception as error:
        raise OptimizerError(
            f"{type(optimizer).__name__} can't be built from parameter groups and its defaults ({error}); build one "
            f"over the pruned network's parameters and pass it as into="
        ) from error


def _check_same_parameters(new: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    wanted = [[id(p) for p in group["params"]] for group in groups]
    if [[id(p) for p in group["params"]] for group in new.param_groups] != wanted:
        raise OptimizerError("into: expected an optimizer over the pruned network's parameters, in the same groups and "
                             "order as the dense network's")
