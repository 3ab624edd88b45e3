"""Studies on a bad day: killed over and over, two at a time, on other machines' schedulers, and very large."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mipprune.study import Cell
from mipprune.study.cell import canonical
from mipprune.study.runner import Outcome, _Stage
from mipprune.study.sqlite import SqliteStorage, _sum

from .killable import N_CELLS, killable_study, run_killable, tables

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with killable_study(folder / "s.db") as study:
        assert study.run().done == N_CELLS
    return tables(folder / "s.db", folder)


@pytest.fixture(scope="module")
def start() -> Any:
    """Starts runs from a process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killable"])

    def begin(path: Path, n_jobs: int = 1) -> Any:
        process = context.Process(target=run_killable, args=(path, n_jobs))
        process.start()
        return process

    return begin


def n_done(path: Path) -> int:
    try:
        with sqlite3.connect(path, timeout=30) as db:
            return db.execute("SELECT count(*) FROM cells WHERE state = 'done'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # no table yet
    finally:
        db.close()


def open_attempts(path: Path) -> set[tuple[str, int]]:
    """The attempts that a killed run left open: these, and no others, may be made again."""
    try:
        with sqlite3.connect(path, timeout=30) as db:
            return set(db.execute("SELECT key, attempts FROM cells WHERE state = 'running'"))
    except sqlite3.OperationalError:
        return set()  # no table yet


def test_twenty_kills_lose_and_double_nothing(tmp_path: Path, start: Any, undisturbed: dict[str, bytes]) -> None:
    rng, path, killed = random.Random(int.from_bytes(os.urandom(4), "big")), tmp_path / "s.db", 0
    done: list[int] = [0]
    interrupted: set[tuple[str, int]] = set()
    while killed < 20:
        n_jobs = 2 if killed in (5, 12) else 1
        process = start(path, n_jobs=n_jobs)
        goal = n_done(path) + rng.randint(0, 4)
        while process.is_alive() and n_done(path) < goal:
            time.sleep(0.005)
        until = time.monotonic() + rng.random() * 0.2  # anywhere: planning, computing, storing
        while time.monotonic() < until and n_done(path) < goal + 2:  # a fast machine must not finish before 20 kills
            time.sleep(0.002)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        done.append(n_done(path))
        assert done[-1] >= done[-2], "a finished cell was lost"
        assert done[-1] < N_CELLS, f"done after {killed} kills: make the study larger"
        left = open_attempts(path) - interrupted
        assert len(left) <= 1 or n_jobs == 2, "one job held several cells"
        interrupted |= left
    process = start(path)
    process.join()
    assert process.exitcode == 0
    assert n_done(path) == N_CELLS
    assert tables(path, tmp_path) == undisturbed
    with killable_study(path) as study:
        again = study.run()
        attempts = [cell.attempts for cell in study.storage.cells(study.name)]
        assert (again.found, again.done, again.repaired) == (N_CELLS, 0, 0)
    assert len(attempts) == N_CELLS
    assert interrupted, "no kill hit a running cell"
    assert sum(attempts) == N_CELLS + len(interrupted), "a cell was begun again that no kill had hit"
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_share_a_storage(tmp_path: Path, start: Any, undisturbed: dict[str, bytes]) -> None:
    path = tmp_path / "s.db"
    processes = [start(path) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    with killable_study(path) as study:
        assert [cell.attempts for cell in study.storage.cells(study.name)] == [1] * N_CELLS
    assert tables(path, tmp_path) == undisturbed


def test_damaged_rows_are_computed_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    with killable_study(tmp_path / "s.db") as study:
        study.run()
        with sqlite3.connect(tmp_path / "s.db") as db:
            db.execute("UPDATE cells SET result = replace(result, '0.', '9.') WHERE kind = 'prune'")
            db.execute("UPDATE payloads SET data = substr(data, 2)")
            db.execute("UPDATE members SET model = 'other' WHERE position = 20")
        db.close()
        summary = study.run()
        assert (summary.done, summary.repaired) == (2 + 4, 7)
    assert tables(tmp_path / "s.db", tmp_path) == undisturbed


@pytest.mark.parametrize("backend", ["loky", "dask", "ray"])
def test_every_backend_gives_the_same_table(backend: str, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    import joblib

    with killable_study(tmp_path / "s.db") as study:
        if backend == "loky":
            summary = study.run(n_jobs=2)
        elif backend == "dask":
            distributed = pytest.importorskip("distributed")
            with (
                distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
                distributed.Client(cluster),
                joblib.parallel_config(backend="dask"),
            ):
                summary = study.run(n_jobs=2)
        else:
            ray = pytest.importorskip("ray")
            from ray.util.joblib import register_ray

            register_ray()
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False,
                     runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
            try:
                with joblib.parallel_config(backend="ray"):
                    summary = study.run(n_jobs=2)
            finally:
                ray.shutdown()
    assert (summary.done, summary.failed) == (N_CELLS, 0)
    assert tables(tmp_path / "s.db", tmp_path) == undisturbed


def test_workers_that_die_before_they_have_a_cell(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray's actors do at their start on a busy machine: tried again as often as cells are, then an error."""
    outcomes, died = _Stage._outcomes, []

    def dying(self: _Stage, todo: Sequence[str], n_jobs: int) -> Iterator[Outcome]:
        if len(died) < 3:
            died.append(len(todo))
            raise RuntimeError("the actor died unexpectedly")
        return outcomes(self, todo, n_jobs)

    monkeypatch.setattr(_Stage, "_outcomes", dying)
    with killable_study(tmp_path / "s.db") as study:
        with pytest.raises(RuntimeError, match="died unexpectedly"):
            study.run(retries=1)
        assert len(died) == 2
        summary = study.run(retries=1)
        assert (summary.done, summary.failed, len(died)) == (N_CELLS, 0, 3)
        assert {cell.attempts for cell in study.storage.cells(study.name)} == {1}
    assert tables(tmp_path / "s.db", tmp_path) == undisturbed


LARGE = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with 100,000 finished cells, as large as real ones."""
    path = tmp_path_factory.mktemp("large") / "s.db"
    storage = SqliteStorage(path)
    methods = ["permutation", "regression", "sample_permutation", "sample_one_toggle", "one_toggle"]
    cells = [
        Cell("estimate", "net", {
            "layer": "2", "value": "cross_entropy", "index": "shapley", "p": None, "method": methods[i % 5],
            "n_evals": 100 * 2 ** (i // 5 % 8), "keep": 0.5, "samples": None, "seed": i // 40, "network": "0" * 64,
            "version": 1,
        }) for i in range(LARGE)
    ]
    storage.declare("large", cells)
    numbers = [random.Random(i) for i in range(LARGE)]
    rows = []
    for cell, rng in zip(cells, numbers):
        result = {key: rng.random() for key in (
            "relative_error", "max_error", "spearman", "kendall", "top_overlap", "coverage", "mask_overlap", "regret",
            "true_loss", "true_loss_of_exact", "true_loss_of_best")}
        text = canonical({**result, "n_evals": cell.inputs["n_evals"], "players": 12, "kept": 6, "proved": True})
        sums = _sum(cell.key, cell.kind, canonical(cell.inputs), text, 0.5, None)
        rows.append((text, sums, cell.key))
    with storage._transaction():  # one after another, as a run does it, would take minutes
        storage._db.executemany("UPDATE cells SET state = 'done', attempts = 1, seconds = 0.5, result = ?, "
                                "checksum = ? WHERE key = ?", rows)
    storage.close()
    return path


#: Runs a command and prints the processor time and the peak memory of that process alone.  A process of its own, since
#: a child's peak memory on Linux starts with the size that its parent had, and a test runner is large.
METER = """
import json, resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def measured(words: list[str], directory: Path) -> tuple[str, float, int]:
    """What a command printed, its seconds of processor time, and its peak memory in KiB."""
    run = subprocess.run([sys.executable, "-c", METER, *words], cwd=directory, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
    *printed, numbers = run.stdout.splitlines()
    code, seconds, memory = json.loads(numbers)
    assert code == 0, run.stdout + run.stderr
    return "\n".join(printed), seconds, memory


def test_the_meter_sees_the_child_and_not_the_runner(tmp_path: Path) -> None:
    ballast = b"x" * (400 * 2**20)
    assert measured([sys.executable, "-c", "pass"], tmp_path)[2] < 100 * 2**10
    assert measured([sys.executable, "-c", "b'x' * (200 * 2**20)"], tmp_path)[2] > 200 * 2**10
    assert len(ballast) == 400 * 2**20


@pytest.mark.parametrize("command", [
    ["status"], ["report", "--out", "report"], ["export", "--out", "table.csv"],
], ids=lambda command: command[0])
def test_a_hundred_thousand_cells(large: Path, command: list[str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mipprune", "study", command[0], str(large), *command[1:]]
    printed, seconds, memory = measured(words, tmp_path)
    print(f"{command[0]}: {seconds:.1f} s of processor, at most {memory / 2**20:.2f} GiB")
    assert seconds < 15  # of processor time; about 3 on an idle machine, and this guards against explosions only
    assert memory < 2**20  # KiB
    if command[0] == "export":
        assert (tmp_path / "table.csv").read_bytes().count(b"\n") == LARGE + 1
    else:
        assert "100000" in printed
