"""mipprune: prune PyTorch networks by optimisation, and say what is proved about the answer.

Everything public hangs off this module (``import mipprune as mp``).  Names are loaded when first used, so that
solving stored problems never imports torch.
"""

from typing import TYPE_CHECKING

from .lazy import lazy_attributes

if TYPE_CHECKING:
    from . import (
        bounds,
        curvature,
        errors,
        estimate,
        game,
        graph,
        latency,
        relu,
        repair,
        solver,
        study,
        surgery,
        surrogates,
        testing,
        train,
    )
    from .costs import BilinearCost, CostModel
    from .curvature import expand_gates, fit_linear_head
    from .distributed import TorchCommunicator
    from .errors import MipPruneError
    from .estimate import (
        CutResolved,
        banzhaf,
        gtap_iterated_building,
        gtap_iterated_pruning,
        gtap_top_n,
        interactions,
        k_partial,
        leave_one_out,
        oracle_comparison,
        oracle_sets,
        semivalue,
        shapley,
        shapley_pruning_ranks,
    )
    from .game import Game, LayerGame, TableGame
    from .graph import UnitGraph, trace
    from .latency import LatencyTable, compare_latency, measure_latency
    from .pruning import AccuracyDrop, Latency, LossIncrease, Macs, Params, PruneResult, Units, prune
    from .repair import recalibrate_batch_norm
    from .solver import Problem, Solution, solve
    from .study import Study, compare
    from .surgery import PrunePlan, allow_empty, coarsen, load, save, transfer_optimizer, verify
    from .train import CubicSchedule, train_and_prune

__version__ = "0.1.0"

_HOMES = {
    "errors": "", "graph": "", "game": "", "estimate": "", "curvature": "", "bounds": "", "solver": "",
    "surgery": "", "repair": "", "latency": "", "relu": "", "study": "", "surrogates": "", "testing": "", "train": "",
    "BilinearCost": "costs", "CostModel": "costs",
    "MipPruneError": "errors",
    "TorchCommunicator": "distributed",
    "UnitGraph": "graph", "trace": "graph",
    "Game": "game", "LayerGame": "game", "TableGame": "game",
    "CutResolved": "estimate", "banzhaf": "estimate", "interactions": "estimate", "leave_one_out": "estimate",
    "semivalue": "estimate", "shapley": "estimate",
    "gtap_iterated_building": "estimate", "gtap_iterated_pruning": "estimate", "gtap_top_n": "estimate",
    "k_partial": "estimate",
    "oracle_comparison": "estimate", "oracle_sets": "estimate", "shapley_pruning_ranks": "estimate",
    "expand_gates": "curvature", "fit_linear_head": "curvature",
    "LatencyTable": "latency", "compare_latency": "latency", "measure_latency": "latency",
    "Problem": "solver", "Solution": "solver", "solve": "solver",
    "AccuracyDrop": "pruning", "Latency": "pruning", "LossIncrease": "pruning", "Macs": "pruning",
    "Params": "pruning", "PruneResult": "pruning", "Units": "pruning",
    "prune": "pruning",
    "recalibrate_batch_norm": "repair",
    "Study": "study", "compare": "study",
    "PrunePlan": "surgery", "allow_empty": "surgery", "coarsen": "surgery", "load": "surgery", "save": "surgery",
    "transfer_optimizer": "surgery", "verify": "surgery",
    "CubicSchedule": "train", "train_and_prune": "train",
}
__getattr__ = lazy_attributes(__name__, _HOMES)
__all__ = [
    "__version__",
    "errors",
    "graph",
    "game",
    "estimate",
    "curvature",
    "bounds",
    "repair",
    "solver",
    "study",
    "surgery",
    "relu",
    "latency",
    "surrogates",
    "testing",
    "train",
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
    "gtap_iterated_building",
    "gtap_iterated_pruning",
    "gtap_top_n",
    "interactions",
    "k_partial",
    "leave_one_out",
    "oracle_comparison",
    "oracle_sets",
    "semivalue",
    "shapley",
    "shapley_pruning_ranks",
    "TorchCommunicator",
    "expand_gates",
    "fit_linear_head",
    "LatencyTable",
    "compare_latency",
    "measure_latency",
    "Problem",
    "Solution",
    "solve",
    "Latency",
    "AccuracyDrop",
    "LossIncrease",
    "Macs",
    "Params",
    "PruneResult",
    "Units",
    "prune",
    "Study",
    "compare",
    "PrunePlan",
    "allow_empty",
    "coarsen",
    "load",
    "recalibrate_batch_norm",
    "save",
    "transfer_optimizer",
    "verify",
    "CubicSchedule",
    "train_and_prune",
]
