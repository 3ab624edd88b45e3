"""Every error that mipprune raises on purpose, in one place.

The text of an error names the thing that is wrong and what to do about it.  All classes derive from
:class:`MipPruneError`, and where a builtin says the same (``ValueError``, ``KeyError``) from that too, so that
``except ValueError`` goes on working in scripts.
"""

from __future__ import annotations


class MipPruneError(Exception):
    """Base of all errors raised by mipprune."""


class TraceError(MipPruneError):
    """The model could not be captured, or holds an operation that no rule describes."""


class ModelStateError(MipPruneError, ValueError):
    """The model is not in a state that can be measured: training mode, NaN weights, NaN outputs."""


class UnknownLayerError(MipPruneError, KeyError):
    """A layer name that the traced network doesn't have (or that has no prunable unit)."""

    def __str__(self) -> str:  # KeyError would print the repr of its argument, quotes and all
        return str(self.args[0]) if self.args else ""


class DataError(MipPruneError, ValueError):
    """Calibration or held-out data that is empty, mismatched, not finite or of an unknown shape."""


class BudgetError(MipPruneError, ValueError):
    """A budget or tolerance that can't be read: a ratio outside (0, 1], an unknown resource."""


class InfeasibleError(MipPruneError):
    """No set of units meets all requirements; ``requirement`` says which one, ``nearest`` what could be met.

    Attributes:
        requirement: the requirement that can't be met, in words.
        nearest: the nearest value of that requirement that some selection does meet, or ``None`` if unknown.
    """

    def __init__(self, message: str, *, requirement: str = "", nearest: float | None = None) -> None:
        super().__init__(message)
        self.requirement = requirement
        self.nearest = nearest


class MissingDependencyError(MipPruneError, ImportError):
    """An optional package is not installed; the text names the pip extra that brings it."""


class SolverError(MipPruneError, RuntimeError):
    """A solver broke down, or can't take the kind of problem it was given."""


class PlanError(MipPruneError, ValueError):
    """A prune plan that is corrupt, or was made for another architecture."""


class OptimizerError(MipPruneError, ValueError):
    """An optimizer whose state can't be carried over to the smaller network."""


class VerificationError(MipPruneError):
    """The pruned model does not compute what the masked model computes."""


class ConfigError(MipPruneError, ValueError):
    """A configuration file with an unknown key, a wrong type or a name that can't be imported."""


class CertificateError(MipPruneError, ValueError):
    """A certificate that is corrupt, speaks about another problem, or doesn't prove what it claims."""


class StorageError(MipPruneError, RuntimeError):
    """A study's storage can't be read or written: no file of ours, a full disk, damage beyond single rows."""
