"""graph: which units a network has, how they are tied, what they cost, and how to run it masked."""

from .branches import CoarseUnit
from .context import Context, Value
from .layers import Layer, find_layers
from .program import Program
from .registry import register_rule
from .trace import trace
from .units import AttributeSite, Pinned, RewriteSite, UnitGraph, UnitGroup

__all__ = [
    "AttributeSite", "CoarseUnit", "Context", "Layer", "Pinned", "Program", "RewriteSite", "UnitGraph", "UnitGroup",
    "Value", "find_layers", "register_rule", "trace",
]
