"""The register of rules, and what happens where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from ..errors import TraceError
from .context import Context, Value
from .describe import describe

__all__ = ["RULES", "apply_rule", "opaque", "register_rule"]


def opaque(c: Context, *args: Any, **_: Any) -> Any:
    """Whatever units reach the operation are pinned; what leaves it isn't prunable."""
    for arg in args:
        for value in arg if isinstance(arg, (list, tuple)) else [arg]:
            if isinstance(value, Value):
                c.pin(value.labels, f"read by {c.node.target}, whose units can't be pruned apart")
    outs = tuple(c.zeros(shape) for shape in c.shapes)
    return outs[0] if len(outs) == 1 and not isinstance(c.node.meta["val"], (tuple, list)) else outs


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def register_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations, such as ``"aten.relu"`` (all overloads) or ``"aten.mean.dim"`` (one).

    The rule is called as ``rule(context, *args, **kwargs)`` with the operation's own arguments, tensors replaced by
    :class:`Value`; it returns the labels of the result at batch size 1 (a tensor, or a tuple of them).  A later
    registration wins.

    Args:
        names: of operations that one rule serves.
    """

    def add(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return add


def apply_rule(context: Context, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Labels of ``node``'s result; without a rule a :class:`TraceError` names module, operation and source line."""
    context.node = node
    name = str(node.target)
    rule = RULES.get(name) or RULES.get(name.rpartition(".")[0])
    if rule is None and any(context.module == path or context.module.startswith(f"{path}.") for path in context.ignore):
        rule = opaque
    if rule is None:
        alone = (f"leave the module alone with trace(..., ignore=[{context.module!r}])" if context.module else
                 "move the operation into a module of its own, say self.odd, and call trace(..., ignore=['odd'])")
        raise TraceError(
            f"no rule for {describe(node)}.\n"
            f"mipprune doesn't guess what an unknown operation does to units. Either {alone}, which pins whatever "
            f"reaches it; or say what it does with "
            f"@mipprune.graph.register_rule({name!r}), see docs/extending/operation.md."
        )
    for keyword, given in kwargs.items():
        if isinstance(given, Value):
            context.pin(given.labels, f"given as keyword {keyword}=, which rules don't look at")
    result = rule(context, *args, **kwargs)
    context.close_sizes()
    return result
