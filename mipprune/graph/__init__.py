"""graph: which units a network has, how they are tied, what they cost, and how to run it masked."""

from .branches import CoarseUnit
from .context import Context, Value
from .layers import Layer, find_layers
from .program import Program
from .registry import register_rule
from .streams import Stream, find_streams
from .trace import trace
from .units import AttributeSite, Pinned, RewriteSite, UnitGraph, UnitGroup

__all__ = [
    "AttributeSite", "CoarseUnit", "Context", "Layer", "Pinned", "Program", "RewriteSite", "Stream", "UnitGraph",
    "UnitGroup", "Value", "find_layers", "find_streams", "register_rule", "trace",
]
