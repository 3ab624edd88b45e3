"""Residual branches of a captured network: what is computed for one addend of a sum only, and which modules do it."""

from __future__ import annotations

import dataclasses
import itertools
import operator
import re
from collections.abc import Iterable, Mapping

from torch import fx

from .capture import is_integer_node, packet_of
from .describe import describe
from .program import Program

__all__ = ["Branch", "CoarseUnit", "Removal", "find_branches"]

#: Operations that give 0 as soon as one of their tensors is 0, or all of them (elementwise sums and joins), or their
#: only one (f(0) = 0: moves, poolings, activations).
_PRODUCTS = {"mul", "matmul", "bmm", "mm", "einsum"}
_SUMS = {"add", "sub", "rsub", "cat", "concat", "stack", "where", "maximum", "minimum"}
_KEEPS_ZERO = {
    "relu", "relu6", "gelu", "silu", "tanh", "leaky_relu", "elu", "celu", "selu", "hardtanh", "hardswish", "mish",
    "softsign", "neg", "abs", "sqrt", "square", "sin", "erf", "clone", "contiguous", "detach", "alias", "to",
    "_to_copy", "type_as", "float", "half", "double", "dropout", "feature_dropout", "view", "reshape", "_unsafe_view",
    "unflatten", "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "flip", "roll", "movedim", "expand",
    "expand_as", "repeat", "slice", "narrow", "select", "split", "split_with_sizes", "chunk", "unbind", "getitem",
    "mean", "sum", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "div", "rms_norm", "pixel_shuffle",
}


@dataclasses.dataclass(frozen=True)
class Removal:
    """A module that leaves with a branch; a stub that returns zeros takes its place.

    ``returns`` says of which shape: ``"same"`` as its first tensor argument, ``"last:N"`` with N entries along the
    last dimension, ``"conv"`` as the convolution it was; ``"tuple:same,none"`` for a tuple.
    """

    module: str
    returns: str


@dataclasses.dataclass(frozen=True)
class Branch:
    """One addend of a residual sum that can be removed.

    Attributes:
        name: the module that does its work, or what is common to the paths of those that do.
        add: node name of the sum; ``argument``: which of its two arguments the branch is.
        nodes: operations that serve nothing else.
        removals: the modules that leave.
        macs: multiply-adds per sample that leave with the modules; those of plain code stay.
    """

    name: str
    add: fx.Node
    argument: int
    nodes: frozenset[str]
    removals: tuple[Removal, ...]
    macs: int

    @property
    def skip(self) -> str:
        """Node name of the other addend."""
        return _argument(self.add, 1 - self.argument).name


@dataclasses.dataclass(frozen=True)
class CoarseUnit:
    """A unit that stands for one residual branch, or for all those of a block.

    Attributes:
        name: of the branch, or of the block.
        branches: what leaves with it.
    """

    name: str
    branches: tuple[Branch, ...]

    @property
    def removals(self) -> tuple[Removal, ...]:
        """The modules that leave, of all its branches."""
        return tuple(removal for branch in self.branches for removal in branch.removals)

    def answers_to(self, name: str) -> bool:
        """Whether ``name`` is the unit, a module that leaves with it, or one around or inside such a module."""
        paths = [removal.module for removal in self.removals]
        return name == self.name or any(_inside(name, path) or _inside(path, name) for path in paths)


def find_branches(program: Program, returns: Mapping[str, str]) -> tuple[list[Branch], list[tuple[str, str, fx.Node]]]:
    """The residual branches of a network, in execution order, and (module, reason, sum) of those that can't be removed.

    A *branch* is an addend y of a sum x + y such that x, or what x alone is computed from, is also what y is computed
    from, and y takes weights.  Of two sums one inside the other the inner one counts; where both addends take weights
    (a projection on the skip), the one with more layers is the branch.  It can be removed when stubs that return zeros
    in the place of whole modules make y exactly 0; products in plain code stay, on zeros.

    Args:
        returns: module path -> :attr:`Removal.returns`, for the modules that a stub can stand in for.
    """
    alive = _alive(program)  # checks that torch.export writes down aren't
    nodes = [n for n in program.captured.nodes if n in alive and not is_integer_node(n)]
    sums = [n for n in nodes if str(n.target) == "aten.add.Tensor" and _plain_sum(n)]
    strong: list[tuple[fx.Node, int, set[fx.Node]]] = []
    weak: list[tuple[fx.Node, int, set[fx.Node]]] = []
    for add in sums:
        own = [_exclusive(add, argument, alive) for argument in (0, 1)]
        layers = [sum(n.name in program.macs for n in part) for part in own]
        feeds = [_frontier(part, program) | {_argument(add, i)} - part for i, part in enumerate(own)]
        for i in (0, 1):
            if layers[i] > layers[1 - i] and _frontier(own[i], program) & feeds[1 - i]:
                (weak if layers[1 - i] else strong).append((add, i, own[i]))
    chosen = _innermost(strong)
    taken = {n for _, _, part in chosen for n in part}
    chosen += _innermost([c for c in weak if not c[2] & taken])
    chosen.sort(key=lambda c: nodes.index(c[0]))
    branches, refused = [], []
    for add, argument, part in chosen:
        removals = _removals(part, nodes, returns)
        reason = _why_not(program, add, argument, part, removals)
        name = _name(program, part, removals, [p for _, _, p in chosen if p is not part])
        if reason is None:
            macs = sum(program.macs.get(n.name, 0) for n in part if _in_modules(n, removals))
            served = part | {n for n in program.captured.nodes if n not in alive and part & set(n.all_input_nodes)}
            branches.append(Branch(name, add, argument, frozenset(n.name for n in served), removals, macs))
        else:
            refused.append((name, reason, add))
    return branches, refused


def _alive(program: Program) -> set[fx.Node]:
    """Nodes that some output is computed from."""
    found: set[fx.Node] = set()
    todo = list(program.captured.outputs)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.all_input_nodes)
    return found


def _plain_sum(node: fx.Node) -> bool:
    values = [a.meta.get("val") if isinstance(a, fx.Node) else None for a in node.args[:2]]
    shapes = [str(getattr(v, "shape", None)) for v in (*values, node.meta["val"])]
    return len(node.args) == 2 and not node.kwargs and node.args[0] is not node.args[1] and len(set(shapes)) == 1


def _argument(add: fx.Node, argument: int) -> fx.Node:
    value = add.args[argument]
    assert isinstance(value, fx.Node)  # _plain_sum
    return value


def _exclusive(add: fx.Node, argument: int, alive: set[fx.Node]) -> set[fx.Node]:
    """Everything that is computed for this argument of ``add`` and for nothing else."""
    part: set[fx.Node] = set()
    first = _argument(add, argument)
    todo = [first]
    while todo:
        node = todo.pop()
        served = all(user in part or (node is first and user is add) for user in node.users if user in alive)
        if node.op == "call_function" and node not in part and served:
            part.add(node)
            todo.extend(node.all_input_nodes)
    return part


def _frontier(part: set[fx.Node], program: Program) -> set[fx.Node]:
    """Values from elsewhere that ``part`` reads, parameters and sizes aside."""
    tensors = program.captured.tensors
    return {a for n in part for a in n.all_input_nodes
            if a not in part and a.name not in tensors and not is_integer_node(a)}


def _innermost(found: list[tuple[fx.Node, int, set[fx.Node]]]) -> list[tuple[fx.Node, int, set[fx.Node]]]:
    sums = {add for add, _, _ in found}
    return [c for c in found if not sums & c[2]]


def _paths(node: fx.Node) -> list[str]:
    """Paths of the modules around a node, outermost first; of a second call too."""
    return [re.sub(r"@\d+$", "", path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _inside(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _removals(part: set[fx.Node], nodes: Iterable[fx.Node], returns: Mapping[str, str]) -> tuple[Removal, ...]:
    """The largest modules all of whose operations are in ``part`` and that a stub can stand in for."""
    elsewhere = {path for n in nodes if n not in part for path in _paths(n)}
    found = {path: returns[path] for n in part for path in _paths(n) if path in returns and path not in elsewhere}
    tops = [p for p in sorted(found) if not any(p != q and _inside(p, q) for q in found)]
    return tuple(Removal(path, found[path]) for path in tops)


def _why_not(
    program: Program, add: fx.Node, argument: int, part: set[fx.Node], removals: tuple[Removal, ...]
) -> str | None:
    """Why the stubs don't make the branch vanish, or ``None`` if they do."""
    tensors = program.captured.tensors
    order = sorted(part, key=program.captured.nodes.index)
    zero: set[fx.Node] = set()
    for node in order:
        if _in_modules(node, removals) or _is_zero(node, zero):
            zero.add(node)
    for node in program.captured.nodes:  # a stub has no parameters that others could read
        for a in node.all_input_nodes:
            owner = tensors.get(a.name, "").rpartition(".")[0]
            if node not in part and owner and any(_inside(owner, r.module) for r in removals):
                return f"{tensors[a.name]!r} is also read outside of the branch ({describe(node)})"
    if _argument(add, argument) in zero:
        working = any(n.name in program.macs and _in_modules(n, removals) for n in order)
        return None if working else "none of its work is done in modules that could leave"
    product = next((n for n in order if n.name in program.macs and n not in zero), None)
    if product is not None:
        return f"the branch computes in plain code, or in a module that others share: {describe(product)}"
    last = next((n for n in order if n not in zero and any(a in zero for a in n.all_input_nodes)),
                _argument(add, argument))
    return f"without its modules the branch isn't zero: {describe(last)}"


def _in_modules(node: fx.Node, removals: tuple[Removal, ...]) -> bool:
    return any(r.module in _paths(node) for r in removals)


def _is_zero(node: fx.Node, zero: set[fx.Node]) -> bool:
    name = packet_of(node)
    name = "getitem" if node.target is operator.getitem else name
    inputs = [a for a in node.all_input_nodes if not is_integer_node(a)]
    if name == "scaled_dot_product_attention":
        return node.args[2] in zero
    if name in _PRODUCTS:
        return any(a in zero for a in inputs)
    if name in _SUMS:
        scalars = any(isinstance(a, (int, float)) and a != 0 for a in node.args) and name not in {"cat", "stack"}
        return bool(inputs) and not scalars and all(a in zero for a in inputs)
    return name in _KEEPS_ZERO and bool(inputs) and inputs[0] in zero


def _name(
    program: Program, part: set[fx.Node], removals: tuple[Removal, ...], others: list[set[fx.Node]]
) -> str:
    """The path that the working modules share, unless other branches work there too; then the first such module."""
    working = [n for n in sorted(part, key=program.captured.nodes.index) if n.name in program.macs]
    paths = [r.module for r in removals if any(r.module in _paths(n) for n in working)]
    if not paths:
        return _paths(working[0])[-1] if working and _paths(working[0]) else ""
    parts = zip(*(path.split(".") for path in paths))
    common = ".".join(p[0] for p in itertools.takewhile(lambda p: len(set(p)) == 1, parts))
    busy = {path for other in others for n in other for path in _paths(n)}
    if common and common not in busy:
        return common
    first = next(p for n in working for p in paths if p in _paths(n))
    return first
