"""mipprune: prune PyTorch networks by optimisation, and say what is proved about the answer.

Everything public hangs off this module (``import mipprune as mp``).  Names are loaded when first used, so that
solving stored problems never imports torch.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_attributes

if TYPE_CHECKING:
    from . import curvature, errors, estimate, game, graph, solver, study, surgery, surrogates, testing
    from .costs import BilinearCost, CostModel
    from .curvature import expand_gates, fit_linear_head
    from .errors import MipPruneError
    from .estimate import CutResolved, banzhaf, interactions, leave_one_out, semivalue, shapley
    from .game import Game, LayerGame, TableGame
    from .graph import UnitGraph, trace
    from .pruning import LossIncrease, Macs, Params, PruneResult, Units, prune
    from .solver import Problem, Solution, solve
    from .study import Study, compare
    from .surgery import PrunePlan, load, recalibrate_batch_norm, save, verify

__version__ = "0.1.0"

_HOMES = {
    "errors": "", "graph": "", "game": "", "estimate": "", "curvature": "", "solver": "", "surgery": "",
    "study": "", "surrogates": "", "testing": "",
    "BilinearCost": "costs", "CostModel": "costs",
    "MipPruneError": "errors",
    "UnitGraph": "graph", "trace": "graph",
    "Game": "game", "LayerGame": "game", "TableGame": "game",
    "CutResolved": "estimate", "banzhaf": "estimate", "interactions": "estimate", "leave_one_out": "estimate",
    "semivalue": "estimate", "shapley": "estimate",
    "expand_gates": "curvature", "fit_linear_head": "curvature",
    "Problem": "solver", "Solution": "solver", "solve": "solver",
    "LossIncrease": "pruning", "Macs": "pruning", "Params": "pruning", "PruneResult": "pruning", "Units": "pruning",
    "prune": "pruning",
    "Study": "study", "compare": "study",
    "PrunePlan": "surgery", "load": "surgery", "recalibrate_batch_norm": "surgery", "save": "surgery",
    "verify": "surgery",
}
__getattr__ = lazy_attributes(__name__, _HOMES)
__all__ = [
    "__version__",
    "errors",
    "graph",
    "game",
    "estimate",
    "curvature",
    "solver",
    "study",
    "surgery",
    "surrogates",
    "testing",
    "BilinearCost",
    "CostModel",
    "MipPruneError",
    "UnitGraph",
    "trace",
    "Game",
    "LayerGame",
    "TableGame",
    "CutResolved",
    "banzhaf",
    "interactions",
    "leave_one_out",
    "semivalue",
    "shapley",
    "expand_gates",
    "fit_linear_head",
    "Problem",
    "Solution",
    "solve",
    "LossIncrease",
    "Macs",
    "Params",
    "PruneResult",
    "Units",
    "prune",
    "Study",
    "compare",
    "PrunePlan",
    "load",
    "recalibrate_batch_norm",
    "save",
    "verify",
]
