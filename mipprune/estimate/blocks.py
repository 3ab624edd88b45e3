"""Running means of independent replicates in a few blocks, from which every standard error follows."""

from __future__ import annotations

import abc
import dataclasses
from typing import Self

import numpy as np

__all__ = ["MAX_BLOCKS", "BlockSums", "SampleSums", "State", "block_means", "mean_and_stderr"]

#: Blocks kept at most.  With 32 to 64 of them Student's quantile is within 4% of the normal one.
MAX_BLOCKS = 64

#: Numbers that all blocks together may take, 512 MiB: very long vectors (all pairs of 4096 players) get fewer blocks.
MAX_NUMBERS = 1 << 26


class State(abc.ABC):
    """What a sampling run has gathered.  Immutable, so that an interrupt can't leave half a step behind.

    Attributes:
        n_replicates: replicates so far.
    """

    n_replicates: int

    @abc.abstractmethod
    def added(self, found: np.ndarray) -> Self:
        """A new state with what a source's next ``len(found)`` replicates found."""

    @abc.abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, for a checkpoint."""

    @abc.abstractmethod
    def restored(self, arrays: dict[str, np.ndarray]) -> Self:
        """The state that :meth:`arrays` was called on; ``self`` only says the kind and the size."""


def mean_and_stderr(means: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Overall mean and its standard error, from B >= 2 block means (B, ...) and block sizes (B,).

    A block of s replicates has variance ``var / s``, so ``sum_b s_b (m_b - mean)^2 / (B - 1)`` is unbiased for the
    variance of one replicate whatever the sizes, and with normal blocks the error has B - 1 degrees of freedom.
    """
    total = sizes.sum()
    share = (sizes / total).reshape(-1, *[1] * (means.ndim - 1))
    mean = (share * means).sum(axis=0)
    variance = (share * (means - mean) ** 2).sum(axis=0) / (len(sizes) - 1)
    return mean, np.sqrt(variance)


def block_means(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (B, size) and sizes (B,) of all ``vectors`` (m, size), in at most :data:`MAX_BLOCKS` even blocks."""
    edges = np.linspace(0, len(vectors), min(MAX_BLOCKS, len(vectors)) + 1).astype(np.int64)
    sizes = np.diff(edges)
    return np.add.reduceat(vectors, edges[:-1], axis=0) / sizes[:, None], sizes


@dataclasses.dataclass(frozen=True)
class BlockSums(State):
    """Sums of consecutive replicates; blocks are merged two by two when all are full.

    Replicates are added one at a time and in order, so the sums do not depend on how the work was cut into chunks.

    Attributes:
        sums: float64 (most blocks, size), an even number of rows; those after the last started block are zero.
        block_size: replicates per full block, a power of two.
        n_replicates: replicates so far; all blocks but the last are full.
    """

    sums: np.ndarray
    block_size: int = 1
    n_replicates: int = 0

    @classmethod
    def empty(cls, size: int) -> BlockSums:
        fitting = 1 << max(3, (MAX_NUMBERS // max(size, 1)).bit_length() - 1)
        return cls(np.zeros((min(MAX_BLOCKS, fitting), size)))

    def added(self, found: np.ndarray) -> BlockSums:
        """A new record with the replicates ``found`` (k, size) added; O(k size + blocks size)."""
        sums, block_size, count = self.sums.copy(), self.block_size, self.n_replicates
        most = len(sums)
        for vector in found:
            if count == most * block_size:
                sums[: most // 2] = sums[0::2] + sums[1::2]
                sums[most // 2 :] = 0.0
                block_size *= 2
            sums[count // block_size] += vector
            count += 1
        return BlockSums(sums, block_size, count)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"sums": self.sums, "counts": np.array([self.block_size, self.n_replicates])}

    def restored(self, arrays: dict[str, np.ndarray]) -> BlockSums:
        block_size, n_replicates = map(int, arrays["counts"])
        return BlockSums(arrays["sums"], block_size, n_replicates)

    @property
    def sizes(self) -> np.ndarray:
        """Replicates per block: int64 (B,)."""
        full, rest = divmod(self.n_replicates, self.block_size)
        return np.array([self.block_size] * full + [rest] * (rest > 0), dtype=np.int64)

    @property
    def means(self) -> np.ndarray:
        """Block means: float64 (B, size)."""
        sizes = self.sizes
        return self.sums[: len(sizes)] / sizes[:, None]


@dataclasses.dataclass(frozen=True)
class SampleSums(State):
    """Block sums of the mean over the data's samples, and for every sample sums and sums of squares of its own.

    Attributes:
        blocks: of the means over samples.
        sums, squares: float64 (N, n).
    """

    blocks: BlockSums
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def empty(cls, n_samples: int, n_players: int) -> SampleSums:
        return cls(BlockSums.empty(n_players), np.zeros((n_samples, n_players)), np.zeros((n_samples, n_players)))

    @property
    def n_replicates(self) -> int:  # type: ignore[override]
        return self.blocks.n_replicates

    def added(self, found: np.ndarray) -> SampleSums:
        """Add the replicates ``found``: float64 (k, N, n)."""
        sums, squares = self.sums.copy(), self.squares.copy()
        for replicate in found:
            sums += replicate
            squares += replicate**2
        return SampleSums(self.blocks.added(found.mean(axis=1)), sums, squares)

    def arrays(self) -> dict[str, np.ndarray]:
        return {**self.blocks.arrays(), "sample_sums": self.sums, "sample_squares": self.squares}

    def restored(self, arrays: dict[str, np.ndarray]) -> SampleSums:
        return SampleSums(self.blocks.restored(arrays), arrays["sample_sums"], arrays["sample_squares"])
