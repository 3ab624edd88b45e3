"""graph: which units a network has, how they are tied, what they cost, and how to run it masked."""

from .program import Program
from .rules import Context, Value, register_rule
from .trace import trace
from .units import Pinned, UnitGraph, UnitGroup

__all__ = ["Context", "Pinned", "Program", "UnitGraph", "UnitGroup", "Value", "register_rule", "trace"]
