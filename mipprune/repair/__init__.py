"""repair: a smaller network made good again without gradient descent."""

from .batchnorm import recalibrate_batch_norm
from .cut import CutNetwork
from .head import refit_head
from .refit import DenseRun, refit, refit_cut
from .second_order import MOST_WEIGHTS, count_weights, polish

__all__ = [
    "MOST_WEIGHTS", "CutNetwork", "DenseRun", "count_weights", "polish", "recalibrate_batch_norm", "refit", "refit_cut",
    "refit_head",
]
