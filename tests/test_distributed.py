"""Estimation by several processes gives the bits of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest

import mipprune as mp
from mipprune.errors import ConfigError, DataError
from mipprune.estimate.communicator import Communicator
from mipprune.estimate.records import Estimate
from mipprune.game.base import Game

ROOT = Path(__file__).resolve().parent.parent


class Threads(Communicator):
    """Ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, barrier: Barrier, board: list[Any]) -> None:
        self.rank, self.size, self.barrier, self.board = rank, size, barrier, board
        self.largest = 0

    def gather(self, mine: Any) -> list[Any]:
        self.board[self.rank] = mine
        self.largest = max(self.largest, 0 if mine[0] is None else len(mine[0]))
        self.barrier.wait(60)
        found = list(self.board)
        self.barrier.wait(60)
        return found


def ranked(size: int, call: Any) -> tuple[list[Any], list[Threads]]:
    """What ``call(communicator)`` returns or raises on each of ``size`` ranks."""
    barrier, board, found = Barrier(size), [None] * size, [None] * size
    ranks = [Threads(rank, size, barrier, board) for rank in range(size)]

    def run(rank: int) -> None:
        try:
            found[rank] = call(ranks[rank])
        except Exception as error:
            found[rank] = error

    threads = [Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, ranks


class Curved(Game):
    """A game that isn't additive; ``broken`` makes the value of one coalition size NaN."""

    n_players = 9
    player_names = tuple(f"u{i}" for i in range(9))

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        total = coalitions @ np.arange(1.0, 10.0)
        values = np.sqrt(total) + 0.1 * coalitions[:, 0] * coalitions[:, 3]
        return np.where(self.broken & (coalitions.sum(axis=1) == 4), np.nan, values)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("call", [
    lambda game, c: mp.shapley(game, method="permutation", n_evals=400, seed=5, communicator=c),
    lambda game, c: mp.shapley(game, method="regression", n_evals=400, seed=5, communicator=c),
    lambda game, c: mp.semivalue(game, p=0.3, method="adjusted", n_evals=700, seed=5, communicator=c),
    lambda game, c: mp.banzhaf(game, method="one_toggle", n_evals=400, seed=5, communicator=c),
    lambda game, c: mp.interactions(game, method="sampled", n_evals=2000, seed=5, communicator=c),
    lambda game, c: mp.shapley(game, method="permutation", n_evals=4000, seed=5, stop=mp.CutResolved(4),
                               communicator=c),
], ids=["permutation", "regression", "adjusted", "one_toggle", "pairs", "stop"])
def test_ranks_share_the_work_and_agree_with_one_process(call: Any, size: int) -> None:
    alone = call(Curved(), None)
    found, ranks = ranked(size, lambda communicator: call(Curved(), communicator))
    for each in found:
        assert not isinstance(each, Exception), each
        assert {**each.to_dict(), "seconds": 0} == {**alone.to_dict(), "seconds": 0}
    assert all(rank.largest > 0 for rank in ranks)


def test_an_error_of_one_rank_is_raised_by_all() -> None:
    def call(communicator: Threads) -> Estimate:
        game = Curved(broken=communicator.rank == 1)
        return mp.shapley(game, method="permutation", n_evals=400, communicator=communicator)

    found, _ = ranked(2, call)
    assert all(isinstance(each, DataError) and "nan" in str(each) for each in found)


def test_what_needs_one_process_is_refused(tmp_path: Path) -> None:
    communicator = Threads(0, 1, Barrier(1), [None])
    for options in ({"checkpoint": tmp_path / "c"}, {"time_limit": 1.0}):
        with pytest.raises(ConfigError, match="for one process"):
            mp.shapley(Curved(), method="permutation", communicator=communicator, **options)
    with pytest.raises(ConfigError, match="for one process"):
        mp.interactions(Curved(), method="sampled", time_limit=1.0, communicator=communicator)


def test_without_torchrun_the_communicator_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="torchrun"):
        mp.TorchCommunicator()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_after_close_no_thread_of_the_group_is_left() -> None:
    script = """
import os, torch
import mipprune as mp
communicator = mp.TorchCommunicator()
mp.trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval(), torch.zeros(1, 4))
def threads():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)
assert communicator.gather(3) == [3]
during = threads()
communicator.close()
print(during > 0, threads())
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["True", "0"], run.stderr


@pytest.mark.slow
def test_two_gloo_ranks_give_the_bits_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    script = str(ROOT / "examples" / "distributed.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment = {key: value for key, value in environment.items() if key not in ("RANK", "WORLD_SIZE")}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = {}
    for name, words in (("one", [sys.executable]), ("two", launch)):
        run = subprocess.run([*words, script, "--evals", "1500", "--out", str(tmp_path / name)], env=environment,
                             capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        said[name] = run.stdout
    assert "by 2 process(es)" in said["two"]
    one, two = (Estimate.load(tmp_path / name) for name in ("one", "two"))
    assert two.method == "sample_permutation"
    assert {**one.to_dict(), "seconds": 0} == {**two.to_dict(), "seconds": 0}
