"""What was asked of ``prune``: checked before any work, with the choices that were left open made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BudgetError, ConfigError
from ..surgery import COARSE
from .options import Budget, LossIncrease
from .repairing import REPAIRS
from .surrogates import KINDS

__all__ = ["check_options", "check_units", "chosen_surrogate", "requirement"]


def requirement(budget: Any, tolerance: Any) -> tuple[Budget, ...]:
    """The budgets as a tuple, empty with a tolerance; exactly one of the two is asked for."""
    if (budget is None) == (tolerance is None):
        raise BudgetError("give exactly one of budget= (for example Macs(0.5)) and tolerance= (LossIncrease(0.05))")
    if tolerance is not None:
        if not isinstance(tolerance, LossIncrease):
            raise BudgetError(f"tolerance: expected LossIncrease(nats), got {tolerance!r}")
        return ()
    budgets = (budget,) if isinstance(budget, Budget) else budget
    if not isinstance(budgets, (tuple, list)) or not budgets or not all(isinstance(b, Budget) for b in budgets):
        raise BudgetError(f"budget: expected Macs(ratio), Params(ratio), Units(ratio) or several, got {budget!r}")
    if len({b.resource for b in budgets}) < len(budgets):
        raise BudgetError("budget: one budget per resource")
    return tuple(budgets)


def check_options(
    minimize: str, min_keep: int, multiple: int, surrogate: str | None, stages: int | None, repair: Sequence[str],
    time_limit: float | None, effort: float = 1.0, seed: int = 0,
) -> None:
    """Refuse what no network could make right, before anything is read or traced."""
    if minimize not in ("units", "params", "macs"):
        raise BudgetError(f"minimize: expected 'units', 'params' or 'macs', got {minimize!r}")
    for name, value in (("min_keep", min_keep), ("multiple", multiple), ("stages", 1 if stages is None else stages)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"seed must be a whole number, at least 0, got {seed!r}")
    if min_keep < 1:
        raise BudgetError(f"min_keep must be at least 1, got {min_keep}: a layer without units can't be built")
    if multiple < 1:
        raise BudgetError(f"multiple must be at least 1, got {multiple}")
    if surrogate is not None and surrogate not in KINDS:
        raise ConfigError(f"unknown surrogate {surrogate!r}; known: {sorted(KINDS)}")
    if stages is not None and stages < 1:
        raise ConfigError(f"stages must be at least 1, got {stages}")
    if not isinstance(repair, (tuple, list, set, frozenset)) or any(r not in REPAIRS for r in repair):
        raise ConfigError(f"repair: expected a sequence out of {REPAIRS}, got {repair!r}")
    if time_limit is not None and not time_limit > 0:
        raise ConfigError(f"time_limit must be above 0 seconds, got {time_limit}")
    if isinstance(effort, bool) or not isinstance(effort, (int, float)) or not 0 < effort < float("inf"):
        raise ConfigError(f"effort must be a number above 0 (2 searches twice as long), got {effort!r}")


def check_units(
    units: str, budgets: Sequence[Budget], surrogate: str | None, allow_empty: bool | None, multiple: int
) -> None:
    """Refuse what coarse units have no meaning for."""
    if units not in ("fine", *COARSE):
        raise ConfigError(f"units: expected 'fine', 'branches' or 'blocks', got {units!r}")
    if units == "fine":
        return
    if any(b.resource == "latency" for b in budgets):
        raise BudgetError(f"units={units!r}: latency tables are measured over the widths of layers; ask for Macs or "
                          f"Params, and time the result with mipprune.compare_latency")
    if surrogate in ("refit", "head"):
        raise ConfigError(f"surrogate={surrogate!r} speaks of units that a layer reads, not of whole {units}; "
                          f"use 'joint', 'quadratic' or 'additive'")
    if allow_empty is False or multiple > 1:
        raise ConfigError(f"units={units!r}: {units} leave as a whole; allow_empty=False and multiple > 1 don't apply")


def chosen_surrogate(
    surrogate: str | None, tolerance: Any, stages: int | None, multiple: int, repair: Sequence[str],
    units: str = "fine",
) -> str:
    """The surrogate asked for, or the one that suits the repairs: what is refitted is judged after refits."""
    if surrogate is None:
        refitted = "refit" in repair and stages in (None, 1) and units == "fine"
        surrogate = "refit" if refitted else "quadratic"
        if surrogate == "quadratic" and stages is None and tolerance is None and multiple == 1:
            surrogate = "joint"
    if surrogate == "joint" and tolerance is not None:
        raise ConfigError("surrogate='joint' takes budgets; with a tolerance use 'refit' or 'quadratic'")
    if surrogate == "joint" and multiple > 1:
        raise ConfigError("surrogate='joint' knows no width multiples; use 'refit' or 'quadratic'")
    return surrogate
