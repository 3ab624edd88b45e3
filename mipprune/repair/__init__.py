"""repair: a smaller network made good again without gradient descent."""

from .batchnorm import recalibrate_batch_norm
from .cut import CutNetwork
from .dense import DELIVERED, DenseRun
from .head import fit_head, refit_head
from .refit import refit, refit_cut
from .second_order import MOST_WEIGHTS, count_weights, polish
from .sweep import Sweep

__all__ = [
    "DELIVERED", "MOST_WEIGHTS", "CutNetwork", "DenseRun", "Sweep", "count_weights", "fit_head", "polish",
    "recalibrate_batch_norm", "refit", "refit_cut", "refit_head",
]
