"""The shipped studies: each runs in its short form, says nothing is left when run again, and its report opens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mipprune.study import Study
from mipprune.study.averages import averages_of
from mipprune.study.cell import StoredCell
from mipprune.study.kinds import KINDS
from mipprune.study.report import write_report

ROOT = Path(__file__).resolve().parent.parent
STUDIES = sorted((ROOT / "examples" / "studies").glob("*.toml"))


def test_averages_are_over_seeds_alone() -> None:
    cells = [
        StoredCell(f"{seed}{p}", "gtap", "net", {"p": p, "seed": seed, "layer": "0", "version": 1}, "done", 1, None,
                   {"loss": float(seed), "proved": seed == 1, "why": "end"}, 1.0)
        for p in (0.5, None) for seed in (1, 3)
    ]
    found = averages_of("gtap", cells)
    assert found.head == ("network", "p", "runs", "loss", "proved", "why")
    assert found.rows == (("net", "0.5", "2", "2 (1 to 3)", "1/2", "end"),
                          ("net", "default", "2", "2 (1 to 3)", "1/2", "end"))
    assert found.brief == (("setting", "runs"), ("p=0.5", "2"), ("none of these", "2"))  # no result differs


def test_the_interaction_graph_draws_the_strongest_pairs_by_sign() -> None:
    pytest.importorskip("matplotlib")
    from mipprune.study.figures import interaction_figure

    figure = interaction_figure("pairs", 4, [-0.5, 0.0, 0.25, 0.0, 0.0, 0.1])
    parts = [part for part in figure.axes[0].collections if type(part).__name__ == "LineCollection"]
    widths = sorted(round(float(width), 2) for part in parts for width in part.get_linewidths())
    assert widths == [1.2, 2.4, 4.4]


@pytest.mark.slow
@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_shipped_study_runs_and_reports(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "mipprune", "study", "run", str(file), "--quick", "--storage", str(tmp_path / "s")]
    for expected in (" cells computed", "nothing to do"):
        run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                             timeout=600)
        assert run.returncode == 0, run.stdout + run.stderr
        assert expected in run.stdout
    with Study.from_file(file, tmp_path / "s") as study:
        assert set(study.states()) == {"done"}
        page = write_report(study.storage, study.name, tmp_path / "report")[0]
    text = page.read_text(encoding="utf-8")
    kinds = set(re.findall(r"^\[\[(\w+)\]\]", file.read_text(encoding="utf-8"), re.M))
    for kind in kinds - {"estimate", "prune", "interactions"}:
        assert f"<h3>{kind}</h3>" in text
        assert (f'alt="{kind} cells"' in text) == (KINDS[kind].drawn is not None)
    assert not re.search(r'(src|href)="(?!data:)', text), "the page must hold everything itself"
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "page.png"
    subprocess.run([*words, f"--screenshot={shot}", "--window-size=1100,1600", page.as_uri()], check=True,
                   capture_output=True, timeout=120)
    assert shot.read_bytes().startswith(b"\x89PNG")
    seen = subprocess.run([*words, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True,
                          timeout=120).stdout
    assert f"<h1>{study.name}</h1>" in seen
