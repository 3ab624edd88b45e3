"""The command line: whole runs on real data, one red line for every mistake, and never half a result."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import mipprune as mp
from mipprune.cli import OUTPUTS, app
from mipprune.pruning import PruneReport

from .conftest import Digits

ROOT = Path(__file__).resolve().parent.parent

FACTORIES = '''
import torch
from torch import nn

number = 3

def mlp():
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)).train()

def wide():
    return nn.Sequential(nn.Linear(64, 25), nn.ReLU(), nn.Linear(25, 16), nn.ReLU(), nn.Linear(16, 10))

def three():
    return 3

def fails():
    raise ZeroDivisionError("a bug of the user's own")

def needs(width):
    return nn.Linear(width, 10)

def calibration(n=300, k=10):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 64, generator=generator), torch.randint(k, (n,), generator=generator)

def pair():
    return calibration()

def dataset():
    return torch.utils.data.TensorDataset(*calibration())

def batches():
    x, y = calibration()
    return ((x[i:i + 50], y[i:i + 50]) for i in range(0, 300, 50))

def both():
    return {"calibration": calibration(), "holdout": calibration(100)}

def calibration_alone():
    return {"calibration": calibration()}

def other_keys():
    return {"train": calibration(), "test": calibration(100)}

def number_as_data():
    return 42

def other_shape():
    return torch.rand(20, 63), torch.zeros(20, dtype=torch.int64)

def nan():
    return torch.full((20, 64), float("nan")), torch.zeros(20, dtype=torch.int64)

def other_classes():
    return calibration(k=11)

def short_targets():
    return torch.rand(20, 64), torch.zeros(19, dtype=torch.int64)

def nothing():
    return []
'''


@dataclasses.dataclass
class Place:
    """A folder with a module, a weights file and ways to run the command in it."""

    folder: Path
    module: str

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def config(
        self, *, factory: str = "mlp", weights: str | None = "dense.safetensors", data: str = '"digits_flat"',
        prune: str = "budget = { macs = 0.5 }\nstages = 1", rest: str = "", name: str = "run",
    ) -> Path:
        source = data.replace("@", self.module)
        lines = ["[model]", f'factory = "{self.module}:{factory}"']
        lines += [f'weights = "{weights}"'] if weights else []
        lines += ["[data]", f"source = {source}", "[prune]", prune, rest]
        path = self.folder / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def run(self, **changes: Any) -> Any:
        return invoke("run", self.config(**changes), "--out", self.out)

    def refused(self, *said: str, **changes: Any) -> None:
        """The run ends with one error line that holds all of ``said``, and leaves nothing behind."""
        is_refused(self.run(**changes), *said)
        assert not self.out.exists()


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def is_refused(result: Any, *said: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert [part for part in said if part not in result.stderr] == [], result.stderr


@pytest.fixture(scope="session")
def trained(digits_flat: Digits) -> dict[str, torch.Tensor]:
    """State dict of ``mlp``, trained for a second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    x, y = digits_flat.train
    for _ in range(25):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model.state_dict()


@pytest.fixture
def place(tmp_path: Path, trained: dict[str, torch.Tensor]) -> Place:
    return make_place(tmp_path, trained)


def make_place(folder: Path, trained: dict[str, torch.Tensor]) -> Place:
    module = "nets_" + re.sub(r"\W", "_", str(folder))  # imported modules stay: every folder has a name of its own
    (folder / f"{module}.py").write_text(FACTORIES, encoding="utf-8")
    save_file(trained, folder / "dense.safetensors")
    return Place(folder, module)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, trained: dict[str, torch.Tensor]) -> Place:
    """A place with a run's results in ``out``.  Shared: do not write there."""
    place = make_place(tmp_path_factory.mktemp("finished"), trained)
    result = place.run()
    assert result.exit_code == 0, (result.output, result.exception)
    return place


# --- whole runs ---


def test_run_writes_what_prune_returned(finished: Place, digits_flat: Digits, trained: dict[str, torch.Tensor]) -> None:
    assert sorted(p.name for p in finished.out.iterdir()) == sorted("run" + suffix for suffix in OUTPUTS)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    model.load_state_dict(trained)
    same = mp.prune(
        model, digits_flat.train, budget=mp.Macs(0.5), stages=1, holdout=digits_flat.test, progress=False
    )
    assert mp.PrunePlan.load(finished.out / "run.plan.json") == same.plan
    assert mp.surgery.load_plan(finished.out / "run.safetensors") == same.plan
    stored = mp.load(finished.out / "run.safetensors", model)
    assert torch.equal(stored(digits_flat.test[0]), same.model(digits_flat.test[0]))
    document = json.loads((finished.out / "run.report.json").read_text())
    report = PruneReport.from_dict(document["report"])
    assert document["summary"] == report.summary()
    assert document["summary"]["pruned_accuracy"] == same.report.pruned.accuracy
    assert document["summary"]["macs_ratio"] <= 0.5
    assert report.dense.n_samples == 540
    assert (finished.out / "run.report.txt").read_text() == f"{report}\n"


def test_run_prints_the_table_and_the_files(place: Place) -> None:
    result = place.run(prune="tolerance = 0.05\nstages = 1\nminimize = 'macs'", name="tight")
    assert result.exit_code == 0
    assert result.stdout.startswith((place.out / "tight.report.txt").read_text().rstrip())
    for suffix in OUTPUTS:
        assert f"wrote {place.out / 'tight'}{suffix}\n" in result.stdout


def test_quiet_run_says_nothing(place: Place) -> None:
    result = invoke("run", place.config(), "--out", place.out, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert len(list(place.out.iterdir())) == len(OUTPUTS)


def test_results_go_where_the_file_says(place: Place) -> None:
    result = invoke("run", place.config(rest='[output]\ndir = "here/there"\nname = "half"'), "--quiet")
    assert result.exit_code == 0
    assert (place.folder / "here/there/half.plan.json").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_weights(place: Place, finished: Place, trained: dict[str, torch.Tensor], suffix: str) -> None:
    torch.save(trained, place.folder / f"dense{suffix}")
    assert place.run(weights=f"dense{suffix}").exit_code == 0
    for name in ("run.plan.json", "run.safetensors"):
        assert (place.out / name).read_bytes() == (finished.out / name).read_bytes()


@pytest.mark.parametrize("function", ["pair", "dataset", "batches", "both", "calibration_alone"])
def test_data_in_every_form(place: Place, function: str) -> None:
    result = place.run(data=f'"@:{function}"')
    assert result.exit_code == 0, (result.output, result.exception)
    n = json.loads((place.out / "run.report.json").read_text())["report"]["dense"]["n_samples"]
    assert n == (100 if function == "both" else 75)


def test_share_of_held_out_data(place: Place) -> None:
    assert place.run(data='"@:pair"\nholdout = 0.1').exit_code == 0
    assert json.loads((place.out / "run.report.json").read_text())["report"]["dense"]["n_samples"] == 30


def test_every_prune_key_arrives(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def prune(model: nn.Module, data: Any, **keywords: Any) -> Any:
        seen.update(keywords, training=model.training)
        raise mp.errors.DataError("seen enough")

    monkeypatch.setattr(mp, "prune", prune, raising=False)
    text = """budget = { params = 0.25, units = 1, macs = 0.5 }
layers = ["0"]\npin = ["2"]\nignore = ["3"]\nmin_keep = 2\nallow_empty = true\nunits = "fine"\nmultiple = 4
surrogate = "additive"\nstages = 3\nrepair = []\nsolver = "cbc"\neffort = 2\ntime_limit = 9
n_jobs = 2\nseed = 5\nminimize = "params"
"""
    place.refused("seen enough", prune=text, data='"@:both"')
    holdout = seen.pop("holdout")
    assert len(holdout[1]) == 100
    assert seen == {
        "budget": [mp.Macs(0.5), mp.Params(0.25), mp.Units(1.0)], "tolerance": None, "minimize": "params",
        "layers": ("0",), "pin": ("2",), "ignore": ("3",), "min_keep": 2, "allow_empty": True,
        "units": "fine",
        "multiple": 4, "surrogate": "additive", "stages": 3, "repair": (), "solver": "cbc", "effort": 2.0,
        "time_limit": 9.0, "n_jobs": 2, "seed": 5, "progress": False, "training": False,
    }
    place.refused("seen enough", prune="tolerance = 0.1")
    assert seen["budget"] is None
    assert seen["tolerance"] == mp.LossIncrease(0.1)


# --- refusals ---


def test_a_missing_configuration(tmp_path: Path) -> None:
    is_refused(invoke("run", tmp_path / "none.toml"), "none.toml: No such file or directory")


def test_broken_toml_and_unknown_keys(place: Place) -> None:
    place.refused("run.toml: not a TOML file", rest="[")
    place.refused("unknown key 'prune.tolerence'; did you mean 'prune.tolerance'?", prune="tolerence = 0.1")
    place.refused("'prune.seed': expected a whole number, at least 0, got 'x'", prune="tolerance = 0.1\nseed = 'x'")
    place.refused("'prune.budget.macs': expected a number, above 0 and at most 1", prune="budget = { macs = 2 }")
    place.refused("exactly one", prune="stages = 1")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("mlpp", ["'model.factory'", "has no 'mlpp'", ":mlp'?"]),
        ("three", ["'model.factory'", "returned of type int", "torch.nn.Module"]),
        ("number", ["'model.factory'", "of type int, expected a function"]),
        ("needs", ["'model.factory'", "called without arguments", "'width'"]),
    ],
)
def test_factories_that_make_no_network(place: Place, factory: str, said: list[str]) -> None:
    place.refused(*said, factory=factory)


def test_modules_that_cannot_be_imported(place: Place) -> None:
    (place.folder / "broken_syntax.py").write_text("def f(:\n")
    (place.folder / "broken_import.py").write_text("import not_a_package_at_all\n")
    for module, said in [
        ("nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("broken_syntax", "broken_syntax.py, line 1"),
        ("broken_import", "No module named 'not_a_package_at_all'"),
    ]:
        place.refused("'data.source'", f"can't import '{module}'", said, str(place.folder), data=f'"{module}:f"')


def test_the_path_is_put_back(place: Place) -> None:
    before = list(sys.path)
    place.refused(factory="mlpp")
    assert sys.path == before


def test_a_bug_in_the_users_function_keeps_its_traceback(place: Place) -> None:
    result = place.run(factory="fails")
    assert isinstance(result.exception, ZeroDivisionError)
    run = subprocess.run(
        [sys.executable, "-m", "mipprune", "run", str(place.config(factory="fails"))], cwd=ROOT, capture_output=True,
        text=True, timeout=120,
    )
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert "a bug of the user's own" in run.stderr
    assert not (place.folder / "pruned").exists()


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


def write_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("write", [torch.save, write_pickle])
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_unpickled(place: Place, write: Callable[[object, Path], None]) -> None:
    boom = place.folder / "boom"
    for value in (Bomb(boom), {"0.weight": Bomb(boom)}):
        write(value, place.folder / "bomb.pt")
        place.refused("bomb.pt: refused", "could run code", weights="bomb.pt")
        assert not boom.exists()
    with (place.folder / "bomb.pt").open("rb") as file:  # the bomb does go off where pickles are trusted
        pickle.load(file) if write is write_pickle else torch.load(file, weights_only=False)
    assert boom.exists()


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_none(place: Place, trained: dict[str, torch.Tensor]) -> None:
    place.refused("no weights file", "none.pt", weights="none.pt")
    (place.folder / "a.safetensors").write_bytes(b"hello")
    place.refused("a.safetensors: not a weights file", weights="a.safetensors")
    for content in (b"", b"hello world", b"PK\x03\x04"):
        (place.folder / "a.pt").write_bytes(content)
        place.refused("a.pt: not a weights file", weights="a.pt")
    torch.save({"state_dict": trained, "epoch": 3}, place.folder / "b.pt")
    place.refused("b.pt: expected a state dict", "'epoch', 'state_dict'", weights="b.pt")
    torch.save([1, 2], place.folder / "b.pt")
    place.refused("b.pt: expected a state dict", "list", weights="b.pt")


def test_weights_of_another_architecture(place: Place, trained: dict[str, torch.Tensor]) -> None:
    place.refused("another architecture", "of another shape ['0.weight (24, 64) for (25, 64)'", factory="wide")
    save_file({k: v for k, v in trained.items() if k != "2.bias"}, place.folder / "less.safetensors")
    place.refused("another architecture", "missing ['2.bias']", weights="less.safetensors")
    save_file(trained | {"9.bias": torch.zeros(2)}, place.folder / "more.safetensors")
    place.refused("another architecture", "unknown ['9.bias']", weights="more.safetensors")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("number_as_data", "got int"),
        ("other_keys", "the keys ['test', 'train'], expected 'calibration'"),
        ("other_shape", "doesn't run on inputs of shape (2, 63)"),
        ("nan", "NaN"),
        ("other_classes", "class"),
        ("short_targets", "20 samples"),
        ("nothing", "empty"),
        ("dataser", "did you mean"),
    ],
)
def test_data_that_cannot_be_used(place: Place, function: str, said: str) -> None:
    place.refused(said, data=f'"@:{function}"')


def test_two_held_out_parts(place: Place) -> None:
    place.refused("'data.holdout'", "its own held-out part", data='"@:both"\nholdout = 0.2')


def test_what_prune_refuses(place: Place) -> None:
    place.refused("no prunable layer '7'", prune='tolerance = 0.1\nlayers = ["7"]')
    place.refused("no prunable layer 'fc'", prune='tolerance = 0.1\npin = ["fc"]')
    place.refused("macs can't go below", prune="budget = { macs = 0.001 }")


def test_results_are_not_overwritten(place: Place) -> None:
    place.out.mkdir()
    (place.out / "run.plan.json").write_text("precious")
    is_refused(place.run(), "run.plan.json exists", "--force")
    assert [p.name for p in place.out.iterdir()] == ["run.plan.json"]
    assert (place.out / "run.plan.json").read_text() == "precious"
    assert invoke("run", place.config(), "--out", place.out, "--force").exit_code == 0
    assert mp.PrunePlan.load(place.out / "run.plan.json").n_units == 40
    assert len(list(place.out.iterdir())) == len(OUTPUTS)


def test_refusal_comes_before_the_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp, "prune", lambda *_, **__: pytest.fail("pruned all the same"), raising=False)
    place.out.write_text("a file")
    is_refused(place.run(), "out: Not a directory")
    is_refused(invoke("run", place.config(), "--out", place.out / "below"), "Not a directory")


def test_a_failure_while_writing_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr("mipprune.cli.write_bytes_atomic", full)  # the last of the four files
    is_refused(place.run(), "disk: No space left on device")
    assert list(place.out.iterdir()) == []


# --- Ctrl-C ---


def test_interrupt_without_a_result(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mp, "prune", interrupted, raising=False)
    result = place.run()
    assert (result.exit_code, result.stdout) == (130, "")
    assert not place.out.exists()


def test_interrupt_with_a_result_saves_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mipprune.pruning.search.recombine", interrupted)
    result = place.run()
    assert result.exit_code == 0, (result.output, result.exception)
    assert "interrupted" in result.stdout
    assert json.loads((place.out / "run.report.json").read_text())["summary"]["termination"] == "interrupted"
    assert mp.PrunePlan.load(place.out / "run.plan.json").n_kept < 40


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_a_real_signal(place: Place) -> None:
    started = place.folder / "started"
    (place.folder / "slow_module.py").write_text(
        f"import pathlib, time\ndef data():\n    pathlib.Path({str(started)!r}).touch()\n    time.sleep(60)\n"
    )
    config = place.config(data='"slow_module:data"')
    process = subprocess.Popen(
        [sys.executable, "-m", "mipprune", "run", str(config), "--out", str(place.out)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not place.out.exists()


# --- inspect ---


@pytest.mark.parametrize("suffix", [".plan.json", ".safetensors"])
def test_inspect(finished: Place, suffix: str) -> None:
    plan = mp.PrunePlan.load(finished.out / "run.plan.json")
    result = invoke("inspect", finished.out / f"run{suffix}")
    assert result.exit_code == 0
    assert f"{plan.n_kept} of 40 units kept" in result.stdout
    assert f"architecture {plan.architecture}\n" in result.stdout
    for group in plan.groups:
        assert re.search(rf"│ {group.group} +│ +{len(group.kept)} │ +{group.size} │", result.stdout)
    assert "0.weight" not in result.stdout
    cuts = invoke("inspect", finished.out / f"run{suffix}", "--cuts").stdout
    for cut in plan.cuts:
        assert re.search(rf"│ {re.escape(cut.tensor)} +│ +{cut.dim} │ +{len(cut.kept)} │ +{cut.size} │", cuts)


def test_inspect_as_json(finished: Place) -> None:
    plan = mp.PrunePlan.load(finished.out / "run.plan.json")
    data = json.loads(invoke("inspect", finished.out / "run.plan.json", "--json", "--cuts").stdout)
    assert (data["architecture"], data["units_kept"], data["units_total"]) == (plan.architecture, plan.n_kept, 40)
    for row, group in zip(data["groups"], plan.groups, strict=True):
        assert (row["group"], row["kept"], row["total"]) == (group.group, len(group.kept), group.size)
        assert sorted([*row["removed"], *group.kept.tolist()]) == list(range(group.size))
    assert [(c["tensor"], c["dim"]) for c in data["cuts"]] == [(c.tensor, c.dim) for c in plan.cuts]
    assert "cuts" not in json.loads(invoke("inspect", finished.out / "run.plan.json", "--json").stdout)


def test_inspect_refuses_what_is_no_plan(finished: Place, tmp_path: Path) -> None:
    is_refused(invoke("inspect", tmp_path / "none.json"), "none.json")
    is_refused(invoke("inspect", finished.folder / "dense.safetensors"), "without a prune plan")
    (tmp_path / "a.json").write_text("{")
    is_refused(invoke("inspect", tmp_path / "a.json"), "a.json", "not a prune plan")
    data = json.loads((finished.out / "run.plan.json").read_text())
    data["groups"][0]["kept"]["data"][0] = 24
    (tmp_path / "b.json").write_text(json.dumps(data))
    is_refused(invoke("inspect", tmp_path / "b.json"), "'0': kept indices must be ascending")
    whole = (finished.out / "run.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[: len(whole) // 2])
    is_refused(invoke("inspect", tmp_path / "c.safetensors"), "not a safetensors file")


# --- verify ---


def changed(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    """A copy of a pruned network with its tensors or its plan changed."""
    with safe_open(source, framework="pt") as file:
        plan = json.loads(file.metadata()["mipprune.plan"])
    tensors = load_file(source)
    change(tensors, plan)
    save_file(tensors, target, metadata={"mipprune.plan": json.dumps(plan)})
    return target


def test_verify(finished: Place) -> None:
    result = invoke("verify", finished.out / "run.safetensors", "--config", finished.folder / "run.toml")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.count("ok ") == 3
    report = PruneReport.from_dict(json.loads((finished.out / "run.report.json").read_text())["report"])
    for name, quality in (("dense", report.dense), ("stored", report.pruned)):
        assert re.search(rf"│ {name} +│ +{quality.accuracy:.2%} │ +{quality.loss:.4f} │", result.stdout)


def test_verify_holds_out_what_run_held_out(place: Place) -> None:
    config = place.config(data='"@:pair"', prune="budget = { macs = 0.5 }\nstages = 1\nseed = 3")
    assert invoke("run", config, "--out", place.out, "--quiet").exit_code == 0
    result = invoke("verify", place.out / "run.safetensors", "--config", config)
    assert result.exit_code == 0
    report = PruneReport.from_dict(json.loads((place.out / "run.report.json").read_text())["report"])
    assert re.search(rf"│ dense +│ +{report.dense.accuracy:.2%} │ +{report.dense.loss:.4f} │", result.stdout)


def test_verify_refuses_another_network(finished: Place, place: Place) -> None:
    pruned = finished.out / "run.safetensors"
    wide = place.config(factory="wide", weights=None)
    is_refused(invoke("verify", pruned, "--config", wide), "0.bias", "24 entries", "apply the plan to the dense model")
    is_refused(invoke("verify", finished.out / "run.plan.json", "--config", place.config()), "without weights")
    is_refused(invoke("verify", place.folder / "none.safetensors", "--config", place.config()), "no such file")


def test_verify_derives_a_certificates_bound(tmp_path: Path) -> None:
    problem = mp.Problem.minimize_units(mp.surrogates.Additive(np.array([0.1, 0.2, 0.3, 0.9])), max_drop=0.35)
    other = mp.Problem.minimize_units(mp.surrogates.Additive(np.array([0.1, 0.2, 0.3, 0.9])), max_drop=0.3)
    file, stored = tmp_path / "c.json", tmp_path / "p.npz"
    certificate = mp.solve(problem, certificate=True).certificate
    assert certificate is not None
    mp.solver.save_certificate(file, problem, certificate)
    mp.solver.save_problem(stored, problem)
    for options in ((), ("--exact",), ("--problem", stored)):
        result = invoke("verify", file, *options)
        assert result.exit_code == 0, result.output
        assert "no feasible selection costs less than 2" in result.output
        assert problem.digest in result.output
    mp.solver.save_problem(stored, other)
    is_refused(invoke("verify", file, "--problem", stored), "another problem")
    file.write_text(file.read_text().replace('"bound": 2.0', '"bound": 3.0'))
    is_refused(invoke("verify", file), "its seal doesn't fit")
    assert invoke("verify", tmp_path / "run.safetensors").exit_code == 2  # a network without its configuration
    assert invoke("verify", file, "--exact", "--config", file).exit_code == 2


def test_verify_sees_what_was_changed(finished: Place, place: Place) -> None:
    pruned, config, target = finished.out / "run.safetensors", place.config(), place.folder / "x.safetensors"

    def drop_tensor(tensors: dict[str, torch.Tensor], plan: dict[str, Any]) -> None:
        del tensors["2.bias"]

    def cut_other_rows(tensors: dict[str, torch.Tensor], plan: dict[str, Any]) -> None:
        kept = plan["cuts"][0]["kept"]["data"]
        kept[:] = sorted([*kept[1:], next(i for i in range(24) if i not in kept)])

    def keep_other_units(tensors: dict[str, torch.Tensor], plan: dict[str, Any]) -> None:
        kept = plan["groups"][0]["kept"]["data"]
        kept[:] = sorted([*kept[1:], next(i for i in range(24) if i not in kept)])

    def spoil(tensors: dict[str, torch.Tensor], plan: dict[str, Any]) -> None:
        tensors["2.bias"] = torch.full_like(tensors["2.bias"], torch.nan)

    for change, said in [
        (drop_tensor, "missing ['2.bias']"),
        (cut_other_rows, "cuts aren't those"),
        (keep_other_units, "cuts aren't those"),
        (spoil, "nan"),
    ]:
        result = invoke("verify", changed(pruned, target, change), "--config", config)
        assert result.exit_code == 2, change.__name__
        assert said in result.stderr


# --- the command itself ---


def test_demo_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("mipprune.demo.run_demo", lambda *arguments: seen.extend(arguments))
    assert invoke("demo", "--out", tmp_path, "--quick").exit_code == 0
    assert seen == [tmp_path, True]
    assert invoke("demo").exit_code == 2


def test_a_missing_extra_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    place.refused("pip install 'mipprune[examples]'")


def test_version_and_help() -> None:
    assert invoke("--version").stdout == f"mipprune {mp.__version__}\n"
    for command in ("demo", "run", "inspect", "verify"):
        assert command in invoke("--help").stdout
        assert invoke(command, "--help").exit_code == 0


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, mipprune.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
