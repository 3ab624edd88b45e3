"""surgery: from a mask to a really smaller network, checked against the masked one."""

from .io import load, load_plan, save
from .plan import AttributeRepair, KeptUnits, PrunePlan, TensorCut
from .verify import Verification, verify

__all__ = ["AttributeRepair", "KeptUnits", "PrunePlan", "TensorCut", "Verification", "load", "load_plan",
           "save", "verify"]
