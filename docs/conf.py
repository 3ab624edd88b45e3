"""How Sphinx builds the documentation (``make docs``): offline, with every warning an error."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

import mipprune  # noqa: E402

project = "mipprune"
author = "the mipprune authors"
copyright = f"{author}, Apache-2.0"
version = release = mipprune.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "public_names"]
exclude_patterns = ["_ext"]
nitpicky = True  # a reference that leads nowhere is a warning, and so an error
# Types of other packages: their documentation is elsewhere, and the build asks no network.
nitpick_ignore_regex = [(r"py:.*", r"(?!mipprune).*")]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3  # the anchors that GitHub gives headings, so links work in both places

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature shows them as they are written; docstrings say shapes and units
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Entries as "lower, upper: ..." stay together, which a field for each name can't express
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 90
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"mipprune {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
highlight_language = "none"  # a block without a language is a command or a picture
pygments_style = "default"
pygments_dark_style = "github-dark"


def _links_to_results(app: object, docname: str, source: list[str]) -> None:
    """Pages link to the results where they lie in the repository; on the site they are a page."""
    up = "../" * docname.count("/")
    source[0] = re.sub(r"\]\((?:\.\./)+benchmarks/RESULTS\.md", f"]({up}results.md", source[0])
    source[0] = re.sub(r"\]\((?:\.\./)+CHANGELOG\.md", f"]({up}changelog.md", source[0])


def _whole_sentences(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon takes what a property's first line has before a colon for its type; ours are sentences."""
    if what == "property":
        lines[:0] = ["..", ""]  # an empty comment, before which it looks for a colon in vain


def _public_home(app, env, node, contnode):  # type: ignore[no-untyped-def]
    """References by another path, as ``mipprune.prune`` or ``mipprune.solver.api.solve``: to where the name is public.

    What isn't public (a base class, the type of a field) stays plain text; a misspelt public path is still an error.
    """
    path = node.get("reftarget", "").split(".")
    if node.get("refdomain") != "py" or path[0] != "mipprune":
        return None
    objects = env.domains["py"].objects
    names = [path] if len(path) < 3 else [path, [*path[:2], *path[-1:]], [*path[:2], *path[-2:]]]
    if len(path) == 2 and path[1] in mipprune.__all__:
        home = getattr(getattr(mipprune, path[1]), "__module__", "mipprune").split(".")[:2]
        names.append([*home, path[1]])
    for name in map(".".join, names):
        if name in objects:
            entry = objects[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)
    return contnode if _exists(path) else None


def _exists(path: list[str]) -> bool:
    for length in range(len(path), 0, -1):
        try:
            value = importlib.import_module(".".join(path[:length]))
        except ImportError:
            continue
        try:
            for name in path[length:]:
                value = getattr(value, name)
        except AttributeError:
            return False
        return True
    return False


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _links_to_results)  # type: ignore[attr-defined]
    app.connect("autodoc-process-docstring", _whole_sentences, priority=100)  # type: ignore[attr-defined]
    app.connect("missing-reference", _public_home)  # type: ignore[attr-defined]
