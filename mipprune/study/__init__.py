"""study: what the rooms before it found, compared and drawn."""

from .comparison import Comparison, ComparisonRow, SolutionRow, compare
from .plots import plot_comparison

__all__ = ["Comparison", "ComparisonRow", "SolutionRow", "compare", "plot_comparison"]
