"""Architectures as people have them, tiny and randomly initialised: every one passes the same checks."""

from ..cases import NetworkCase
from .attention import ATTENTION
from .convolutional import CONVOLUTIONAL
from .huggingface import HUGGING_FACE
from .sequence import SEQUENCE

ARCHITECTURES: tuple[NetworkCase, ...] = (*CONVOLUTIONAL, *SEQUENCE, *ATTENTION)

__all__ = ["ARCHITECTURES", "ATTENTION", "CONVOLUTIONAL", "HUGGING_FACE", "SEQUENCE"]
