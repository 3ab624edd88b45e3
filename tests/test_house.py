"""The house in order: imports run one way, the pure rooms stay free of torch, files stay small and documented."""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "mipprune").rglob("*.py"))
MAX_LINES = 400

# From the ground up.  Rooms of one row may import each other as long as no circle arises.
ROWS = (
    ("errors", "lazy"),
    ("records",),
    ("costs",),
    ("graph", "datasets"),
    ("game",),
    ("estimate", "curvature", "bounds"),
    ("distributed",),
    ("surrogates",),
    ("solver",),
    ("surgery", "repair", "relu"),
    ("latency",),
    ("train",),
    ("pruning",),
    ("config", "sources"),
    ("study",),
    ("cli", "demo", "study_cli", "__main__"),
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
TOP = {"cli", "demo", "study_cli", "__main__"}  # these may use the package as a user does: ``import mipprune``
NO_TORCH = {"errors", "records", "costs", "estimate", "surrogates", "solver"}
NO_TORCH_FILES = {"game/base.py"}
# Distributions whose module has another name.
MODULE_OF = {"scikit-learn": "sklearn", "torch-pruning": "torch_pruning", "pytest-timeout": "pytest_timeout"}


def _modules_of(requirements: list[str]) -> set[str]:
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requirements}
    return {MODULE_OF.get(name, name) for name in names}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = _modules_of(PROJECT["dependencies"])
OPTIONAL = _modules_of([r for extra in PROJECT["optional-dependencies"].values() for r in extra]) - CORE
#: Files that are imported only where an optional package was found.
BEHIND = {"game/kernels.py": {"numba"}}


class Import(NamedTuple):
    target: str  # dotted name, absolute
    line: int
    at_load: bool  # runs when the module is imported, not later inside a function
    for_types: bool  # inside ``if TYPE_CHECKING``: never runs


def imports_of(source: str, package: str) -> list[Import]:
    """Every import of a file whose package is ``package`` (``mipprune`` for ``mipprune/costs.py``)."""
    found: list[Import] = []

    def visit(node: ast.AST, at_load: bool, for_types: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_load, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [*package.split(".")[: package.count(".") + 2 - node.level], base]))
            # ``from mipprune import solver`` imports the room; from anything deeper the base says enough
            targets = [f"{base}.{alias.name}" for alias in node.names] if base == "mipprune" else [base]
            found.extend(Import(target, node.lineno, at_load, for_types) for target in targets)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, at_load, True)
            for child in node.orelse:
                visit(child, at_load, for_types)
            return
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, at_load and not inside, for_types)

    visit(ast.parse(source), True, False)
    return found


def room_of(relative: str) -> str:
    """Room of a file given relative to ``mipprune/``; the package's own ``__init__`` is the room ``""``."""
    return "" if relative == "__init__.py" else relative.removesuffix(".py").split("/")[0]


def complaints(source: str, relative: str) -> Iterator[str]:
    """What the imports of one file break."""
    room = room_of(relative)
    package = ".".join(["mipprune", *relative.split("/")[:-1]])
    for target, line, at_load, for_types in imports_of(source, package):
        where = f"mipprune/{relative}:{line}"
        top = target.split(".")[0]
        if top == "mipprune":
            yield from _house_complaints(room, target.split(".")[1:], where)
        elif top not in sys.stdlib_module_names:
            if top not in CORE | OPTIONAL:
                yield f"{where}: {top} is not declared in pyproject.toml"
            elif top in OPTIONAL - BEHIND.get(relative, set()) and at_load and not for_types and not (
                room == "testing" and top in _TEST_TOOLS
            ):
                yield f"{where}: {top} is optional; import it in the function that needs it"
        if top == "torch" and (room in NO_TORCH or relative in NO_TORCH_FILES):
            yield f"{where}: this room works without torch"


_TEST_TOOLS = {"pytest", "hypothesis"}


def _house_complaints(room: str, path: list[str], where: str) -> Iterator[str]:
    if room in ("", "testing") or (path and path[0] == room):
        return
    if not path or path[0].startswith("__"):
        if room not in TOP:
            yield f"{where}: a room imports from the room it needs, not from the package that shows them all"
    elif path[0] == "testing":
        if room not in TOP:
            yield f"{where}: mipprune.testing stands above all rooms"
    elif path[0] not in ROW_OF:
        yield f"{where}: mipprune.{path[0]} has no place in ROWS of tests/test_house.py"
    elif ROW_OF[path[0]] > ROW_OF.get(room, -1):
        yield f"{where}: {room} imports {path[0]}, which stands above it"


def _relative(path: Path) -> str:
    return path.relative_to(ROOT / "mipprune").as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=_relative)


@each_file
def test_imports_run_one_way(path: Path) -> None:
    assert room_of(_relative(path)) in {"", "testing", *ROW_OF}, "give the new room its place in ROWS"
    assert list(complaints(path.read_text(encoding="utf-8"), _relative(path))) == []


def test_no_circle_between_rooms() -> None:
    needs: dict[str, set[str]] = {}
    for path in FILES:
        relative = _relative(path)
        package = ".".join(["mipprune", *relative.split("/")[:-1]])
        targets = [i.target.split(".") for i in imports_of(path.read_text(encoding="utf-8"), package)]
        used = {t[1] for t in targets if t[0] == "mipprune" and len(t) > 1} & set(ROW_OF)
        needs.setdefault(room_of(relative), set()).update(used - {room_of(relative)})
    assert list(graphlib.TopologicalSorter(needs).static_order())  # raises CycleError with the circle


@each_file
def test_files_are_small_and_documented(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_LINES, "too long to read at one sitting: split it by purpose"
    assert ast.get_docstring(ast.parse(source)), "the first line of a file says what it is for"


@each_file
def test_exported_names_exist(path: Path) -> None:
    relative = _relative(path)
    if relative == "__main__.py":
        pytest.skip("importing __main__ runs the command")
    parts = relative.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")
    module = importlib.import_module(f"mipprune.{parts}".rstrip("."))
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names), "__all__ names something twice"
    missing = [name for name in names if not hasattr(module, name)]
    assert missing == []


@pytest.mark.parametrize("module", ["errors", "records", "costs", "game.base", "estimate", "surrogates", "solver"])
def test_pure_rooms_load_without_torch(module: str) -> None:
    code = f"import sys, mipprune.{module}; sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_pure_rooms_work_where_torch_is_not_installed() -> None:
    code = "import sys; sys.modules['torch'] = None; import mipprune.solver, mipprune.estimate, mipprune.surrogates"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_public_names_mean_the_same_whatever_was_imported_before() -> None:
    """Importing ``mipprune.prune`` sets the attribute ``prune`` of the package, over a function of that name."""
    code = """
import importlib, pkgutil, mipprune
first = {name: getattr(mipprune, name, None) for name in mipprune.__all__}
for module in pkgutil.walk_packages(mipprune.__path__, "mipprune."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
changed = [name for name, value in first.items() if getattr(mipprune, name, None) is not value]
raise SystemExit(f"changed: {changed}" if changed else 0)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("relative", "source", "expected"),
    [
        ("costs.py", "from .graph import trace", "stands above"),
        ("costs.py", "from mipprune import graph", "stands above"),
        ("solver/scip.py", "from ..pruning import prune", "stands above"),
        ("solver/scip.py", "def f():\n    from .. import surgery", "stands above"),
        ("game/base.py", "import mipprune", "the room it needs"),
        ("game/base.py", "from .. import __version__", "the room it needs"),
        ("graph/rules.py", "from ..testing import cases", "above all rooms"),
        ("graph/rules.py", "from ..nowhere import x", "no place in ROWS"),
        ("estimate/walk.py", "def f():\n    import torch.nn", "without torch"),
        (
            "surrogates/base.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
            "without torch",
        ),
        ("game/base.py", "from torch import nn", "without torch"),
        ("estimate/walk.py", "try:\n    import numba\nexcept ImportError:\n    numba = None", "is optional"),
        ("study/plots.py", "class A:\n    import matplotlib.pyplot", "is optional"),
        ("testing/cases.py", "from sklearn.datasets import load_digits", "is optional"),
        ("study/plots.py", "def f():\n    import seaborn", "not declared"),
    ],
)
def test_the_check_sees_an_offence(relative: str, source: str, expected: str) -> None:
    found = list(complaints(source, relative))
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("relative", "source"),
    [
        ("solver/scip.py", "import pyscipopt\nfrom .problem import Problem\nfrom ..surrogates import Surrogate"),
        ("estimate/walk.py", "from ..game.base import Game\nfrom . import exact\ndef f():\n    import numba"),
        ("game/layer.py", "import torch\nfrom ..graph.capture import Capture"),
        ("study/plots.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import matplotlib"),
        ("testing/contracts.py", "import pytest\nfrom ..pruning import prune\nimport mipprune"),
        ("cli.py", "import typer\nimport mipprune as mp\nfrom .demo import run"),
        ("__init__.py", "from .pruning import prune"),
    ],
)
def test_the_check_lets_pass_what_is_right(relative: str, source: str) -> None:
    assert list(complaints(source, relative)) == []


def test_constraints_pin_every_declared_package() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins), "one exact public version a line"
    requirements = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    declared = {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requirements}
    assert declared <= {pin.partition("==")[0] for pin in pins}
