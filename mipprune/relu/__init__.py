"""relu: the ReLU network itself inside a mixed-integer program, in a sound binary form and as 2002.07259's scores."""

from .api import select
from .oamip import OamipOptions
from .pooled import pool
from .requirement import Margin, MeanLoss, Requirement
from .solution import ReluSolution

__all__ = ["Margin", "MeanLoss", "OamipOptions", "ReluSolution", "Requirement", "pool", "select"]
