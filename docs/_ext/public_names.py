"""A directive that documents every public name of a module from its docstring: what ``__all__`` lists, and no more."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

__all__ = ["PublicNames", "setup"]


class PublicNames(SphinxDirective):
    """``.. public-names:: mipprune.solver``; further names in the content are left out (they stand elsewhere)."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Functions and classes in the order of ``__all__``; classes with the members that they define."""
        name = self.arguments[0]
        module = importlib.import_module(name)
        skipped = {word for line in self.content for word in line.split()}
        names = getattr(module, "__all__", None) or _own_classes(module)
        unknown = skipped - set(names)
        if unknown:
            raise self.error(f"{name} has no public {', '.join(sorted(unknown))}")
        lines = [f".. module:: {name}", "   :no-index-entry:", ""]
        for public in names:
            if public not in skipped:
                lines += _directive(name, public, getattr(module, public))
        return self.parse_text_to_nodes(StringList(lines, source=f"<public names of {name}>"))


def _own_classes(module: Any) -> list[str]:
    """Classes of a module that lists no names, in the order they are written."""
    return [n for n, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]


def _directive(module: str, name: str, value: Any) -> list[str]:
    if inspect.ismodule(value):
        return []
    if inspect.isclass(value):
        options = [] if issubclass(value, BaseException) else ["   :members:"]
        if any(base.__name__ in getattr(importlib.import_module(module), "__all__", ()) for base in value.__bases__):
            options.append("   :show-inheritance:")
        return [f".. autoclass:: {module}.{name}", *options, ""]
    kind = "autofunction" if callable(value) else "autodata"
    return [f".. {kind}:: {module}.{name}", ""]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("public-names", PublicNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
