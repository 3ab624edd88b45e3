"""Where an operation of a captured graph comes from, in words."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import fx, nn

__all__ = ["computed_weight_fix", "describe", "module_path", "user_line"]


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


def computed_weight_fix(names: Iterable[str]) -> str:
    """What to call so that a weight computed from the parameters ``names`` becomes a parameter; ``""`` if unknown."""
    for name in names:
        path, _, attribute = name.rpartition(".")
        layer = f"model.get_submodule({path!r})" if path else "model"
        if ".parametrizations." in f".{name}":
            owner, _, rest = f".{name}".partition(".parametrizations.")
            layer = f"model.get_submodule({owner[1:]!r})" if owner[1:] else "model"
            return f"torch.nn.utils.parametrize.remove_parametrizations({layer}, {rest.split('.')[0]!r})"
        if attribute.endswith(("_g", "_v")):
            return f"torch.nn.utils.remove_weight_norm({layer}, {attribute[:-2]!r})"
        if attribute.endswith("_u"):
            return f"torch.nn.utils.remove_spectral_norm({layer}, {attribute[:-2]!r})"
        if attribute.endswith("_mask"):
            return f"torch.nn.utils.prune.remove({layer}, {attribute[:-5]!r})"
    return ""


def user_line(error: BaseException, model: nn.Module) -> str:
    """`` in module 'path' (Class), at file, line, function: code``: the user's last line before ``error``."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)
              if not frame.f_code.co_filename.startswith(own)]
    if not frames:
        return ""
    module = frames[-1][0].f_locals.get("self")
    path = next((name for name, m in model.named_modules() if m is module), None)
    inside = "" if path is None else f" in module {path or '(the model itself)'!r} ({type(module).__name__})"
    at = traceback.StackSummary.extract(iter(frames[-1:]))[0]
    return f'{inside}, at File "{at.filename}", line {at.lineno}, in {at.name}: `{at.line}`'
