"""How many entries are kept, as a linear form in the kept units."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from .labels import Components
from .sizes import AttributeSize

__all__ = ["AttributeForm", "Form", "combined"]


@dataclasses.dataclass(frozen=True)
class Form:
    """``constant + sum_u multiplicity_u [unit u is kept]``; units are component numbers, sorted."""

    constant: int
    units: tuple[int, ...] = ()
    multiplicity: tuple[int, ...] = ()

    @classmethod
    def of(cls, labels: torch.Tensor, components: Components) -> Form:
        """How many entries of a dimension with these ``labels`` are kept."""
        numbers = components.of(labels)
        units, counts = np.unique(numbers[numbers >= 0], return_counts=True)
        return cls(int((numbers < 0).sum()), tuple(units.tolist()), tuple(counts.tolist()))

    @property
    def is_constant(self) -> bool:
        return not self.units

    @property
    def dense(self) -> int:
        """Value when everything is kept."""
        return self.constant + sum(self.multiplicity)

    def scaled(self, factor: int) -> Form:
        if factor == 0:
            return Form(0)
        return Form(self.constant * factor, self.units, tuple(m * factor for m in self.multiplicity))

    def divided(self, by: int) -> Form | None:
        """The form divided by a number, where that is exact whatever is kept."""
        if by == 0 or any(m % by for m in (self.constant, *self.multiplicity)):
            return None
        return Form(self.constant // by, self.units, tuple(m // by for m in self.multiplicity))

    def plus(self, other: Form, sign: int = 1) -> Form:
        total = dict(zip(self.units, self.multiplicity))
        for unit, m in zip(other.units, other.multiplicity):
            total[unit] = total.get(unit, 0) + sign * m
        units = tuple(sorted(u for u, m in total.items() if m))
        return Form(self.constant + sign * other.constant, units, tuple(total[u] for u in units))


@dataclasses.dataclass(frozen=True)
class AttributeForm:
    """An integer attribute of a module that follows the kept units."""

    attribute: AttributeSize
    form: Form


def combined(operation: str, left: Form, right: Form) -> Form | None:
    """``left <operation> right`` as a form, ``None`` when it isn't one."""
    if operation == "+":
        return left.plus(right)
    if operation == "-":
        return left.plus(right, -1)
    if operation == "*":
        if right.is_constant:
            return left.scaled(right.constant)
        return right.scaled(left.constant) if left.is_constant else None
    if right.is_constant:
        return Form(left.constant // right.constant) if left.is_constant else left.divided(right.constant)
    whole, rest = divmod(left.dense, right.dense)  # proportional forms have a constant ratio
    return Form(whole) if rest == 0 and right.scaled(whole) == left else None
