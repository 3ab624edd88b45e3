"""Study files and ``mipprune study``: a real study from the file to the report."""

from __future__ import annotations

import csv
import re
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mipprune.cli import app
from mipprune.errors import ConfigError
from mipprune.study import EstimateSection, Study
from mipprune.study.files import read_study_file
from mipprune.study.networks import NetworkSection, TrainSection
from mipprune.study.summary import wilson

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    return x, x[:, :3].argmax(1)

def train(model, x, y, epochs, seed):
    with open("trained", "a") as stream:
        stream.write("x")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model
"""
FILE = """
[study]
name = "small"
storage = "here.db"

[models.net]
factory = "study_networks:net"
data = { source = "study_networks:data", holdout = 0.4 }
train = { epochs = 20, function = "study_networks:train" }

[[estimate]]
layer = "2"
method = ["permutation", "sample_permutation"]
n_evals = [60, 240]
seed = [0, 1, 2]
[estimate.quick]
n_evals = 60
seed = 0

[[prune]]
budget = [{ macs = 0.7 }, { macs = 0.5 }]
surrogate = ["quadratic"]
stages = [1, 2]
[prune.quick]
stages = 1
"""


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "study_networks.py").write_text(NETWORKS)
    (tmp_path / "small.toml").write_text(FILE)
    return tmp_path / "small.toml"


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["study", *map(str, words)])
    assert result.exit_code == code, result.output
    return re.sub(r"\s+", " ", result.output)


class Tags(HTMLParser):
    """Every tag with its attributes; unbalanced ones are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_from_the_file_to_the_report(study_file: Path, tmp_path: Path) -> None:
    assert "small: 6 cells computed, 0 of 6 done before" in call("run", study_file, "--quick")
    assert "small: nothing to do, all 6 cells were done before" in call("run", study_file, "--quick")
    assert "12 cells computed, 6 of 18 done before" in call("run", study_file)
    assert (tmp_path / "trained").read_text() == "x"  # once, and not by every process and run
    assert "estimate" in call("status", study_file)
    assert "wrote 12 rows" in call("export", tmp_path / "here.db", "--kind", "estimate", "--out", "rows.csv")
    with open("rows.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(r["method"], r["n_evals"], r["seed"]) for r in rows} == {
        (m, n, s) for m in ("permutation", "sample_permutation") for n in ("60", "240") for s in "012"
    }
    printed = call("report", study_file, "--out", "out")
    assert "Pruning" in printed
    assert f"wrote {Path('out/report.html')} and report.md, 3 pictures as SVG and PNG" in printed
    page, text = Path("out/report.html").read_text(), Path("out/report.md").read_text()
    tags = Tags(page)
    images = [attributes for tag, attributes in tags.seen if tag == "img"]
    assert [i["alt"] for i in images] == [
        "net: accuracy over multiply-adds", "net: units kept per layer",
        "net, layer 2: shapley, cross_entropy, keeping 50%",
    ]
    assert all((i["src"] or "").startswith("data:image/svg+xml;base64,") for i in images)
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must hold everything itself"
    pictures = re.findall(r"\]\((.+?)\)", text)
    assert len(pictures) == 3
    for name in pictures:
        assert Path("out", name).read_bytes()[:5] == b"<?xml"
        assert Path("out", name).with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    with Study.from_file(study_file) as study:
        accuracy = {(r["budget"], r["stages"]): r["pruned_accuracy"] for r in study.table("prune")}
    assert len(accuracy) == 4
    assert "best at 70% macs" in page
    for value in accuracy.values():
        assert f"{value:.2%}" in page
        assert f"{value:.2%}" in text
    first = page
    call("report", study_file, "--out", "out")
    assert Path("out/report.html").read_text() == first


def test_failures_are_shown_and_leave_with_one(study_file: Path) -> None:
    study_file.write_text(FILE.replace('layer = "2"', 'layer = "9"'))
    printed = call("run", study_file, "--quick", code=1)
    assert "UnknownLayerError" in printed
    assert "3 failed" in printed  # the table of all coalitions, and two that need it
    assert "exact (net), attempt 1:" in printed
    assert "2 cells couldn't run because they need one that failed" in printed
    assert "needs cell" not in printed
    assert "Traceback" in call("status", study_file, "--errors")
    assert "UnknownLayerError" in call("report", study_file, "--out", "out")
    assert "3 cells failed, 2 of them because they need one of these" in Path("out/report.md").read_text()
    assert "name a folder" in call("report", study_file, "--out", str(study_file), code=2)


def test_data_that_hold_nan_are_named_before_a_network_is_trained_on_them(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "holed.py").write_text(NETWORKS.replace("    return x, ", "    x[3, 1] = float('nan')\n    return x, "))
    study_file.write_text(FILE.replace("study_networks:", "holed:"))
    printed = call("run", study_file, "--quick", code=1)
    assert "the data of 'holed:data': input 'number 0' holds NaN or infinite values in 1 of" in printed
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("n_evals = 60", "n_eval = 60", [":17: ", "unknown key", "did you mean 'estimate[0].quick.n_evals'?"]),
        ("seed = [0, 1, 2]", 'seed = [0, "1"]', [":15: ", "'estimate[0].seed[1]'", "a whole number", "got '1'"]),
        ('surrogate = ["quadratic"]', 'surrogate = ["quadratc"]', [":22: ", "did you mean 'quadratic'?"]),
        ("[[prune]]", "[[prun]]", ["unknown section 'prun'", "did you mean 'prune'?"]),
        ("storage =", "storge =", [":4: ", "did you mean 'study.storage'?"]),
        ("epochs = 20", "epochs = 0", [":9: ", "'models.net.train.epochs'", "at least 1"]),
        ("factory =", "factry =", [":7: ", "did you mean 'models.net.factory'?"]),
        ("stages = [1, 2]", "stages = [1, 2]\nn_jobs = 2", ["give n_jobs to the run"]),
        ("budget = [{ macs = 0.7 }, { macs = 0.5 }]", "budget = { latency = 0.5 }", ["depends on the moment"]),
        ("budget = [{ macs = 0.7 }, { macs = 0.5 }]", "", ["[[prune]] needs one of budget, tolerance"]),
        ("[models.net]", "[models]", ["network"]),
    ],
)
def test_mistakes_are_named_with_their_line(study_file: Path, old: str, new: str, said: list[str]) -> None:
    assert FILE.count(old) == 1
    study_file.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_study_file(study_file)
    assert [part for part in said if part not in str(caught.value)] == [], str(caught.value)
    assert str(study_file) in str(caught.value)


def test_what_isnt_there(study_file: Path, tmp_path: Path) -> None:
    for words in (["status", study_file], ["report", study_file, "--out", "x"], ["status", tmp_path / "no.db"]):
        call(*words, code=2)
        assert not (tmp_path / "here.db").exists()
        assert not (tmp_path / "no.db").exists()


def test_the_shipped_studies_are_read() -> None:
    for file in sorted((ROOT / "examples" / "studies").glob("*.toml")):
        study = read_study_file(file)
        assert sum(len(grid.sections) for grid in study.quick) < sum(len(grid.sections) for grid in study.grids)


def test_wilson() -> None:
    low, high = wilson(0.9, 100)  # Wilson's interval, by hand: (0.9 + 0.0192) / 1.0384 -+ ...
    assert low == pytest.approx(0.8256, abs=5e-4)
    assert high == pytest.approx(0.9448, abs=5e-4)
    assert wilson(1.0, 10)[1] == 1.0
    assert wilson(0.0, 10)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_documented_file_is_read_and_shows_every_key(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    example = page.split("```toml\n")[1].split("```")[0]
    (tmp_path / "study.toml").write_text(example, encoding="utf-8")
    study = read_study_file(tmp_path / "study.toml")
    assert [len(grid.sections) for grid in study.grids] == [2 * 9, 3 * 2 * 3]
    keys = [field.name for kind in (NetworkSection, TrainSection, EstimateSection) for field in fields(kind)]
    assert [key for key in keys if not re.search(rf"(^|^# |[{{,] ){key} = ", example, re.MULTILINE)] == []
