"""What the documents print runs as printed; the demo writes what it promises."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main
from rich.console import Console

import mipprune as mp
from mipprune import cli
from mipprune.config import load_config
from mipprune.demo import DigitsCNN, digits_mlp, run_demo
from mipprune.graph.registry import RULES
from mipprune.solver.registry import BACKENDS
from mipprune.study.drawn import DRAWN
from mipprune.study.files import read_study_file
from mipprune.study.kinds import KINDS
from mipprune.testing import StorageContract

ROOT = Path(__file__).parent.parent
REGISTRIES = (RULES, BACKENDS, KINDS, DRAWN)
KEYS = {
    "model", "task", "dense_accuracy", "pruned_accuracy", "units_total", "units_kept", "macs_ratio", "params_ratio",
    "objective", "bound", "gap", "termination", "proved", "mask_vs_surgery_max_abs_diff", "seconds",
}  # fmt: skip


def python_blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart, requirements, parts = python_blocks("README.md")
    assert len(quickstart.strip().splitlines()) <= 20
    names: dict[str, object] = {}
    exec(compile(quickstart, "README.md", "exec"), names)
    assert "units kept" in capsys.readouterr().out
    names["data"] = (names["x"][:150], names["y"][:150])  # type: ignore[index]
    exec(compile(requirements.replace('"stem.0"', ""), "README.md", "exec"), names)
    exec(compile(parts, "README.md", "exec"), names)
    assert "units kept" in capsys.readouterr().out


# pages that take more than about two CPU-seconds, or need a compiler of theirs
SLOW_DOCS = {
    "docs/solver.md", "docs/surgery.md", "docs/estimation.md", "docs/flatness.md", "docs/quickstart.md",
    "docs/graph.md", "docs/curvature.md", "docs/repair.md",
    "docs/train.md", "docs/latency.md", "docs/how-to/latency-budget.md", "docs/how-to/exact-vs-sampled.md",
    "docs/how-to/onnx.md", "docs/how-to/stored-problem.md", "docs/how-to/transformer.md",
    "docs/how-to/accuracy-tolerance.md", "docs/extending/operation.md", "docs/extending/study-kind.md",
    "docs/extending/storage.md", "docs/extending/surrogate.md",
}
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
OPTIONAL = ("transformers", "onnx", "onnxruntime")


@pytest.mark.parametrize("document", [
    pytest.param(document, marks=[pytest.mark.slow] * (document in SLOW_DOCS))
    for document in PAGES if python_blocks(document)
])
def test_the_code_in_the_docs_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a document run from top to bottom, as one script; those that need an absent package are left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = [dict(table) for table in REGISTRIES]
    names: dict[str, object] = {"__name__": "a_page"}
    try:
        for block in python_blocks(document):
            needs = [name for name in OPTIONAL if re.search(rf"(import|from) {name}\b|{name}\.export", block)]
            if all(importlib.util.find_spec(name) for name in needs):
                exec(compile(block, document, "exec", dont_inherit=True), names)  # not this file's annotations
        contracts = [value for value in names.values() if isinstance(value, type) and value.__name__.startswith("Test")]
        for contract in contracts:
            run_contract(contract, tmp_path)
    finally:  # what a page registers is gone afterwards
        for table, before in zip(REGISTRIES, known):
            table.clear()
            table.update(before)


def run_contract(contract: type, tmp_path: Path) -> None:
    """The checks of a conformance class that a page inherits; those of storages need pytest's fixtures."""
    if issubclass(contract, StorageContract):
        return
    checks = [name for name in dir(contract) if name.startswith("test_")]
    assert checks
    for name in checks:
        getattr(contract(), name)()


def test_every_page_is_reached() -> None:
    """A page that no table of contents names can't be found by a reader."""
    named: set[str] = set()
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for block in re.findall(r"```\{toctree\}\n(.*?)```", text, flags=re.DOTALL):
            for entry in (line.strip() for line in block.splitlines()):
                if entry and not entry.startswith(":"):
                    named |= {p.relative_to(ROOT).as_posix() for p in (ROOT / page).parent.glob(f"{entry}.md")}
    assert set(PAGES) - named == {"docs/index.md"}


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, "README.md"]:
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_every_public_name_is_in_the_reference() -> None:
    rooms = {path.stem for path in (ROOT / "docs/api").glob("*.md")} - {"index"}
    for room in rooms:
        assert f".. public-names:: mipprune.{room}" in (ROOT / f"docs/api/{room}.md").read_text(encoding="utf-8")
    for name in mp.__all__:
        value = getattr(mp, name)
        if name == "__version__":
            continue
        if inspect.ismodule(value):
            assert name in rooms, f"docs/api/{name}.md is missing"
        else:
            assert value.__module__.split(".")[1] in rooms, name


@pytest.mark.parametrize("document", PAGES)
def test_configurations_and_commands_are_valid(document: str, tmp_path: Path) -> None:
    """TOML blocks pass the parsers that the commands use; the commands' names and options exist."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for block in re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL):
        file = tmp_path / "page.toml"
        file.write_text(block, encoding="utf-8")
        if "[study]" in block:
            read_study_file(file)
        elif "[model]" in block:
            load_config(file)
    app = typer.main.get_command(cli.app)
    fences = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    for block in (body for language, body in fences if not language):
        for line in block.splitlines():
            if line.startswith("mipprune ") and not re.search(r"[|\[]|\.\.\.", line):
                check_command(app, line.split("#")[0].split()[1:])


def check_command(command: object, words: list[str]) -> None:
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
    assert {word for word in words if word.startswith("--")} <= options, words


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees", "-b", "html"]
    run = subprocess.run([*command, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    pages = {path.relative_to(tmp_path / "site").with_suffix(".md").as_posix()
             for path in (tmp_path / "site").rglob("*.html")}
    assert {page.removeprefix("docs/") for page in PAGES} <= pages
    reference = (tmp_path / "site/api/solver.html").read_text(encoding="utf-8")
    for name in mp.solver.__all__:
        assert f'id="mipprune.solver.{name}"' in reference, name
    for path in (tmp_path / "site").rglob("*.html"):  # read without a network
        assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//', path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, quick=True, console=Console(quiet=True))
    return out


@pytest.mark.slow
def test_demo_writes_every_run(demo: Path) -> None:
    runs = json.loads((demo / "result.json").read_text())["runs"]
    assert [(r["model"], r["task"]) for r in runs] == [
        ("mlp", "tolerance"), ("mlp", "macs50"), ("cnn", "tolerance"), ("cnn", "macs50"),
    ]  # fmt: skip
    for run in runs:
        assert set(run) == KEYS
        assert run["mask_vs_surgery_max_abs_diff"] <= 1e-4
        assert run["bound"] <= run["objective"] + 1e-9
        assert run["termination"] == ("optimal" if run["proved"] else "iteration_limit")
        assert run["pruned_accuracy"] >= run["dense_accuracy"] - (0.03 if run["task"] == "tolerance" else 0.08)
        if run["task"] == "macs50":
            assert 0.45 <= run["macs_ratio"] <= 0.5
        assert math.isfinite(run["seconds"])


@pytest.mark.slow
def test_demo_files_rebuild_the_networks(demo: Path) -> None:
    for name, make in (("mlp", digits_mlp), ("cnn", DigitsCNN)):
        for task in ("tolerance", "macs50"):
            small = mp.load(demo / f"{name}-{task}.safetensors", make().eval())
            plan = mp.PrunePlan.load(demo / f"{name}-{task}.plan.json")
            assert small(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
            assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in make().parameters())
            assert plan.n_kept < plan.n_units
    assert (demo / "demo.png").stat().st_size > 10_000
    assert not list(demo.glob("*.part*"))


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    if "import transformers" in script.read_text() or "from transformers" in script.read_text():
        pytest.importorskip("transformers")
    options = ["--quick"] if "--quick" in script.read_text() else []
    run = subprocess.run([sys.executable, str(script), *options], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(run.stdout) > 200
