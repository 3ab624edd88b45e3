"""Einstein sums of two operands."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..context import Context, Labels, Value
from ..registry import register_rule


@register_rule("aten.einsum.default")
def _einsum(c: Context, equation: str, operands: list[Value], **_: Any) -> Labels:
    """A product summed over letters; what isn't of that plain form pins its units."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or len(terms) != 2 or any(len(set(t)) < len(t) for t in terms):
        for operand in operands:
            c.pin(operand.labels, f"an einsum {equation!r}, only two plain terms with '->' are supported")
        return c.zeros()
    sizes = {letter: size for t, v in zip(terms, operands) for letter, size in zip(t, v.labels.shape)}
    total = math.prod(sizes.values())
    for number, (term, operand) in enumerate(zip(terms, operands)):
        if operand.origin is not None:
            found = _with_parameter(c, terms[1 - number], term, result, [operands[1 - number], operand], 1 - number)
            if found is not None:
                return found
    return _activations(c, terms, result, operands, sizes, total)


def _with_parameter(c: Context, term: str, own: str, result: str, values: list[Value], number: int) -> Labels | None:
    """One operand is a parameter: a linear map along one letter, when it has a summed letter and a new one."""
    x, weight = values
    summed = [letter for letter in own if letter in term and letter not in result]
    new = [letter for letter in own if letter not in term]
    if len(summed) != 1 or len(new) != 1 or len(own) != 2:
        return None
    factor = math.prod(c.shape) // weight.labels.shape[own.index(new[0])]
    out = c.contract(x, term.index(summed[0]), weight, own.index(summed[0]), own.index(new[0]), factor, (1, number))
    return c.spread(out, result.index(new[0]), c.shape)


def _activations(
    c: Context, terms: list[str], result: str, operands: list[Value], sizes: dict[str, int], total: int
) -> Labels:
    carried = []
    for term, operand in zip(terms, operands):
        dim, labels = c.carry(operand)
        carried.append((None if dim is None else term[dim], labels))
    (first, labels), (second, others) = carried
    letters = {letter for letter in (first, second) if letter is not None}
    if not letters:
        c.cost(c.zeros([1]), total)
        return c.zeros()
    letter = letters.pop()
    if letters or (letter not in result and not (first == second and all(letter in t for t in terms))):
        c.pin(torch.cat([labels, others]), "an einsum of units with other units or with values that aren't")
        c.cost(c.zeros([1]), total)
        return c.zeros()
    own, source = (labels, 0) if first is not None else (others, 1)
    if letter not in result:
        c.couple(labels, others)
        c.read(labels, terms[0].index(letter), (1, 0))
        c.cost(labels, total // sizes[letter])
        return c.zeros()
    other_term, other = terms[1 - source], operands[1 - source]
    if letter in other_term:
        c.match(other_term.index(letter), own, other, other.labels.ndim)
    c.cost(own, total // sizes[letter])
    return c.spread(own, result.index(letter), c.shape)
