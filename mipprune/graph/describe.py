"""Where an operation of a captured graph comes from, in words."""

from __future__ import annotations

from torch import fx

__all__ = ["describe", "module_path"]


def describe(node: fx.Node, *, source: bool = True) -> str:
    """``module 'path' (Class), op name, at file:line: code`` of a node, for error messages."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    where = ""
    trace = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    user = [i for i, line in enumerate(trace) if line.startswith("File") and "/torch/nn/" not in line]
    if user and source:
        code = trace[user[-1] + 1] if user[-1] + 1 < len(trace) else ""
        where = f", at {trace[user[-1]]}: `{code}`"
    return f"module {path or '(the model itself)'!r} ({kind.rsplit('.', 1)[-1]}), op {node.target}{where}"


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that a node comes from, ``""`` for the model itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""
