"""Small networks are searched on one of torch's threads, and the number is given back whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.pruning import delivery, search, threads
from mipprune.pruning.threads import SMALL, threads_for


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("work", "inside"), [(0, 1), (SMALL - 1, 1), (SMALL, 3), (float("inf"), 3)])
def test_small_work_gets_one_thread(work: float, inside: int) -> None:
    with threads_for(work):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 3


def test_threads_come_back_after_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), threads_for(0):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("small", "inside"), [(SMALL, {1}), (0, {3})])
def test_prune_searches_and_delivers_on_them(monkeypatch: pytest.MonkeyPatch, small: float, inside: set[int]) -> None:
    seen = set()
    measure = search.measure

    def spy(*arguments: Any) -> Any:
        seen.add(torch.get_num_threads())
        return measure(*arguments)

    monkeypatch.setattr(search, "measure", spy)
    monkeypatch.setattr(delivery, "measure", spy)
    monkeypatch.setattr(threads, "SMALL", small)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(40, 6)
    mp.prune(model, (x, model(x).argmax(1)), budget=mp.Macs(0.5), progress=False)
    assert seen == inside
    assert torch.get_num_threads() == 3
