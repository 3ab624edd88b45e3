"""Optimizer state after surgery: cut like the weights, so that kept weights move as in the masked dense network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mipprune as mp
from mipprune.errors import OptimizerError, PlanError
from mipprune.surgery import PrunePlan, transfer_optimizer
from mipprune.testing.cases import NETWORKS, NetworkCase

from .test_graph import cases, masks

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "plain_sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.95)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
}
by_name = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()


def trained(case: NetworkCase, make: Make) -> tuple[nn.Module, torch.optim.Optimizer, PrunePlan, torch.Tensor]:
    model, x = case.build().double(), case.inputs(12).double()
    optimizer = make(model.parameters())
    steps(model, optimizer, x, 3)
    graph = mp.trace(model, x)
    return model, optimizer, PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes, seed=2)[0]), x


def by_hand(plan: PrunePlan, name: str, tensor: torch.Tensor) -> torch.Tensor:
    for dim, kept in plan.kept_indices(name).items():
        tensor = torch.stack([tensor.select(dim, int(i)) for i in kept], dim)
    return tensor


@by_name
def test_state_is_cut_like_the_weights(make: Make) -> None:
    model, optimizer, plan, _ = trained(NETWORKS[1], make)
    small = plan.apply(model)
    new = transfer_optimizer(plan, model, small, optimizer)
    assert type(new) is type(optimizer)
    names = [name for name, _ in model.named_parameters()]
    for name, old_p, new_p in zip(names, model.parameters(), small.parameters(), strict=True):
        assert torch.equal(by_hand(plan, name, old_p), new_p)
        old, now = optimizer.state[old_p], new.state[new_p]
        assert set(old) == set(now)
        for key, value in old.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert torch.equal(by_hand(plan, name, value), now[key])
                assert now[key].dtype == value.dtype
            else:
                assert value == now[key]
    options = [{k: v for k, v in g.items() if k != "params"} for o in (optimizer, new) for g in o.param_groups]
    assert options[0] == options[1]


@cases
@by_name
def test_next_steps_are_those_of_the_masked_dense_network(case: NetworkCase, make: Make) -> None:
    """Kept weights get the gradients of the network that surgery made, by hand, inside the dense optimizer."""
    model, optimizer, plan, x = trained(case, make)
    small = plan.apply(model)
    new = transfer_optimizer(plan, model, small, optimizer)
    twins = dict(model.named_parameters())
    for _ in range(2):
        new.zero_grad()
        F.cross_entropy(small(x), torch.arange(len(x)) % 3).backward()
        for name, p in small.named_parameters():
            grid = np.ix_(*(plan.kept_indices(name).get(d, np.arange(n)) for d, n in enumerate(twins[name].shape)))
            twins[name].grad = torch.zeros_like(twins[name])
            assert p.grad is not None
            twins[name].grad[tuple(torch.tensor(i) for i in grid)] = p.grad
        new.step()
        optimizer.step()
    for name, p in small.named_parameters():
        torch.testing.assert_close(by_hand(plan, name, twins[name]), p, rtol=0, atol=1e-12)


def test_nothing_of_the_old_optimizer_changes() -> None:
    model, optimizer, plan, x = trained(NETWORKS[0], OPTIMIZERS["adam"])
    before = copy.deepcopy(optimizer.state_dict())
    small = plan.apply(model)
    steps(small, transfer_optimizer(plan, model, small, optimizer), x, 2)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert all(torch.equal(value, after["state"][number][key]) for key, value in state.items())


def test_groups_keep_their_options() -> None:
    model, x = NETWORKS[0].build(), NETWORKS[0].inputs()
    weights, biases = ([p for n, p in model.named_parameters() if n.endswith(e)] for e in ("weight", "bias"))
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": biases, "weight_decay": 0.0, "lr": 0.5}], lr=0.1)
    steps(model, optimizer, x, 1)
    graph = mp.trace(model, x)
    plan = PrunePlan.from_mask(graph, masks(graph.n_units, 1, graph.costs.sizes)[0])
    small = plan.apply(model)
    new = transfer_optimizer(plan, model, small, optimizer)
    assert [g["lr"] for g in new.param_groups] == [0.1, 0.5]
    assert [g["weight_decay"] for g in new.param_groups] == [0.01, 0.0]
    assert [id(p) for p in new.param_groups[1]["params"]] == [id(p) for n, p in small.named_parameters() if "bias" in n]


def test_what_cannot_be_carried_over_is_refused() -> None:
    model, optimizer, plan, x = trained(NETWORKS[0], OPTIMIZERS["adam"])
    small = plan.apply(model)
    with pytest.raises(OptimizerError, match="holds a parameter"):
        transfer_optimizer(plan, model, small, torch.optim.SGD(small.parameters(), lr=0.1))
    with pytest.raises(PlanError, match="has shape"):
        transfer_optimizer(plan, model, model, optimizer)
    factored = torch.optim.Adafactor(model.parameters())
    steps(model, factored, x, 1)
    with pytest.raises(OptimizerError, match=r"row_var.*can't be cut"):
        transfer_optimizer(plan, model, small, factored)


class Odd(torch.optim.SGD):
    """A constructor that needs more than its defaults say."""

    def __init__(self, params: Any, schedule: object) -> None:
        super().__init__(params, lr=0.1, momentum=0.9)


def test_an_optimizer_with_a_constructor_of_its_own() -> None:
    model, optimizer, plan, _ = trained(NETWORKS[0], lambda p: Odd(p, None))
    small = plan.apply(model)
    with pytest.raises(OptimizerError, match="pass it as into="):
        transfer_optimizer(plan, model, small, optimizer)
    new = transfer_optimizer(plan, model, small, optimizer, into=Odd(small.parameters(), None))
    assert torch.equal(
        new.state[small[0].bias]["momentum_buffer"],
        by_hand(plan, "0.bias", optimizer.state[model[0].bias]["momentum_buffer"]),
    )
    with pytest.raises(OptimizerError, match="same groups and order"):
        transfer_optimizer(plan, model, small, optimizer, into=Odd(reversed(list(small.parameters())), None))
