"""What the documents print runs as printed; the demo writes what it promises."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import mipprune as mp
from mipprune.demo import DigitsCNN, digits_mlp, run_demo

ROOT = Path(__file__).parent.parent
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


SLOW_DOCS = {"docs/estimation.md", "docs/flatness.md", "docs/solver.md", "docs/surgery.md"}
FRAGMENTS = {"docs/coverage.md"}  # pieces of an extension; test_coverage_edges.py runs them around an operation
DOCS = sorted({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - FRAGMENTS)


@pytest.mark.parametrize("document", [
    pytest.param(document, marks=[pytest.mark.slow] * (document in SLOW_DOCS))
    for document in DOCS if python_blocks(document)
])
def test_the_code_in_the_docs_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a document run from top to bottom, as one script; those that need an absent package are left out."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in python_blocks(document):
        needs = [name for name in ("transformers", "onnx") if name in block]
        if all(importlib.util.find_spec(name) for name in needs):
            exec(compile(block, document, "exec"), names)


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
