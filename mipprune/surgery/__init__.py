"""surgery: from a mask to a really smaller network, checked against the masked one."""

from .coarse import COARSE, coarsen
from .empty import allow_empty
from .huggingface import ConfigChange, sync_config
from .io import load, load_plan, save
from .optimizer import transfer_optimizer
from .plan import AttributeRepair, KeptUnits, ModuleRemoval, PrunePlan, SizeRewrite, TensorCut
from .verify import Verification, verify

__all__ = [
    "COARSE", "AttributeRepair", "ConfigChange", "KeptUnits", "ModuleRemoval", "PrunePlan", "SizeRewrite", "TensorCut",
    "Verification", "allow_empty", "coarsen", "load", "load_plan", "save", "sync_config", "transfer_optimizer",
    "verify",
]
