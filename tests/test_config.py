"""Configuration files: what is right is read as typed sections, what is wrong is named with file, key and remedy."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path

import pytest

import mipprune as mp
from mipprune.config import (
    BudgetSection,
    DataSection,
    ModelSection,
    OutputSection,
    PruneSection,
    RunConfig,
    load_config,
)
from mipprune.errors import ConfigError
from mipprune.sources import DEFAULT_HOLDOUT

SECTIONS = (ModelSection, DataSection, PruneSection, BudgetSection, OutputSection)
FULL = """
[model]
factory = "pack.age:make"
weights = "w.safetensors"
[data]
source = "pack:data"
holdout = 0.3
[prune]
budget = { macs = 0.5, params = 1 }
minimize = "macs"
layers = ["fc1", "fc2"]
pin = ["fc2"]
ignore = ["extras"]
min_keep = 2
allow_empty = true
units = "blocks"
multiple = 8
surrogate = "head"
stages = 3
repair = []
solver = "scip"
effort = 0.5
time_limit = 30
n_jobs = -1
seed = 7
[output]
dir = "results"
name = "half"
"""
SHORT = '[model]\nfactory = "m:f"\n[data]\nsource = "digits"\n[prune]\ntolerance = 0\n'


def read(folder: Path, text: str) -> RunConfig:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_every_key_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    assert dataclasses.asdict(config) == {
        "path": tmp_path / "run.toml",
        "model": {"factory": "pack.age:make", "weights": "w.safetensors"},
        "data": {"source": "pack:data", "holdout": 0.3},
        "prune": {
            "budget": {"macs": 0.5, "params": 1.0, "units": None, "latency": None},
            "tolerance": None, "minimize": "macs",
            "layers": ("fc1", "fc2"), "pin": ("fc2",), "ignore": ("extras",), "min_keep": 2, "allow_empty": True,
            "units": "blocks",
            "multiple": 8,
            "surrogate": "head", "stages": 3,
            "repair": (), "solver": "scip", "effort": 0.5, "time_limit": 30.0, "n_jobs": -1, "seed": 7,
        },
        "output": {"dir": "results", "name": "half"},
    }
    assert type(config.prune.time_limit) is float
    assert (config.output_dir, config.output_name) == (tmp_path / "results", "half")


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = read(tmp_path, SHORT)
    assert config.prune == PruneSection(tolerance=0.0)
    assert config.output == OutputSection()
    assert (config.output_dir, config.output_name) == (tmp_path / "pruned", "run")


def test_paths_are_looked_up_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path, SHORT)
    monkeypatch.chdir(tmp_path)
    config = load_config("run.toml")
    monkeypatch.chdir("/")
    assert config.path == Path("run.toml")
    assert RunConfig(tmp_path / "run.toml", config.model, config.data, config.prune, config.output).folder == tmp_path


def test_the_documented_file_is_read_and_shows_every_key(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    example = page.split("```toml\n")[1].split("```")[0]
    read(tmp_path, example)
    every_key = [field.name for kind in SECTIONS for field in dataclasses.fields(kind)]
    unseen = [key for key in every_key if not re.search(rf"(^|^# |[{{,] ){key} = ", example, re.MULTILINE)]
    assert unseen == ["latency"]


def test_the_section_follows_the_function() -> None:
    """A keyword that ``prune`` gains, or a default that moves, must show here."""
    given_elsewhere = {"model", "data", "holdout", "validation", "example_input", "progress"}
    keywords = {
        name: parameter.default for name, parameter in inspect.signature(mp.prune).parameters.items()
        if name not in given_elsewhere
    }
    assert {field.name: field.default for field in dataclasses.fields(PruneSection)} == keywords
    assert inspect.signature(mp.prune).parameters["holdout"].default == DEFAULT_HOLDOUT


def test_the_choices_follow_the_registries() -> None:
    from mipprune.pruning.repairing import REPAIRS
    from mipprune.pruning.surrogates import KINDS

    hints = typing.get_type_hints(PruneSection)
    assert set(typing.get_args(typing.get_args(hints["surrogate"])[0])) == set(KINDS)
    assert set(typing.get_args(typing.get_args(hints["repair"])[0])) == set(REPAIRS)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # sections and keys
        ("[output]", "[outptu]", ["unknown section 'outptu'", "did you mean 'output'?"]),
        ("[output]", "[zzz]", ["unknown section 'zzz'", "known here: model, data, prune, output"]),
        ("factory =", "factroy =", ["unknown key 'model.factroy'", "did you mean 'model.factory'?"]),
        ("min_keep", "minkeep", ["unknown key 'prune.minkeep'", "did you mean 'prune.min_keep'?"]),
        ("params = 1", "flops = 1", ["unknown key 'prune.budget.flops'", "known here: macs, params, units"]),
        ("macs = 0.5", "mac = 0.5", ["unknown key 'prune.budget.mac'", "did you mean 'prune.budget.macs'?"]),
        ('factory = "pack.age:make"', "", ["[model] lacks the key 'factory'", "'package.module:function'"]),
        ('source = "pack:data"', "", ["[data] lacks the key 'source'"]),
        # types
        ("seed = 7", 'seed = "7"', ["'prune.seed'", "a whole number", "got '7'"]),
        ("seed = 7", "seed = true", ["'prune.seed'", "a whole number", "got True"]),
        ("seed = 7", "seed = 7.0", ["'prune.seed'", "a whole number", "got 7.0"]),
        ("macs = 0.5", "macs = true", ["'prune.budget.macs'", "a number"]),
        ('pin = ["fc2"]', 'pin = "fc2"', ["'prune.pin'", "a list, each a string", "got 'fc2'"]),
        ('layers = ["fc1", "fc2"]', 'layers = ["fc1", 2]', ["'prune.layers[1]'", "a string", "got 2"]),
        ("budget = { macs = 0.5, params = 1 }", "budget = 0.5", ["'prune.budget'", "expected a table", "got 0.5"]),
        ('dir = "results"', "dir = 2026-01-01", ["'output.dir'", "a string"]),
        # values
        ("macs = 0.5", "macs = 1.5", ["'prune.budget.macs'", "above 0 and at most 1", "got 1.5"]),
        ("macs = 0.5", "macs = 0", ["'prune.budget.macs'", "above 0 and at most 1"]),
        ("macs = 0.5", "macs = nan", ["'prune.budget.macs'", "got nan"]),
        ('"macs"', '"mac"', ["'prune.minimize'", "one of 'units', 'params', 'macs'", "did you mean 'macs'?"]),
        ('"head"', '"heads"', ["'prune.surrogate'", "did you mean 'head'?"]),
        ('"scip"', '"gurobi"', ["'prune.solver'", "'highs', 'scip', 'cbc'"]),
        ("repair = []", 'repair = ["bnn"]', ["'prune.repair[0]'", "did you mean 'bn'?"]),
        ("min_keep = 2", "min_keep = 0", ["'prune.min_keep'", "at least 1"]),
        ("stages = 3", "stages = 0", ["'prune.stages'", "at least 1"]),
        ("seed = 7", "seed = -1", ["'prune.seed'", "at least 0"]),
        ("n_jobs = -1", "n_jobs = 0", ["'prune.n_jobs'", "-1 for all cores"]),
        ("time_limit = 30", "time_limit = 0", ["'prune.time_limit'", "above 0 seconds"]),
        ("holdout = 0.3", "holdout = 1", ["'data.holdout'", "above 0 and below 1"]),
        ("pack.age:make", "pack.age.make", ["'model.factory'", "'package.module:function'"]),
        ("pack.age:make", "../pack:make", ["'model.factory'", "'package.module:function'"]),
        ("w.safetensors", "w.npz", ["'model.weights'", ".safetensors, .pt or .pth"]),
        ('"pack:data"', '"digit"', ["'data.source'", "did you mean 'digits'?"]),
        ('"half"', '"a/b"', ["'output.name'", "without folder"]),
        ('"half"', '""', ["'output.name'", "without folder"]),
        # what must go together
        ("budget = { macs = 0.5, params = 1 }", "", ["exactly one of 'budget'", "neither"]),
        ("budget = { macs = 0.5, params = 1 }", "budget = {}", ["exactly one of 'budget'", "neither"]),
        ("minimize =", "tolerance = 0.05\nminimize =", ["exactly one of 'budget'", "both"]),
        ("minimize =", "tolerance = -1\nminimize =", ["'prune.tolerance'", "at least 0", "got -1"]),
        ("minimize =", "tolerance = inf\nminimize =", ["'prune.tolerance'", "finite"]),
        ('"pack:data"', '"digits"', ["'data.holdout'", "has its own held-out part", "remove"]),
        # not TOML
        ("[model]", "[model", ["not a TOML file", "line 2"]),
        ("seed = 7", "seed = 7\nseed = 8", ["not a TOML file"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: list[str]) -> None:
    assert FULL.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, FULL.replace(old, new))
    text = str(caught.value)
    assert re.match(re.escape(str(tmp_path / "run.toml")) + r"(:\d+)?: ", text)
    assert "\n" not in text
    assert [part for part in said if part not in text] == [], text


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("min_keep", "minkeep", 14),
        ("seed = 7", 'seed = "7"', 25),
        ("macs = 0.5", "mac = 0.5", 9),
        ("[output]", "[outptu]", 26),
        ('layers = ["fc1", "fc2"]', 'layers = [\n"fc1",\n2,\n]', 11),  # the line that the key stands on
    ],
)
def test_the_line_is_named(tmp_path: Path, old: str, new: str, line: int) -> None:
    with pytest.raises(ConfigError, match=rf"run\.toml:{line}: "):
        read(tmp_path, FULL.replace(old, new))


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'model': expected a table, got 3"):
        read(tmp_path, "model = 3\n")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_config(tmp_path / "run.toml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.toml")
