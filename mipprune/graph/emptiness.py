"""What happens when groups lose all of their units: what is gone, and whether the output still hears the input.

A value whose entries all belong to emptied groups is *gone*: it has width 0 after surgery.  What reads it gets exactly
nothing, so a layer that reads only gone values puts out its bias; such a value is *settled*, it doesn't depend on the
input any more.  Emptying is harmless as long as the output isn't settled, as in a residual branch, which the skip goes
around.
"""

from __future__ import annotations

import operator
from collections.abc import Set

from torch import fx

from .capture import is_integer_node
from .describe import describe
from .program import Program

__all__ = ["gone_dims", "why_needed"]

#: Operations that put values side by side: one that is gone just isn't there.
_JOINS = ("aten.cat.default", "aten.concat.default")


def gone_dims(program: Program, empty: Set[int]) -> dict[str, tuple[int, ...]]:
    """Node name -> the dimension of each of its results that has width 0, for the nodes all of whose results have one.

    ``empty`` are the numbers of the groups that keep nothing.
    """
    return {
        name: tuple(dim for dim, _ in results)
        for name, results in program.carried.items() if all(groups <= empty for _, groups in results)
    }


def why_needed(program: Program, empty: Set[int]) -> str | None:
    """Why the groups ``empty`` can't all lose every unit, or ``None`` if that is harmless.  O(operations)."""
    gone = gone_dims(program, empty)
    live = set(program.captured.inputs)
    for node in program.captured.nodes:
        if node.name in gone or is_integer_node(node) or (
            node.meta.get("val") is None and node.target is not operator.getitem  # checks that torch.export writes down
        ):
            continue
        arguments = [a.name for a in node.all_input_nodes]
        missing = [name for name in arguments if name in gone]
        if missing and str(node.target) not in _JOINS and node.target is not operator.getitem:
            if not _reads_plainly(program, node, missing):
                return f"{describe(node, source=False)} can't do without all of its values"
            continue  # a product with nothing: settled
        if any(name in live for name in arguments):
            live.add(node.name)
    if any(node.name not in live for node in program.captured.outputs if node.name in _ever_live(program)):
        return "without it the output wouldn't depend on the input"
    return None


def _reads_plainly(program: Program, node: fx.Node, missing: list[str]) -> bool:
    """Whether ``node`` sums over the values that are gone, and doesn't average over them."""
    return program.sums_over(node, set(missing))


def _ever_live(program: Program) -> set[str]:
    """Nodes that depend on the input in the dense network."""
    live = set(program.captured.inputs)
    for node in program.captured.nodes:
        if any(a.name in live for a in node.all_input_nodes):
            live.add(node.name)
    return live
