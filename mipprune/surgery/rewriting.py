"""Code of a module's methods with other sizes in it, where no attribute can repair them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable
from typing import Any, Self

import numpy as np
from torch import nn

from ..errors import PlanError
from ..graph import RewriteSite
from ..graph.source import CallSite, Slot, method_source, rewritten_method, slot_expression
from ..records import Record

__all__ = ["SizeRewrite", "apply_rewrites"]


@dataclasses.dataclass(frozen=True, eq=False)
class SizeRewrite(Record):
    """A size in the code of a module's method that reads an attribute of its own in the pruned network.

    Attributes:
        module, method: whose code; ``code``: hash of the method's source.
        line, column, end_line, end_column: the call, lines counted from the method's first, columns in bytes.
        structure: of the call's arguments ("i" an integer, a number that many in a sequence, "x" anything else).
        item: which of its integers.
        attribute, old, new: what is read there, its value in the dense network and after surgery.
    """

    module: str
    method: str
    code: str
    line: int
    column: int
    end_line: int
    end_column: int
    structure: tuple[str, ...]
    item: int
    attribute: str
    old: int
    new: int

    @classmethod
    def of(cls, found: RewriteSite, kept: np.ndarray) -> Self:
        """What becomes of the size ``found`` when the mask ``kept`` stays."""
        site, size = found.slot.site, found.size
        return cls(
            site.module, site.method, found.code, *site.position, tuple(str(kind) for kind in site.structure),
            found.slot.item, size.attribute, size.constant + len(size.units),
            size.constant + int(kept[size.units].sum()),
        )

    @property
    def slot(self) -> Slot:
        """Where the size stands, as capture names it."""
        structure = tuple(kind if kind in ("i", "x") else int(kind) for kind in self.structure)
        position = (self.line, self.column, self.end_line, self.end_column)
        return Slot(CallSite(self.module, self.method, *position, structure), self.item)


def apply_rewrites(model: nn.Module, rewrites: Iterable[SizeRewrite]) -> None:
    """Give the modules of ``model`` the attributes and, by a subclass of their own, the methods that read them.

    Raises:
        PlanError: a method's source isn't there, or isn't what the plan was made for.
    """
    by_module: dict[str, list[SizeRewrite]] = {}
    for rewrite in rewrites:
        by_module.setdefault(rewrite.module, []).append(rewrite)
    for path, own in by_module.items():
        module = model.get_submodule(path)
        slots: dict[str, dict[Slot, str]] = {}
        for rewrite in own:
            _check(module, rewrite)
            setattr(module, rewrite.attribute, rewrite.new)
            slots.setdefault(rewrite.method, {})[rewrite.slot] = rewrite.attribute
        module.__class__ = _subclass(type(module), slots)


def _check(module: nn.Module, rewrite: SizeRewrite) -> None:
    where = f"{type(module).__name__}.{rewrite.method}"
    function = getattr(type(module), rewrite.method, None)
    found = method_source(function) if isinstance(function, types.FunctionType) else None
    if found is None:
        raise PlanError(f"the plan changes sizes in the code of {where}, whose source can't be found; "
                        f"trace(..., rewrite=False) makes plans that leave code alone")
    assert isinstance(function, types.FunctionType)
    if found[1] != rewrite.code or slot_expression(function, rewrite.slot) is None:
        raise PlanError(f"the plan changes sizes in the code of {where}, which isn't the code that it was made for")


def _subclass(kind: type[nn.Module], slots: dict[str, dict[Slot, str]]) -> type[nn.Module]:
    """A subclass of ``kind`` with its name whose methods read attributes at ``slots``; it can be pickled and copied."""
    members: dict[str, Any] = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    for method, own in slots.items():
        members[method] = rewritten_method(getattr(kind, method), own)
    members["__reduce_ex__"] = _reduced(kind, slots)
    return type(kind.__name__, (kind,), members)


def _reduced(kind: type[nn.Module], slots: dict[str, dict[Slot, str]]) -> Callable[[nn.Module, int], Any]:
    def __reduce_ex__(self: nn.Module, protocol: int) -> Any:
        return _rebuilt, (kind, slots), self.__getstate__()

    return __reduce_ex__


def _rebuilt(kind: type[nn.Module], slots: dict[str, dict[Slot, str]]) -> nn.Module:
    made = _subclass(kind, slots)
    return made.__new__(made)
