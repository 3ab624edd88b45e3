"""What every backend promises."""

from __future__ import annotations

import abc

import numpy as np

from .search import Search

__all__ = ["Backend"]


class Backend(abc.ABC):
    """Searches a problem and reports to a :class:`Search`.

    A backend may only claim what it has proved: bounds go to ``search.raise_bound``, masks to ``search.offer``.  It
    stops at ``search.deadline``.  On Ctrl-C it returns ``"interrupted"`` or lets ``KeyboardInterrupt`` pass.  Its own
    failures are :class:`SolverError`.  ``mipprune.testing.SolverContract`` checks an implementation.
    """

    @abc.abstractmethod
    def run(self, search: Search, start: np.ndarray | None) -> str:
        """Search; returns why it stopped, one of ``TERMINATIONS`` or ``"infeasible"``, which is a proof.

        ``start`` is a mask (bool, shape (n,)) to begin with, feasible or not.
        """
