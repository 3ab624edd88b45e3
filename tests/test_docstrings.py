"""What the API reference owes: every public name says what it takes, and which of our errors it raises."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mipprune import errors

ROOT = Path(__file__).parent.parent
OURS = {name for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.MipPruneError)}


class Entry(NamedTuple):
    """What the reference shows at one place, with the docstrings that may speak for it: its own and its classes'."""

    value: Any
    text: str
    classes: tuple[type, ...] = ()


def modules() -> list[str]:
    """Those that a page of the reference shows."""
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/api").glob("*.md"))]
    return [name for page in pages for name in re.findall(r"public-names:: ([\w.]+)", page)]


def public(module: str) -> dict[str, Any]:
    """Functions and classes of ours that the reference shows for a module, by path."""
    found = importlib.import_module(module)
    own = [name for name, value in vars(found).items() if getattr(value, "__module__", "") == module]
    values = {f"{module}.{name}": getattr(found, name) for name in getattr(found, "__all__", own)}
    return {path: value for path, value in values.items()
            if callable(value) and getattr(value, "__module__", "").startswith("mipprune")}


def entries(values: dict[str, Any]) -> dict[str, Entry]:
    """The values and the public members that their classes define."""
    found: dict[str, Entry] = {}
    for path, value in values.items():
        found[path] = Entry(value, inspect.getdoc(value) or "", value.__mro__ if inspect.isclass(value) else ())
        if not inspect.isclass(value) or issubclass(value, BaseException):
            continue
        fields = getattr(value, "__dataclass_fields__", ())
        for name, member in vars(value).items():
            function = function_of(member)
            if function is not None and name not in fields and not name.startswith(("_", "test_")):
                found[f"{path}.{name}"] = Entry(function, inspect.getdoc(getattr(value, name)) or "", value.__mro__)
    return found


def function_of(member: Any) -> Callable[..., Any] | None:
    """The function behind a method or property; None for constants."""
    for name in ("__func__", "fget", "func"):  # class and static methods, properties, cached properties
        if hasattr(member, name):
            return getattr(member, name)  # type: ignore[no-any-return]
    return member if inspect.isfunction(member) else None


def parameters(value: Any) -> list[str]:
    """Names that a caller gives."""
    if inspect.isclass(value):
        if dataclasses.is_dataclass(value):
            return [field.name for field in dataclasses.fields(value) if field.init and not field.name.startswith("_")]
        if value.__init__ is object.__init__ or issubclass(value, (BaseException, tuple)):
            return []
        value = value.__init__
    return [name for name in inspect.signature(value).parameters
            if name not in ("self", "cls", "args", "kwargs") and not name.startswith("_")]


def raised(value: Any) -> set[str]:
    """Our errors that the body itself raises."""
    if inspect.isclass(value):
        value = value.__init__
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value))))
    except (OSError, TypeError):
        return set()  # a dataclass's own __init__, or one written in C
    return set(_raised(tree))


def _raised(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "attr", getattr(node.exc.func, "id", ""))
            if name in OURS:
                yield name


def words_of(path: str, entry: Entry, everything: dict[str, Entry]) -> set[str]:
    """Of the docstring, those of its classes, and those it refers to, as in "arguments as in :func:`shapley`"."""
    texts = [entry.text, *(inspect.getdoc(kind) or "" for kind in entry.classes if "mipprune" in kind.__module__)]
    for target in re.findall(r":(?:func|meth|class):`[~.]?([\w.]+)`", entry.text):
        last = target.split(".")[-2:] if target[0].isupper() else target.split(".")[-1:]  # Class.method, or a name
        texts += [other.text for name, other in everything.items() if name.split(".")[-len(last):] == last]
    return set(re.findall(r"\w+", "\n".join(texts)))


def faults(everything: dict[str, Entry]) -> list[str]:
    """What is missing, a line each."""
    found = []
    for path, entry in everything.items():
        if not entry.text:
            found.append(f"{path}: no docstring")
            continue
        words = words_of(path, entry, everything)
        if missing := [name for name in parameters(entry.value) if name not in words]:
            found.append(f"{path}: says nothing about {', '.join(missing)}")
        if silent := sorted(raised(entry.value) - words):
            found.append(f"{path}: doesn't say that it raises {', '.join(silent)}")
    return found


def test_every_public_name_says_what_it_takes_and_raises() -> None:
    names = {path: value for module in modules() for path, value in public(module).items()}
    everything = entries(names)
    assert len(everything) > 500  # the walk walks
    assert faults(everything) == []


def test_what_is_missing_is_found() -> None:
    assert faults(entries({"x.Badly": Badly, "x.well": well, "x.silent": silent})) == [
        "x.Badly: says nothing about size",
        "x.Badly.area: no docstring",
        "x.Badly.grow: says nothing about by",
        "x.Badly.grow: doesn't say that it raises DataError",
        "x.silent: says nothing about name",
        "x.silent: doesn't say that it raises ConfigError",
    ]


class Badly:
    """A box of a certain ``colour``."""

    def __init__(self, colour: str, size: int) -> None:
        self.colour, self.size = colour, size

    @property
    def area(self) -> int:
        return self.size ** 2

    def grow(self, by: int) -> None:
        """Make it larger."""
        if by < 0:
            raise errors.DataError("no")

    def paint(self, colour: str) -> None:
        """Another coat; the class says what a colour is."""


def well(name: str) -> None:
    """Say hello.

    Args:
        name: whom to.

    Raises:
        ConfigError: nobody.
    """
    if not name:
        raise errors.ConfigError("whom?")


def silent(name: str) -> None:
    """Say nothing."""
    if not name:
        raise errors.ConfigError("whom?")
