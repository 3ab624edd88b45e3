"""repair: a smaller network made good again without gradient descent."""

from .batchnorm import recalibrate_batch_norm
from .cut import CutNetwork
from .refit import DenseRun, refit, refit_cut

__all__ = ["CutNetwork", "DenseRun", "recalibrate_batch_norm", "refit", "refit_cut"]
