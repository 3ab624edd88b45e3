"""surgery: from a mask to a really smaller network, checked against the masked one."""

from .empty import allow_empty
from .huggingface import ConfigChange, sync_config
from .io import load, load_plan, save
from .optimizer import transfer_optimizer
from .plan import AttributeRepair, KeptUnits, PrunePlan, TensorCut
from .verify import Verification, verify

__all__ = [
    "AttributeRepair", "ConfigChange", "KeptUnits", "PrunePlan", "TensorCut", "Verification", "allow_empty", "load",
    "load_plan", "save", "sync_config", "transfer_optimizer", "verify",
]
