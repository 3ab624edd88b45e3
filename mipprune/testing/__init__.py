"""Shipped with the package: networks to test on, slow references, and conformance classes to inherit.

A new game, surrogate or solver is tested by deriving from the contract's class; see each class's docstring.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes

if TYPE_CHECKING:
    from .cases import NETWORKS, NetworkCase
    from .game_contract import GameContract
    from .masking import masked_model
    from .sample_game_contract import SampleGameContract
    from .solver_contract import SolverContract
    from .storage_contract import StorageContract
    from .surrogate_contract import SurrogateContract

_HOMES = {
    "NETWORKS": "cases",
    "NetworkCase": "cases",
    "GameContract": "game_contract",
    "SampleGameContract": "sample_game_contract",
    "SolverContract": "solver_contract",
    "StorageContract": "storage_contract",
    "SurrogateContract": "surrogate_contract",
    "masked_model": "masking",
}
__getattr__ = lazy_attributes(__name__, _HOMES)
__all__ = [
    "NETWORKS",
    "GameContract",
    "NetworkCase",
    "SampleGameContract",
    "SolverContract",
    "StorageContract",
    "SurrogateContract",
    "masked_model",
]
