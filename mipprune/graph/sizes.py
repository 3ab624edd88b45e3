"""Where the numbers in a network's code come from: ``self.num_heads``, ``x.shape[-1]``, or written down.

A captured graph holds ``reshape(x, [n, 8, 4, 16])``, and after surgery the 4 has to be a 3.  Whether it will be
depends on where the 4 came from when ``forward`` ran.  So while the network is captured, every integer attribute of
its modules and every size read off a tensor is a :class:`Size`, an ``int`` that remembers its origin through
arithmetic, and a torch function mode notes which of them reach which operation.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import operator
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..errors import TraceError
from .attention_module import PrunableMultiheadAttention
from .source import CallSite, call_site

__all__ = ["AttributeSize", "Expression", "Origin", "OutOfTime", "Recorder", "SizeProduct", "TensorSize",
           "instrumented", "integers"]


@dataclasses.dataclass(frozen=True)
class AttributeSize:
    """An integer that a module keeps: ``module.attribute``, or entry ``index`` of a tuple there (-1: not a tuple)."""

    module: str
    attribute: str
    index: int = -1

    def __str__(self) -> str:
        name = ".".join(filter(None, [self.module, self.attribute]))
        return name if self.index < 0 else f"{name}[{self.index}]"


@dataclasses.dataclass(frozen=True)
class TensorSize:
    """Size of dimension ``dim`` of result ``output`` (None: the only one) of the recorded call ``call``."""

    call: int
    output: int | None
    dim: int


@dataclasses.dataclass(frozen=True)
class SizeProduct:
    """``left <operation> right``, with operation one of ``* + - //``."""

    operation: str
    left: Expression
    right: Expression


Expression = int | AttributeSize | TensorSize | SizeProduct
#: An integer argument as recorded: its value and where it came from; (None, None) for a symbolic one.
Origin = tuple[int | None, Expression | None]
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "*": operator.mul, "+": operator.add, "-": operator.sub, "//": operator.floordiv,
}


class Size(int):
    """An int that knows the expression it came from."""

    expression: Expression
    recorder: Recorder

    @classmethod
    def make(cls, value: int, expression: Expression, recorder: Recorder) -> Size:
        size = cls(value)
        size.expression, size.recorder = expression, recorder
        return size

    def _combined(self, other: Any, operation: str, swapped: bool) -> Any:
        if isinstance(other, torch.SymInt | float):
            if isinstance(other, float):
                self.recorder.note_number(self.expression)
            pair = (other, int(self)) if swapped else (int(self), other)
            return _OPERATIONS[operation](*pair)
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented  # a tensor's own operator sees where the number came from
        mine, theirs = self.expression, getattr(other, "expression", int(other))
        left, right = (other, self) if swapped else (self, other)
        value = _OPERATIONS[operation](int(left), int(right))
        expression = SizeProduct(operation, theirs, mine) if swapped else SizeProduct(operation, mine, theirs)
        return Size.make(value, expression, self.recorder)

    def __float__(self) -> float:
        self.recorder.note_number(self.expression)
        return float(int(self))

    def __truediv__(self, other: Any) -> Any:
        self.recorder.note_number(self.expression)
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        self.recorder.note_number(self.expression)
        return other / int(self)

    def __pow__(self, other: Any, modulus: Any = None) -> Any:
        self.recorder.note_number(self.expression)
        return pow(int(self), other, modulus)

    def __deepcopy__(self, memo: dict[int, Any]) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return (int, (int(self),))


def _binary(operation: str, swapped: bool) -> Callable[[Size, Any], Any]:
    return lambda self, other: self._combined(other, operation, swapped)


for _name, _operation in {"mul": "*", "add": "+", "sub": "-", "floordiv": "//"}.items():
    setattr(Size, f"__{_name}__", _binary(_operation, False))
    setattr(Size, f"__r{_name}__", _binary(_operation, True))


class Recorder(TorchFunctionMode):
    """Notes, for every torch function that ``forward`` calls, the integers it got; and keeps the time limit.

    Attributes:
        arguments: per call the integers among its arguments, in order; ``names``: the function's name.
        numeric: expressions whose value entered the computation as a number (a scale), not as a size.
        attributes: the value of every integer attribute.
        same: result of a call -> the earlier result of the same shape that it was made from.
        sites: per call where it stands in the source of a module's method, if it does;
            ``paths``: id of a module -> its path.
    """

    def __init__(self, deadline: float = float("inf")) -> None:
        super().__init__()
        self.arguments: dict[int, list[Origin]] = {}
        self.names: dict[int, str] = {}
        self.numeric: set[Expression] = set()
        self.attributes: dict[AttributeSize, int] = {}
        self.same: dict[tuple[int, int | None], tuple[int, int | None]] = {}
        self.sites: dict[int, CallSite] = {}
        self.paths: dict[int, str] = {}
        self.deadline = deadline
        self._calls: dict[int, tuple[int, int | None]] = {}
        self._alive: list[Any] = []

    def note_number(self, expression: Expression) -> None:
        self.numeric.add(expression)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if time.monotonic() > self.deadline:
            raise OutOfTime(f"tracing took longer than its time_limit; it had come to "
                            f"{getattr(function, '__name__', function)}, called at {_user_line()}")
        kwargs = kwargs or {}
        plain_args, plain_kwargs = _map_ints((args, kwargs), lambda x: int(x) if isinstance(x, Size) else x)
        name = getattr(function, "__name__", "")
        if name == "size" or function == torch.Tensor.shape.__get__:  # type: ignore[attr-defined]
            return self._sized(args[0], function(*plain_args, **plain_kwargs), plain_args[1:], plain_kwargs)
        call = len(self.arguments) + 1
        self.names[call] = name
        self.arguments[call] = [_origin(x) for x in integers((args, kwargs))]
        if self.arguments[call] and (site := call_site(sys._getframe(1), self.paths, args, kwargs)) is not None:
            self.sites[call] = site
        with _marked(call) as marked:
            out = function(*plain_args, **plain_kwargs)
        if not marked.found:  # an operation that changed nothing handed its argument on
            return out
        if isinstance(out, torch.Tensor):
            before = self._calls.get(id(args[0])) if args else None
            if before is not None and args[0].shape == out.shape:
                self.same[call, None] = before
            self._remember(out, (call, None))
        elif isinstance(out, (tuple, list)):
            for i, tensor in enumerate(out):
                if isinstance(tensor, torch.Tensor):
                    self._remember(tensor, (call, i))
        return out

    def _remember(self, tensor: torch.Tensor, origin: tuple[int, int | None]) -> None:
        self._calls[id(tensor)] = origin
        self._alive.append(tensor)  # an id means nothing once its object is gone

    def _sized(self, tensor: Any, sizes: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        origin = self._calls.get(id(tensor))
        if origin is None:
            return sizes

        def wrap(value: Any, dim: int) -> Any:
            return Size.make(value, TensorSize(*origin, dim), self) if type(value) is int else value

        if isinstance(sizes, torch.Size):
            return torch.Size([wrap(v, d) for d, v in enumerate(sizes)])
        dim = args[0] if args else kwargs.get("dim", 0)
        return wrap(sizes, dim % tensor.ndim)


class OutOfTime(TraceError):
    """The time limit of tracing has passed."""


class _marked:
    """Marks every node that torch.export records inside the context as belonging to one call."""

    def __init__(self, call: int) -> None:
        self.call = call
        self.found = False

    def __enter__(self) -> _marked:
        mode = torch.fx.experimental.proxy_tensor.get_proxy_mode()
        self.nodes: Any = () if mode is None else mode.tracer.graph.nodes
        self.last = next(iter(reversed(self.nodes)), None)
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            if node is self.last:
                return
            node.meta.setdefault("custom", {})["call"] = self.call
            self.found = True


def instrumented(model: nn.Module, recorder: Recorder) -> nn.Module:
    """A copy of ``model`` that shares its tensors, whose integer attributes are :class:`Size` and whose forward
    records into ``recorder``.
    """
    tensors = [*model.parameters(), *model.buffers()]
    clone = copy.deepcopy(model, {id(t): t for t in tensors})
    for path, module in list(clone.named_modules()):
        if path and PrunableMultiheadAttention.supports(module):
            clone.set_submodule(path, PrunableMultiheadAttention(module))
    for path, module in clone.named_modules():
        recorder.paths[id(module)] = path
        for name, value in list(vars(module).items()):
            if type(value) is int:
                module.__dict__[name] = _attribute(value, AttributeSize(path, name), recorder)
            elif type(value) in (tuple, list, torch.Size) and value and all(type(v) is int for v in value):
                module.__dict__[name] = type(value)(
                    [_attribute(v, AttributeSize(path, name, i), recorder) for i, v in enumerate(value)]
                )
    forward = clone.forward

    @functools.wraps(forward)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        with recorder:
            return forward(*args, **kwargs)

    clone.forward = recorded
    return clone


def _attribute(value: int, attribute: AttributeSize, recorder: Recorder) -> Size:
    recorder.attributes[attribute] = value
    return Size.make(value, attribute, recorder)


def _origin(x: Any) -> Origin:
    return (int(x), getattr(x, "expression", int(x))) if isinstance(x, int) else (None, None)


def integers(tree: Any, symbols: type = torch.SymInt) -> Iterator[Any]:
    """Integers and symbolic integers in nested arguments, in order."""
    if isinstance(tree, bool):
        return
    if isinstance(tree, int) or (isinstance(tree, symbols) and _is_integer(tree)):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from integers(item, symbols)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from integers(item, symbols)
    elif isinstance(tree, slice):
        yield from integers((tree.start, tree.stop, tree.step), symbols)


def _is_integer(x: Any) -> bool:
    return not isinstance(x, fx.Node) or isinstance(x.meta.get("val"), (int, torch.SymInt))


def _map_ints(tree: Any, change: Callable[[Any], Any]) -> Any:
    def leaf(x: Any) -> Any:
        if isinstance(x, slice):
            return slice(change(x.start), change(x.stop), change(x.step))
        return change(x)

    return pytree.tree_map(leaf, tree)


def _user_line() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and ("/torch/" in frame.f_code.co_filename or __file__ == frame.f_code.co_filename):
        frame = frame.f_back
    return f'File "{frame.f_code.co_filename}", line {frame.f_lineno}'
