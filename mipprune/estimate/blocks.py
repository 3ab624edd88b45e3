"""Running means of independent replicates in a few blocks, from which every standard error follows."""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["MAX_BLOCKS", "BlockSums", "mean_and_stderr"]

#: Blocks kept at most.  With 32 to 64 of them Student's quantile is within 4% of the normal one.
MAX_BLOCKS = 64


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


@dataclasses.dataclass(frozen=True)
class BlockSums:
    """Sums of consecutive replicates; blocks are merged two by two when :data:`MAX_BLOCKS` are full.

    Immutable: an interrupt between two steps can't leave half a step behind.  Replicates are added one at a time and
    in order, so the sums do not depend on how the work was cut into chunks.

    Attributes:
        sums: float64 (MAX_BLOCKS, size); the rows after the last started block are zero.
        block_size: replicates per full block, a power of two.
        n_replicates: replicates so far; all blocks but the last are full.
    """

    sums: np.ndarray
    block_size: int = 1
    n_replicates: int = 0

    @classmethod
    def empty(cls, size: int) -> BlockSums:
        return cls(np.zeros((MAX_BLOCKS, size)))

    def added(self, vectors: np.ndarray) -> BlockSums:
        """A new record with the replicates ``vectors`` (k, size) added; O(k size + MAX_BLOCKS size)."""
        sums, block_size, count = self.sums.copy(), self.block_size, self.n_replicates
        for vector in vectors:
            if count == MAX_BLOCKS * block_size:
                sums[: MAX_BLOCKS // 2] = sums[0::2] + sums[1::2]
                sums[MAX_BLOCKS // 2 :] = 0.0
                block_size *= 2
            sums[count // block_size] += vector
            count += 1
        return BlockSums(sums, block_size, count)

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
