"""graph: which units a network has, how they are tied, what they cost, and how to run it masked."""

from .context import Context, Value
from .program import Program
from .registry import register_rule
from .trace import trace
from .units import AttributeSite, Pinned, UnitGraph, UnitGroup

__all__ = ["AttributeSite", "Context", "Pinned", "Program", "UnitGraph", "UnitGroup", "Value", "register_rule", "trace"]
