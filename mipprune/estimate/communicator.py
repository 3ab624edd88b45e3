"""Sampling shared by several processes: every one draws a part of each chunk, and all get the whole.

Replicate r is a function of the seed and of r alone, and replicates are summed one by one in their order
(:class:`~mipprune.estimate.blocks.BlockSums`), so the result has the bits of one process, however many share the work.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import numpy as np

from .blocks import State

if TYPE_CHECKING:
    from .sampling import Source

__all__ = ["Communicator", "shared"]


class Communicator(abc.ABC):
    """What sampling needs of a group of processes that all run the same program.

    Attributes:
        rank: number of this process, 0 .. size - 1.
        size: number of processes.
    """

    rank: int
    size: int

    @abc.abstractmethod
    def gather(self, mine: Any) -> list[Any]:
        """Every rank's object, by rank, on every rank; all ranks have to call it."""


def shared(source: Source, communicator: Communicator) -> Source:
    """A source of the same replicates, each chunk of which the processes of ``communicator`` draw together.

    An error on one rank (Ctrl-C too) is raised by all of them, at the same replicate.
    """
    from .sampling import Source  # which imports this file

    class SharedSource(Source):
        size, cost, fixed, least = source.size, source.cost, source.fixed, source.least

        def replicates(self, first: int, count: int) -> np.ndarray:
            edges = np.linspace(0, count, communicator.size + 1).astype(np.int64)
            start, end = int(edges[communicator.rank]), int(edges[communicator.rank + 1])
            found: np.ndarray | None = None
            error: BaseException | None = None
            try:
                if end > start:
                    found = source.replicates(first + start, end - start)
            except (Exception, KeyboardInterrupt) as caught:  # the others wait for an answer, whatever happened here
                error = caught
            answers = communicator.gather((found, error))
            for _, failed in answers:
                if failed is not None:
                    raise failed
            return np.concatenate([part for part, _ in answers if part is not None])

        def empty(self) -> State:
            return source.empty()

        def finish(self, state: State) -> tuple[np.ndarray, np.ndarray]:
            return source.finish(state)

    return SharedSource()
