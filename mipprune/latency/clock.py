"""Clocks: one forward pass, every operation inside it, and two networks against each other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import DataError
from ..records import Record

__all__ = ["LatencyComparison", "OpClock", "clock_of", "compare_latency", "device_name", "forward_seconds"]

#: A timing shorter than this is repeated inside one measurement, in seconds.
SHORTEST = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class LatencyComparison(Record):
    """Two networks on the same inputs, timed in turns.

    Attributes:
        dense, pruned: median seconds of a forward pass; on a CPU with one thread its CPU time, else wall-clock time.
        ratio: median over the pairs of (pruned seconds) / (dense seconds).
        low, high: 95% confidence interval of that median, from the order statistics of the ratios (no distribution is
            assumed; pairs are taken to be independent).
        n_pairs: pairs timed.
        device: what they ran on.
        input_shapes: shapes of the inputs, batch first.
    """

    dense: float
    pruned: float
    ratio: float
    low: float
    high: float
    n_pairs: int
    device: str
    input_shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return (f"{self.dense * 1e3:.4g} ms dense, {self.pruned * 1e3:.4g} ms pruned: ratio {self.ratio:.3f} "
                f"(95%: {self.low:.3f} to {self.high:.3f}, {self.n_pairs} pairs, {self.device})")


@torch.no_grad()
def compare_latency(
    dense: nn.Module, pruned: nn.Module, inputs: torch.Tensor | tuple[torch.Tensor, ...], *, seconds: float = 3.0,
    seed: int = 0,
) -> LatencyComparison:
    """Time two networks in pairs, in random order, after a warm-up; other load on the machine hits both alike.

    Args:
        dense, pruned: the networks, on one device.
        inputs: what ``forward`` is called with, on the networks' device; the batch size matters.
        seconds: about how long to measure; between 11 and 1,000 pairs are timed.
        seed: of the order within the pairs.

    Raises:
        DataError: no input is given.
    """
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    if not args:
        raise DataError("compare_latency: no input to run the networks on")
    device, rng = args[0].device, np.random.default_rng(seed)
    runs: list[Callable[[], Any]] = [lambda: dense(*args), lambda: pruned(*args)]
    for run in runs:
        run()
        run()
    once = [forward_seconds(run, device) for run in runs]
    repeats = [max(1, int(SHORTEST / max(t, 1e-9))) for t in once]
    times: list[list[float]] = [[], []]
    deadline = time.perf_counter() + seconds
    while len(times[0]) < 11 or (time.perf_counter() < deadline and len(times[0]) < 1000):
        for which in rng.permutation(2):
            runs[which]()  # the other network's weights leave the caches
            times[which].append(forward_seconds(runs[which], device, repeats[which]))
    ratios = np.sort(np.array(times[1]) / np.array(times[0]))
    n = len(ratios)
    rank = int(scipy.stats.binom.ppf(0.025, n, 0.5))  # P(fewer than rank ratios below the median) <= 2.5%
    return LatencyComparison(
        dense=float(np.median(times[0])), pruned=float(np.median(times[1])), ratio=float(np.median(ratios)),
        low=float(ratios[max(rank - 1, 0)]), high=float(ratios[min(n - rank, n - 1)]), n_pairs=n,
        device=device_name(device), input_shapes=tuple(tuple(x.shape) for x in args),
    )


def forward_seconds(run: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Mean seconds of ``repeats`` calls by :func:`clock_of` the device, up to the moment when the device is done."""
    now = clock_of(device)
    _wait(device)
    begin = now()
    for _ in range(repeats):
        run()
    _wait(device)
    return (now() - begin) / repeats


def clock_of(device: torch.device) -> Callable[[], float]:
    """The wall clock; on a CPU with one thread that thread's CPU time, which a busy machine disturbs much less."""
    return time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The device in words: what a stored timing is worth elsewhere."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device.type} {_processor()}, " + ("1 thread, its CPU time" if threads == 1 else f"{threads} threads")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


class OpClock(TorchDispatchMode):
    """Times every ATen operation of a forward pass (below autograd), or notes its shapes.

    Attributes:
        names: the operations in order.
        shapes: shapes of every tensor that each operation takes and gives; empty unless asked for.
    """

    def __init__(self, device: torch.device, note_shapes: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.shapes: list[tuple[tuple[int, ...], ...]] = []
        self._note, self._cuda = note_shapes, device.type == "cuda"
        self._stamps: list[Any] = []
        self._clock = clock_of(device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = self._now()
        out = func(*args, **(kwargs or {}))
        self._stamps.append((begin, self._now()))
        self.names.append(str(func))
        if self._note:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.shapes.append(tuple(tuple(x.shape) for x in leaves if isinstance(x, torch.Tensor)))
        return out

    def _now(self) -> Any:
        if not self._cuda:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> np.ndarray:
        """Time of every operation: float64, in order.  On CUDA the device's time, between two events."""
        if not self._cuda:
            return np.array([end - begin for begin, end in self._stamps])
        torch.cuda.synchronize()
        return np.array([begin.elapsed_time(end) * 1e-3 for begin, end in self._stamps])
