"""What every operation does to labels: one small function per kind of operation, a file per family.

A rule gets a :class:`~mipprune.graph.context.Context` and the operation's arguments, where every tensor is a
:class:`~mipprune.graph.context.Value`, and returns the labels of the result (a tensor of the result's shape at batch
size 1, or a tuple of them).
"""

from . import attention, creation, einsum, elementwise, linear, movement, normalisation, recurrent, reduction

__all__ = ["attention", "creation", "einsum", "elementwise", "linear", "movement", "normalisation", "recurrent",
           "reduction"]
