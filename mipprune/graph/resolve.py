"""Sizes that change when units leave: which attributes have to be repaired, and what has to be pinned instead.

Every integer that an operation takes as a size must, after surgery, be the number of entries kept along some
dimension.  That number is a *form*: a constant plus how many units are kept, each with a multiplicity.  Where the
integer came from an attribute of a module (``num_heads``), the attribute gets that form; where it was computed from
attributes and sizes of tensors, the computation is done on forms; where it is written down in the code, or an
attribute would have to be two things at once, the units are pinned with the reason.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch

from .context import Context
from .forms import AttributeForm, Form, combined
from .labels import Components
from .sizes import AttributeSize, Expression, SizeProduct, TensorSize
from .source import CallSite, Slot, method_source, slot_expression
from .values import SizeUse

__all__ = ["Resolved", "RewrittenSize", "resolve_sizes"]


@dataclasses.dataclass(frozen=True)
class RewrittenSize:
    """A place in a method's code that surgery lets read ``form.attribute`` instead of ``expression``."""

    slot: Slot
    expression: str
    code: str
    form: AttributeForm


@dataclasses.dataclass(frozen=True)
class Resolved:
    """How sizes were settled: the units as they are then, attributes that follow them, and code to rewrite."""

    components: Components
    attributes: tuple[AttributeForm, ...]
    rewritten: tuple[RewrittenSize, ...]


def resolve_sizes(context: Context, rewrite: bool = True) -> Resolved:
    """Settle all sizes: by attributes, by rewriting code (if ``rewrite``), else by pinning.

    Every round rewrites or pins something, so it ends.
    """
    fixed: dict[AttributeSize, str] = {}
    rewrites = Rewrites(context, rewrite)
    while True:
        components = context.space.components()
        trial = _Round(context, components, dict(fixed), rewrites)
        known, trouble = trial.settle()
        if trial.rewrote:
            continue
        fixed = trial.fixed
        trouble = [(labels, why) for labels, why in trouble if (components.of(labels) >= 0).any()]
        if not trouble:
            made = set(rewrites.made.values())
            forms = tuple(AttributeForm(a, f) for a, f in known.items() if not f.is_constant and a not in made)
            return Resolved(components, forms, rewrites.settled(trial))
        for labels, reason in trouble:
            context.space.pin(labels, reason)


class Rewrites:
    """Places in the code that get an attribute of their own, and those that could."""

    def __init__(self, context: Context, allowed: bool) -> None:
        self.context, self.allowed = context, allowed
        self.made: dict[Slot, AttributeSize] = {}
        self._uses: dict[Slot, set[int]] = {}
        self._calls: dict[CallSite, set[int]] = {}
        for call, site in context.captured.sites.items():
            self._calls.setdefault(site, set()).add(call)
        for use in context.sizes:
            if use.slot is not None:
                self._uses.setdefault(use.slot, set()).add(use.call)

    def origin(self, use: SizeUse) -> Expression:
        """Where the integer comes from once the code is rewritten."""
        return use.origin if use.slot is None else self.made.get(use.slot, use.origin)

    def offer(self, use: SizeUse) -> bool:
        """Give the integer an attribute of its own, if its expression can be replaced and every call there is known."""
        slot = use.slot
        if not self.allowed or slot is None or slot in self.made or self._uses[slot] != self._calls[slot.site]:
            return False
        function = self.context.captured.methods.get(slot.site)
        if function is None or slot_expression(function, slot) is None:
            return False
        taken = {*self.context.captured.attributes, *self.made.values()}
        names = (AttributeSize(slot.site.module, f"pruned_size_{n}") for n in itertools.count())
        self.made[slot] = next(name for name in names if name not in taken)
        return True

    def settled(self, last: _Round) -> tuple[RewrittenSize, ...]:
        """The places whose own expression wouldn't do."""
        wrong = {use.slot for use in self.context.sizes
                 if use.slot in self.made and not last.agrees(use, Form.of(use.labels, last.components))}
        out = []
        for slot, attribute in self.made.items():
            if slot not in wrong:
                continue
            function = self.context.captured.methods[slot.site]
            expression, source = slot_expression(function, slot), method_source(function)
            assert expression is not None
            assert source is not None
            out.append(RewrittenSize(slot, expression, source[1], AttributeForm(attribute, last.known[attribute])))
        return tuple(out)


class _Round:
    """One pass over all sizes with the components as they are."""

    def __init__(
        self, context: Context, components: Components, fixed: dict[AttributeSize, str], rewrites: Rewrites
    ) -> None:
        self.context = context
        self.components = components
        self.fixed = fixed
        self.rewrites = rewrites
        self.rewrote = False
        self.sizes = [dataclasses.replace(use, origin=rewrites.origin(use)) for use in context.sizes]
        self.known: dict[AttributeSize, Form] = {}
        self.trouble: list[tuple[torch.Tensor, str]] = []

    def settle(self) -> tuple[dict[AttributeSize, Form], list[tuple[torch.Tensor, str]]]:
        uses = [(use, Form.of(use.labels, self.components)) for use in self.sizes]
        direct = [(u, f) for u, f in uses if isinstance(u.origin, AttributeSize)]
        derived = [(u, f) for u, f in uses if not isinstance(u.origin, AttributeSize)]
        for use, form in direct:
            self._attribute(use, form)
        for use, form in derived:
            if not self.agrees(use, form):
                self._solve(use, form)
        for use, form in derived:  # attributes found on the way may speak against sizes settled before
            if not self.agrees(use, form):
                self._reject(use, form)
        self._numbers()
        return self.known, self.trouble

    def _attribute(self, use: SizeUse, form: Form) -> None:
        attribute = use.origin
        assert isinstance(attribute, AttributeSize)
        if attribute in self.fixed and not form.is_constant:
            if self._rewritten(use):
                return
            self.trouble.append((use.labels, self.fixed[attribute]))
            return
        if self.known.setdefault(attribute, form) != form and not self._rewritten(use):
            reason = f"attribute {attribute} would have to take two values after pruning (at {use.where})"
            if attribute in self.rewrites.made.values():
                reason = f"one place in the code serves widths that leave differently ({use.where})"
            self.fixed[attribute] = reason
            self.trouble += [(u.labels, reason) for u in self.sizes
                             if u.origin == attribute and not Form.of(u.labels, self.components).is_constant]

    def agrees(self, use: SizeUse, form: Form) -> bool:
        """Whether the code's own integer comes out right after surgery."""
        value = self._evaluate(use.origin)
        if value is None:  # a size that isn't known doesn't vary; a quotient of widths that leave apart does
            return form.is_constant and not self._varies(use.origin)
        return form == value

    def _varies(self, expression: Expression) -> bool:
        forms = (self._evaluate(leaf) for leaf in _leaves(expression))
        return any(form is not None and not form.is_constant for form in forms)

    def _solve(self, use: SizeUse, form: Form) -> None:
        """Give an attribute that occurs in the expression the value that makes it right, if there is one."""
        candidates = [a for a in _leaves(use.origin) if isinstance(a, AttributeSize)
                      and a not in self.known and a not in self.fixed]
        found = []
        for attribute in dict.fromkeys(candidates):
            solved = self._invert(use.origin, form, attribute)
            if solved is not None:
                found.append((max(solved.multiplicity, default=0), attribute, solved))
        if found:
            _, attribute, solved = min(found, key=lambda item: item[0])
            self.known[attribute] = solved
        else:
            self._reject(use, form)

    def _invert(self, expression: Expression, wanted: Form, unknown: AttributeSize) -> Form | None:
        """The form of ``unknown`` that makes ``expression`` equal to ``wanted``."""
        if expression == unknown:
            return wanted
        if not isinstance(expression, SizeProduct):
            return None
        inside = unknown in _leaves(expression.left)
        if inside == (unknown in _leaves(expression.right)):
            return None  # on neither side, or on both
        branch, other = (expression.left, expression.right) if inside else (expression.right, expression.left)
        value = self._evaluate(other)
        if value is None:
            return None
        target: Form | None = None
        if expression.operation == "*":
            target = wanted.divided(value.constant) if value.is_constant else None
        elif expression.operation == "+":
            target = wanted.plus(value, -1)
        elif expression.operation == "-":
            target = wanted.plus(value) if inside else value.plus(wanted, -1)
        elif inside and value.is_constant:
            target = wanted.scaled(value.constant)
        return None if target is None else self._invert(branch, target, unknown)

    def _evaluate(self, expression: Expression) -> Form | None:
        """The expression after surgery as a form; ``None`` when it isn't one, or isn't known."""
        if isinstance(expression, int):
            return Form(expression)
        if isinstance(expression, AttributeSize):
            return self.known.get(expression) or Form(self.context.captured.attributes[expression])
        if isinstance(expression, TensorSize):
            return self._tensor_size(expression)
        left, right = self._evaluate(expression.left), self._evaluate(expression.right)
        if left is None or right is None:
            return None
        return combined(expression.operation, left, right)

    def _tensor_size(self, size: TensorSize) -> Form | None:
        labels = self.context.labels_of(size)
        return None if labels is None else Form.of(labels, self.components)

    def _reject(self, use: SizeUse, form: Form) -> None:
        """Pin what the size depends on: the entries it should count, and those it was computed from."""
        if self._rewritten(use):
            return
        if isinstance(use.origin, int):
            reason = f"the literal size {use.origin} is written in the code; use -1, a size taken from the tensor, " \
                     f"or an attribute ({use.where})"
        else:
            reason = f"a size computed from {_text(use.origin)} would be wrong after pruning; use -1, or an " \
                     f"attribute of its own such as self.head_dim ({use.where})"
        self.trouble.append((use.labels, reason))
        if form.is_constant or not isinstance(use.origin, int):
            self._pin_leaves(use.origin, reason)

    def _rewritten(self, use: SizeUse) -> bool:
        if use.slot in self.rewrites.made and use.origin != self.rewrites.made[use.slot]:
            return True  # in this round
        offered = self.rewrites.offer(use)
        self.rewrote |= offered
        return offered

    def _pin_leaves(self, expression: Expression, reason: str) -> None:
        for leaf in _leaves(expression):
            if isinstance(leaf, TensorSize):
                labels = self.context.labels_of(leaf)
                if labels is not None and not Form.of(labels, self.components).is_constant:
                    self.trouble.append((labels, reason))
            elif isinstance(leaf, AttributeSize) and not self.known.get(leaf, Form(0)).is_constant:
                self.fixed[leaf] = reason
                self.trouble += [(u.labels, reason) for u in self.sizes
                                 if leaf in _leaves(u.origin) and not self._rewritten(u)]

    def _numbers(self) -> None:
        """Sizes that also enter the computation as numbers (a scale, a divisor) must stay."""
        for expression in self.context.captured.numeric:
            form = self._evaluate(expression)
            if form is None or not form.is_constant:
                reason = f"{_text(expression)} is also used as a number in the computation, not only as a size"
                self._pin_leaves(expression, reason)


def _leaves(expression: Expression) -> list[AttributeSize | TensorSize]:
    if isinstance(expression, SizeProduct):
        return _leaves(expression.left) + _leaves(expression.right)
    return [] if isinstance(expression, int) else [expression]


def _text(expression: Expression) -> str:
    if isinstance(expression, SizeProduct):
        return f"{_text(expression.left)} {expression.operation} {_text(expression.right)}"
    if isinstance(expression, TensorSize):
        return f"dimension {expression.dim} of a tensor"
    return f"{expression}"
