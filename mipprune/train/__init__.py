"""train: gradient steps, for those who want them after pruning, and auxiliary heads."""

from .auxiliary import AuxiliaryNetwork, DecoupledLayer, fit_conv_head
from .fine_tuning import FineTuned, fine_tune

__all__ = ["AuxiliaryNetwork", "DecoupledLayer", "FineTuned", "fine_tune", "fit_conv_head"]
