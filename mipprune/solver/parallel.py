"""Jobs through joblib, one result after the other where the back end can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import joblib

__all__ = ["run_jobs"]


def run_jobs(jobs: Iterable[Any], n_jobs: int | None, *, ordered: bool = True) -> Iterator[Any]:
    """Results of ``joblib.delayed`` calls, in their order or (``ordered=False``) as they come.

    Back ends that can't hand over one result at a time (Ray's) hand over all at the end, in order.
    """
    try:
        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator" if ordered else "generator_unordered")
    except ValueError:
        parallel = joblib.Parallel(n_jobs=n_jobs)
    return iter(parallel(jobs))
