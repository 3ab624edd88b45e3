"""Studies: grids become cells, cells run once, failures are kept, tables come out."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mipprune as mp
from mipprune.errors import ConfigError, StorageError
from mipprune.study import EstimateSection, Kind, Study, register_kind
from mipprune.study.kinds import KINDS, stages_of
from mipprune.study.networks import StudyNetwork
from mipprune.study.sqlite import SqliteStorage


class NoNetwork(StudyNetwork):
    """For kinds that need none: cells are about the machinery."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self) -> nn.Module:
        raise AssertionError("not needed")

    def data(self) -> Any:
        raise AssertionError("not needed")

    def fingerprint(self) -> str:
        return "none"


def probe(inputs: dict[str, Any], source: NoNetwork, payloads: tuple[bytes, ...]) -> tuple[dict[str, Any], None]:
    """Notes that it ran; fails or dies as its seed says."""
    seed = inputs["seed"]
    with open(source.folder / f"ran-{seed}", "a") as stream:
        stream.write("x")
    tries = len((source.folder / f"ran-{seed}").read_text())
    if inputs["method"] == "reuse" and tries == 1:
        raise RuntimeError("the machine hiccuped")
    if inputs["method"] == "regression":
        raise ZeroDivisionError("always")
    if inputs["method"] == "adjusted":
        raise ConfigError("refused")
    if inputs["method"] == "one_toggle" and tries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if inputs["method"] == "sample_one_toggle":
        os.kill(os.getpid(), signal.SIGKILL)
    if inputs["method"] == "sample_permutation" and tries == 1:
        with contextlib.suppress(KeyboardInterrupt):  # as searches do, which then answer with the best so far
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
    return {"square": seed * seed, "noise": float(np.nan), "random": torch.rand(1).item()}, None


@pytest.fixture(autouse=True)
def _probe_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mipprune.study.kinds.KINDS", KINDS)  # put back afterwards
    register_kind(Kind("probe", EstimateSection, "tests.test_study:probe", lambda inputs: ()))


def probing(folder: Path, **axes: Any) -> Study:
    study = Study("probes", folder / "s.db")
    study.add_model("none", NoNetwork(folder))
    study.add("probe", layer="-", **axes)
    return study


def runs(folder: Path) -> dict[int, int]:
    return {int(p.name[4:]): len(p.read_text()) for p in sorted(folder.glob("ran-*"))}


def test_every_cell_runs_once_and_only_once(tmp_path: Path) -> None:
    study = probing(tmp_path, seed=range(4))
    summary = study.run()
    assert (summary.total, summary.done, summary.found, summary.failed, summary.left) == (4, 4, 0, 0, 0)
    again = study.run()
    assert (again.done, again.found) == (0, 4)
    assert str(again) == "probes: nothing to do, all 4 cells were done before"
    study.add("probe", layer="-", seed=[3, 4])  # one of them is known
    assert study.run().done == 1
    assert runs(tmp_path) == dict.fromkeys(range(5), 1)
    table = study.table("probe", timing=False)
    assert [(r["model"], r["seed"], r["square"], r["noise"]) for r in table] == [
        ("none", i, i * i, None) for i in range(5)
    ]
    other = Study("other study", study.storage)
    other.add_model("renamed", NoNetwork(tmp_path))
    other.add("probe", layer="-", seed=2)
    assert other.run().found == 1
    assert other.table("probe", timing=False) == [{**table[2], "model": "renamed"}]


def test_failures_are_tried_again_and_keep_their_error(tmp_path: Path) -> None:
    study = probing(tmp_path, method=["reuse"], index="banzhaf", seed=0)
    study.add("probe", layer="-", method="regression", seed=1)
    study.add("probe", layer="-", method="adjusted", seed=2)
    summary = study.run(retries=2)
    assert (summary.done, summary.failed) == (1, 2)
    assert runs(tmp_path) == {0: 2, 1: 3, 2: 1}  # what mipprune refuses isn't asked twice
    cells = list(study.storage.cells("probes"))
    assert [c.state for c in cells] == ["done", "failed", "failed"]
    assert [c.attempts for c in cells] == [2, 3, 1]
    for cell, text in zip(cells, ["RuntimeError: the machine hiccuped", "ZeroDivisionError: always", "refused"]):
        assert text in (cell.error or "")
    assert study.run(retries=0).failed == 2  # the next run tries them again
    assert runs(tmp_path) == {0: 2, 1: 4, 2: 2}


def test_results_dont_depend_on_the_number_of_jobs(tmp_path: Path) -> None:
    tables = []
    for n_jobs in (1, 2):
        folder = tmp_path / str(n_jobs)
        folder.mkdir()
        study = probing(folder, seed=range(6))
        torch.rand(n_jobs)
        assert study.run(n_jobs=n_jobs).done == 6
        tables.append(study.table("probe", timing=False))
    assert tables[0] == tables[1]
    assert len({row["random"] for row in tables[0]}) == 6


@pytest.mark.slow  # every death costs a new pool, and torch is loaded again in each of its workers
def test_a_worker_that_is_killed_costs_only_its_own_cell(tmp_path: Path) -> None:
    study = probing(tmp_path, seed=range(6))
    study.add("probe", layer="-", method="one_toggle", seed=10)
    study.add("probe", layer="-", method="sample_one_toggle", seed=11)
    summary = study.run(n_jobs=2, retries=1)
    assert (summary.done, summary.failed) == (7, 1)
    failed, = study.storage.cells("probes", state="failed")
    assert failed.inputs["seed"] == 11
    assert "a worker process died" in (failed.error or "")
    assert [r["square"] for r in study.table("probe")] == [0, 1, 4, 9, 16, 25, 100]


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    study = probing(tmp_path, seed=range(300))
    assert isinstance(study.storage, SqliteStorage)
    study.storage.declare("probes", [c.cell for c in study.plan()[0]])
    pages = study.storage._db.execute("PRAGMA page_count").fetchone()[0]
    study.storage._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageError, match="the disk is full"):
        study.run()
    stored = study.states()["done"]
    assert 0 < stored < 300
    study.storage._db.execute("PRAGMA max_page_count = 100000")
    summary = study.run()
    assert (summary.found, summary.done) == (stored, 300 - stored)
    assert sorted(r["square"] for r in study.table("probe")) == [i * i for i in range(300)]


def test_ctrl_c_counts_where_a_search_swallows_it(tmp_path: Path) -> None:
    """Its best so far isn't what the inputs decide, so it must not be stored as their result."""
    study = probing(tmp_path, seed=range(3), method="sample_permutation")
    summary = study.run()
    assert (summary.interrupted, summary.done, summary.left) == (True, 0, 3)
    assert study.states() == {"waiting": 3}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [(tmp_path / f"ran-{i}").exists() for i in range(3)] == [True, False, False]


def test_ctrl_c_gives_back_what_isnt_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = probing(tmp_path, seed=range(5))
    finish = study.storage.finish

    def interrupted(key: str, *args: Any) -> bool:
        if study.states()["done"] == 2:
            raise KeyboardInterrupt
        return finish(key, *args)

    monkeypatch.setattr(study.storage, "finish", interrupted)
    summary = study.run()
    assert (summary.interrupted, summary.done, summary.left) == (True, 2, 3)
    assert study.states() == {"done": 2, "waiting": 3}
    monkeypatch.undo()
    register_kind(Kind("probe", EstimateSection, "tests.test_study:probe", lambda inputs: ()))
    assert study.run().done == 3


def test_a_cell_whose_need_failed_says_so(tmp_path: Path) -> None:
    register_kind(Kind("above", EstimateSection, "tests.test_study:probe",
                       lambda inputs: (("probe", {**inputs, "method": "regression"}),)))
    study = Study("probes", tmp_path / "s.db")
    study.add_model("none", NoNetwork(tmp_path))
    study.add("above", layer="-", seed=5)
    summary = study.run(retries=0)
    assert (summary.total, summary.failed) == (2, 2)
    above, = study.storage.cells("probes", kind="above")
    assert "ZeroDivisionError: always" in (above.error or "")
    del KINDS["above"]


def test_two_runs_share_the_work(tmp_path: Path) -> None:
    import threading

    studies = [probing(tmp_path, seed=range(30)) for _ in range(2)]
    found: list[Any] = []
    threads = [threading.Thread(target=lambda s=s: found.append(s.run())) for s in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(s.done for s in found) == 30
    assert runs(tmp_path) == dict.fromkeys(range(30), 1)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"layr": "2"}, ["unknown key 'estimate.layr'", "did you mean 'estimate.layer'?"]),
        ({"layer": "2", "method": ["reuse", "regresion"]}, ["'estimate.method[1]'", "did you mean 'regression'?"]),
        ({"layer": "2", "seed": [0, 1.5]}, ["'estimate.seed[1]'", "a whole number", "got 1.5"]),
        ({"layer": "2", "keep": 1}, ["'estimate.keep'", "above 0 and below 1"]),
        ({"layer": "2", "seed": []}, ["an empty list leaves no cell"]),
        ({"layer": "2", "model": "net"}, ["no network 'net'", "known: none"]),
        ({"layer": "2", "index": "semivalue"}, ["'semivalue' needs p"]),
        ({"layer": "2", "index": "banzhaf", "method": "regression"}, ["none of these combinations"]),
        ({}, ["lacks the key 'layer'"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, axes: dict[str, Any], said: list[str]) -> None:
    study = Study("probes", tmp_path / "s.db")
    study.add_model("none", NoNetwork(tmp_path))
    with pytest.raises(ConfigError) as caught:
        study.add("estimate", **axes)
    assert [part for part in said if part not in str(caught.value)] == [], str(caught.value)


def test_grids(tmp_path: Path) -> None:
    study = Study("probes", tmp_path / "s.db")
    study.add_model("none", NoNetwork(tmp_path))
    count = study.add("prune", budget=[mp.Macs(0.5), {"params": 0.5}], tolerance=[0.1], surrogate=["quadratic", "head"],
                      layers=[["a", "b"], ["a"]], pin=["c"], seed=range(2))
    assert count == 3 * 2 * 2 * 2
    cells = [cell.cell for stage in study.plan() for cell in stage]
    assert len({cell.key for cell in cells}) == 1 + count
    assert cells[1].inputs["budget"] == {"macs": 0.5}
    assert cells[1].inputs["pin"] == ["c"]
    assert cells[1].inputs["layers"] == ["a", "b"]
    assert cells[1].needs == (cells[0].key,)
    assert sum(cell.inputs.get("tolerance") == 0.1 for cell in cells) == 8
    assert [len(stage) for stage in stages_of([c for stage in study.plan() for c in stage])] == [1, 24]
    # methods that an index doesn't have, and the p of an index without, are left out
    assert study.add("estimate", layer="2", index=["shapley", "banzhaf", "semivalue"], p=[0.5, 0.9],
                     method=["permutation", "reuse"]) == 1 + 1 + 2


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 4, generator=generator), torch.randint(3, (40,), generator=generator)


def real(path: Path) -> Study:
    study = Study("real", path)
    study.add_model("net", network(), data())
    study.add("estimate", layer="2", index=["shapley", "banzhaf"], method=["sample_permutation", "reuse"], n_evals=120,
              keep=0.4, seed=[0, 1])
    study.add("prune", budget=mp.Macs(0.6), surrogate="quadratic", stages=1)
    return study


def test_a_real_study(tmp_path: Path) -> None:
    with real(tmp_path / "s.db") as study:
        summary = study.run()
        assert (summary.total, summary.done) == (1 + 1 + 4 + 1, 7), list(study.storage.cells("real", state="failed"))
        rows, pruned = study.table("estimate"), study.table("prune")
    graph = mp.trace(network(), data()[0][:1])
    table = mp.estimate.exact_table(mp.LayerGame(graph, "2", data()))
    estimate = mp.banzhaf(table, method="reuse", n_evals=120, seed=1)
    compared = mp.compare(mp.banzhaf(table, method="exact"), estimate, ks=[2], keep=[2], game=table)
    row, = (r for r in rows if r["method"] == "reuse" and r["seed"] == 1)
    assert row["relative_error"] == compared.rows[0].relative_error
    assert row["true_loss"] == compared.solutions[1].true_drop
    assert row["true_loss_of_best"] == compared.solutions[2].true_drop <= row["true_loss_of_exact"] + 1e-12
    result = mp.prune(network(), data(), budget=mp.Macs(0.6), surrogate="quadratic", stages=1, progress=False)
    assert pruned[0]["pruned_accuracy"] == result.report.pruned.accuracy
    assert pruned[0]["macs_ratio"] <= 0.6
    with real(tmp_path / "s.db") as study:
        assert study.run().found == 7


def test_the_fingerprint_sees_what_matters(tmp_path: Path) -> None:
    from mipprune.study.networks import LiveNetwork

    x, y = data()
    first = LiveNetwork(network(), (x, y)).fingerprint()
    assert LiveNetwork(network(), (x.clone(), y)).fingerprint() == first
    nudged, flipped = network(), y.clone()
    with torch.no_grad():
        nudged[2].bias[0] += 1e-6
    flipped[0] = (flipped[0] + 1) % 3
    sigmoid = network()
    sigmoid[1] = nn.Sigmoid()
    others = [(nudged, (x, y)), (network(), (x + 1e-6, y)), (network(), (x, flipped)), (sigmoid, (x, y))]
    prints = [LiveNetwork(model, d).fingerprint() for model, d in others]
    prints.append(LiveNetwork(network(), (x, y), 0.5).fingerprint())
    assert len({first, *prints}) == 6


def test_tables_are_written(tmp_path: Path) -> None:
    study = probing(tmp_path, seed=range(3))
    study.run()
    study.to_csv(tmp_path / "t.csv", "probe")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["seed"], r["square"], r["noise"]) for r in rows] == [("0", "0", ""), ("1", "1", ""), ("2", "4", "")]
    assert [float(r["random"]) for r in rows] == [r["random"] for r in study.table("probe")]
    pandas = pytest.importorskip("pandas")
    frame = study.to_pandas("probe")
    assert list(frame["square"]) == [0, 1, 4]
    pytest.importorskip("pyarrow")
    study.to_parquet(tmp_path / "t.parquet", "probe")
    assert list(pandas.read_parquet(tmp_path / "t.parquet")["random"]) == list(frame["random"])
