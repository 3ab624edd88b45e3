"""How many threads a search over small networks is worth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from threadpoolctl import threadpool_limits

__all__ = ["SMALL", "threads_for"]

#: Multiply-adds of one pass over the data below which more than one thread costs more than it gains: operations of less
#: than a millisecond spend their time at barriers (a perceptron of 17,000 multiply-adds on two busy cores: 2 CPU
#: seconds on one thread, 54 on two).
SMALL = 1e10


@contextlib.contextmanager
def threads_for(work: float) -> Iterator[None]:
    """One thread of torch's and of numpy's BLAS inside if ``work``, in multiply-adds, is small; then as many as before.

    The numbers are the whole process's: other Python threads that compute at the same time feel them.
    """
    if work >= SMALL:
        yield
        return
    before = torch.get_num_threads()
    with threadpool_limits(1, user_api="blas"):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
