"""game: what a coalition of units is worth.  ``Game`` and ``TableGame`` need no torch; the rest loads it when used."""

from typing import TYPE_CHECKING

from ..lazy import lazy_attributes
from .base import Game, SampleGame, TableGame

if TYPE_CHECKING:
    from .data import LabelledData, as_data
    from .layer import LayerGame

__all__ = ["Game", "LabelledData", "LayerGame", "SampleGame", "TableGame", "as_data"]

__getattr__ = lazy_attributes(__name__, {"LabelledData": "data", "as_data": "data", "LayerGame": "layer"})
