"""Sizes in the code of a module's methods: where each stands, and the method with some of them replaced.

``y.view(B, T, C)`` in a user's ``forward`` can't be repaired by an attribute.  Where the source is at hand, surgery
lets the method read a number of its own there: ``y.view(B, T, self.pruned_size_0)``.  Python 3.11 knows for every call
which characters of the source it is; that leads to the node of the syntax tree, and to the expression of each argument.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import hashlib
import inspect
import linecache
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["CallSite", "Slot", "call_site", "method_source", "rewritten_method", "slot_expression"]

#: What a call got: "i" an integer, a number n a sequence of n integers, "x" anything else.
Structure = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class CallSite:
    """A call in the source of a method: lines from the method's first one, columns in bytes.

    Attributes:
        module: path of the module whose method it is; ``method``: its name in the class.
        line, column, end_line, end_column: of the call.
        structure: of the arguments it got.
    """

    module: str
    method: str
    line: int
    column: int
    end_line: int
    end_column: int
    structure: Structure

    @property
    def position(self) -> tuple[int, int, int, int]:
        return self.line, self.column, self.end_line, self.end_column


@dataclasses.dataclass(frozen=True)
class Slot:
    """The ``item``-th integer among the arguments of a call."""

    site: CallSite
    item: int


def call_site(frame: types.FrameType, paths: dict[int, str], args: Sequence[Any], kwargs: Any) -> CallSite | None:
    """The call that ``frame`` is making, if it is one in a method of one of the modules ``paths`` (id -> path)."""
    code = frame.f_code
    if kwargs or not code.co_argcount:
        return None
    module = frame.f_locals.get(code.co_varnames[0])
    if not isinstance(module, nn.Module) or id(module) not in paths:
        return None
    method = next((name for cls in type(module).__mro__ for name, f in vars(cls).items()
                   if inspect.isfunction(f) and f.__code__ is code), None)
    line, end_line, column, end_column = _positions(code)[frame.f_lasti // 2]
    if method is None or line is None or end_line is None or column is None or end_column is None:
        return None
    first = code.co_firstlineno
    structure = tuple(_kind(a) for a in args)
    return CallSite(paths[id(module)], method, line - first, column, end_line - first, end_column, structure)


@functools.lru_cache(maxsize=256)
def _positions(code: types.CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


def _kind(x: Any) -> str | int:
    if isinstance(x, (int, torch.SymInt)) and not isinstance(x, bool):
        return "i"
    if isinstance(x, (tuple, list)) and all(_kind(item) == "i" for item in x):
        return len(x)
    return "x"


def method_source(function: Callable[..., Any]) -> tuple[ast.FunctionDef, str] | None:
    """Syntax tree of a method, with its line and column numbers, and a hash of its text; ``None`` without source."""
    code = function.__code__
    try:
        path = inspect.getsourcefile(code) or ""
        text = "".join(linecache.getlines(path, function.__globals__))
        tree = _parsed(text)
    except (SyntaxError, TypeError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first == code.co_firstlineno:
                lines = text.splitlines()[first - 1 : node.end_lineno]
                return node, hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return None


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def slot_expression(function: Callable[..., Any], slot: Slot) -> str | None:
    """The source of the expression at ``slot`` in a method; ``None`` if it can't be told, or shouldn't be replaced."""
    found = method_source(function)
    if found is None:
        return None
    tree, _ = found
    own = tree.args.args[0].arg if tree.args.args else None
    if own is None or any(isinstance(n, ast.Name) and n.id == own and isinstance(n.ctx, ast.Store)
                          for n in ast.walk(tree)):
        return None
    free = function.__code__.co_freevars
    if "__class__" in free and any(isinstance(n, (ast.Name, ast.Attribute)) and _private(n) for n in ast.walk(tree)):
        return None
    place = _place(tree, function.__code__.co_firstlineno, slot)
    return None if place is None else ast.unparse(place[0][place[1]])


def _private(node: ast.Name | ast.Attribute) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr
    return name.startswith("__") and not name.endswith("__")


def _place(tree: ast.FunctionDef, first: int, slot: Slot) -> tuple[list[ast.expr], int] | None:
    """The list of expressions that holds the slot's, and its place there."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and not n.keywords and
             (n.lineno - first, n.col_offset, (n.end_lineno or 0) - first, n.end_col_offset) == slot.site.position]
    if len(calls) != 1:
        return None
    given, structure = calls[0].args, slot.site.structure
    if len(structure) == len(given) + 1 and isinstance(calls[0].func, ast.Attribute):
        structure = structure[1:]  # a method: the tensor stands before the dot
    if len(structure) != len(given) or any(isinstance(g, ast.Starred) for g in given):
        return None
    number = 0
    for place, (expression, kind) in enumerate(zip(given, structure)):
        if kind == "i":
            if number == slot.item:
                return given, place
            number += 1
        elif isinstance(kind, int):
            if number <= slot.item < number + kind:
                inner = expression.elts if isinstance(expression, (ast.Tuple, ast.List)) else []
                plain = len(inner) == kind and not any(isinstance(e, ast.Starred) for e in inner)
                return (inner, slot.item - number) if plain else None
            number += kind
    return None


def rewritten_method(function: Callable[..., Any], slots: dict[Slot, str]) -> types.FunctionType:
    """A copy of a method that reads the attribute ``slots[slot]`` of its module at every slot.

    Globals, defaults, closure and line numbers stay the method's own.
    """
    found = method_source(function)
    assert found is not None
    tree = copy.deepcopy(found[0])
    tree.decorator_list = []
    own = tree.args.args[0].arg
    for slot, attribute in slots.items():
        place = _place(tree, function.__code__.co_firstlineno, slot)
        assert place is not None
        old = place[0][place[1]]
        new = ast.Attribute(ast.copy_location(ast.Name(own, ast.Load()), old), attribute, ast.Load())
        place[0][place[1]] = ast.copy_location(new, old)
    return _compiled(function, tree)


def _compiled(function: Callable[..., Any], tree: ast.FunctionDef) -> types.FunctionType:
    """The method of a changed syntax tree, in the place of ``function``."""
    tree.args.defaults = [ast.copy_location(ast.Constant(None), tree) for _ in tree.args.defaults]
    tree.args.kw_defaults = [None if d is None else ast.copy_location(ast.Constant(None), tree)
                             for d in tree.args.kw_defaults]
    arguments = [*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs, tree.args.vararg, tree.args.kwarg]
    for argument in arguments:
        if argument is not None:
            argument.annotation = None
    tree.returns = None
    free = function.__code__.co_freevars
    body: list[ast.stmt] = [tree]
    result: ast.expr = ast.Name(tree.name, ast.Load())
    if "__class__" not in free:  # private names are mangled with the name of their class
        name = function.__qualname__.split(".")[-2] if "." in function.__qualname__ else "_"
        body = [ast.ClassDef(name=name, bases=[], keywords=[], body=[tree], decorator_list=[])]
        result = ast.Attribute(ast.Name(name, ast.Load()), tree.name, ast.Load())
    factory = ast.FunctionDef(
        name="_factory", args=ast.arguments(posonlyargs=[], args=[ast.arg(arg=name) for name in free], kwonlyargs=[],
                                            kw_defaults=[], defaults=[]),
        body=[*body, ast.Return(result)], decorator_list=[],
    )
    module = ast.fix_missing_locations(ast.Module(body=[factory], type_ignores=[]))
    scope: dict[str, Any] = {}
    compiled = compile(module, function.__code__.co_filename, "exec", dont_inherit=True)
    exec(compiled, function.__globals__, scope)  # noqa: S102 - the method's own code, names of attributes aside
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    made: types.FunctionType = scope["_factory"](*cells)
    made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    made.__annotations__, made.__qualname__ = dict(function.__annotations__), function.__qualname__
    made.__doc__, made.__module__ = function.__doc__, function.__module__
    return made
