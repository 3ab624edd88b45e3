"""Plots of comparisons, readable in print and by colour-blind people.  Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from .comparison import Comparison

__all__ = ["plot_comparison"]

#: Okabe and Ito's colours, each with a line style and a marker of its own.
STYLES = (
    ("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", "-.", "^"), ("#CC79A7", ":", "D"),
    ("#E69F00", "-", "v"), ("#56B4E9", "--", "P"), ("#000000", "-.", "X"),
)


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write a picture (format by the file's ending) of what more evaluations buy.

    Left: relative error of the estimates over evaluations, one line per method.  Then, for each requirement with true
    losses, that of the solutions; a horizontal line marks the exact importances, a dotted one the best mask known.

    Args:
        comparison: what :func:`mipprune.compare` found.
        path: a file whose ending names the format, .svg or .png for instance.

    Raises:
        MissingDependencyError: matplotlib isn't installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib: pip install mipprune[plots]") from error
    requirements = list(dict.fromkeys(s.requirement for s in comparison.solutions if s.true_drop is not None))
    figure = Figure(figsize=(4.2 * (1 + len(requirements)), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(requirements), squeeze=False)[0]
    _lines(axes[0], [(r.label, r.n_evals, r.relative_error) for r in comparison.rows])
    axes[0].set(yscale="log", ylabel="relative error", title=f"against {comparison.reference}")
    for axis, name in zip(axes[1:], requirements, strict=True):
        rows = [s for s in comparison.solutions if s.requirement == name]
        exact, best = rows[0], next((s for s in rows if s.label == "best mask"), None)
        _lines(axis, [(s.label, s.n_evals, s.true_drop) for s in rows[1:] if s is not best])
        axis.axhline(exact.true_drop, color="0.3", linewidth=1)
        axis.annotate("exact importances", (0.02, exact.true_drop), xycoords=("axes fraction", "data"), fontsize=8,
                      va="bottom", color="0.3")
        if best is not None:
            axis.axhline(best.true_drop, color="0.3", linewidth=1, linestyle=":")
            axis.annotate("best mask", (0.02, best.true_drop), xycoords=("axes fraction", "data"), fontsize=8,
                          va="bottom", color="0.3")
        axis.set(ylabel="true loss increase", title=name)
    for axis in axes:
        axis.set(xscale="log", xlabel="coalition evaluations")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path)


def _lines(axis: Any, points: list[tuple[str, int, Any]]) -> None:
    for (colour, line, marker), label in zip(STYLES * len(points), dict.fromkeys(p[0] for p in points)):
        own = sorted((x, y) for name, x, y in points if name == label)
        axis.plot(*zip(*own), color=colour, linestyle=line, marker=marker, markersize=4, label=label)
