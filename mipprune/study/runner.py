"""Running cells: claimed one by one, computed through joblib, stored by this process as soon as they end."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import signal
import threading
import time
import traceback
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import MipPruneError, StorageError
from ..records import Record
from .cell import NEEDS, plain
from .kinds import KINDS, GridCell
from .networks import StudyNetwork
from .storage import StudyStorage

__all__ = ["Outcome", "RunSummary", "Task", "run_stages", "work"]

LEASE = 60.0
#: Seconds between looks at cells that another process holds.
POLL = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class RunSummary(Record):
    """What one run did.

    Attributes:
        study: its name.
        total: cells asked for, with those that others need.
        found: cells that were done before.
        done: cells that this run computed.
        elsewhere: cells that another process computed meanwhile.
        failed: cells that failed, each with its error in the storage.
        left: cells neither done nor failed, after Ctrl-C.
        repaired: damaged cells that were forgotten and so asked for again.
        interrupted: whether Ctrl-C ended it.
        seconds: wall-clock time.
    """

    study: str
    total: int
    found: int
    done: int
    elsewhere: int
    failed: int
    left: int
    repaired: int
    interrupted: bool
    seconds: float

    def __str__(self) -> str:
        if self.found == self.total:
            return f"{self.study}: nothing to do, all {self.total} cells were done before"
        parts = [f"{self.done} cells computed", f"{self.found} of {self.total} done before"]
        for number, text in ((self.elsewhere, "computed by another process"), (self.failed, "failed"),
                             (self.left, "left"), (self.repaired, "were damaged and asked for again")):
            parts += [f"{number} {text}"] if number else []
        return f"{self.study}: {', '.join(parts)}; {self.seconds:.1f} s" + (" (interrupted)" * self.interrupted)


class Task(NamedTuple):
    """All that a worker needs for one cell."""

    key: str
    compute: str
    inputs: dict[str, Any]
    network: StudyNetwork
    payloads: tuple[bytes, ...]


class Outcome(NamedTuple):
    """What a worker sends back: a result, or the text of an error and whether another try may help."""

    key: str
    result: dict[str, Any] | None
    payload: bytes | None
    seconds: float
    error: str | None
    hopeless: bool


def work(task: Task) -> Outcome:
    """Compute one cell, in a worker.  One thread, so that results don't depend on how many cells run at a time."""
    import torch

    where, _, what = task.compute.partition(":")
    begin, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(), _interrupts_kept():
            torch.manual_seed(int(task.key[:15], 16))
            result, payload = getattr(importlib.import_module(where), what)(task.inputs, task.network, task.payloads)
        return Outcome(task.key, plain(result), payload, time.perf_counter() - begin, None, False)
    except Exception as error:
        # what mipprune refuses it will refuse again; anything else may have been the machine
        hopeless = isinstance(error, MipPruneError)
        return Outcome(task.key, None, None, time.perf_counter() - begin, traceback.format_exc(), hopeless)
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Let Ctrl-C end a cell whatever is in it: searches answer with the best so far, which the inputs don't decide."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # no signal comes here
        return
    interrupted = False

    def note(number: int, frame: types.FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted:
            raise KeyboardInterrupt


class _Stage:
    """The cells of one stage, until each is settled: done, or failed for good."""

    def __init__(self, run: _Run, cells: Sequence[GridCell]) -> None:
        self.storage, self.owner, self.settings = run.storage, run.owner, run
        self.cells = {cell.cell.key: cell for cell in cells}  # a key may go by several names
        self.open = dict.fromkeys(key for key in self.cells if run.states.get(key) != "done")
        self.running: set[str] = set()
        self.suspects: set[str] = set()  # were running when a worker died
        self.tries: Counter[str] = Counter()
        self.stillborn = 0  # how often workers died that had no cell
        self.trouble: BaseException | None = None

    def run(self, n_jobs: int) -> None:
        while self.open:
            todo = [key for key in self.open if key not in self.suspects]
            # suspects come last, one at a time: so it shows which of them kills its worker
            before = len(self.open), self.tries.total()
            self._pass(todo or [next(iter(self.open))], n_jobs)
            if (len(self.open), self.tries.total()) == before:  # what is left is in other hands
                time.sleep(POLL)

    def _pass(self, todo: Sequence[str], n_jobs: int) -> None:
        """Give each of these cells one try, unless somebody else holds it."""
        try:
            for outcome in self._outcomes(todo, n_jobs):
                self._store(outcome)
        except StorageError:
            raise
        except Exception as error:  # work() returns its errors, so this is a worker that died, or its backend
            if self.running:
                self._lost(f"a worker process died: {type(error).__name__}: {error}")
            else:  # at its start, as on a machine with too much to do, or at its end
                self.stillborn += 1
                if self.stillborn > self.settings.retries:
                    raise
        if self.trouble is not None:
            raise self.trouble

    def _outcomes(self, todo: Sequence[str], n_jobs: int) -> Iterator[Outcome]:
        from joblib import Parallel, delayed
        from joblib.parallel import get_active_backend

        backend = get_active_backend()[0]
        if backend.supports_return_generator:
            # a claim is taken when a worker is free for it, not before
            parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs")
            yield from parallel(delayed(work)(task) for task in self._tasks(todo))
            return
        size = 8 * backend.effective_n_jobs(n_jobs)  # Ray hands results over when all are there: so in rounds
        with Parallel(n_jobs=n_jobs, batch_size=1) as parallel:  # one pool for all rounds: its start loads torch
            for start in range(0, len(todo), size):
                yield from parallel(delayed(work)(task) for task in self._tasks(todo[start : start + size]))

    def _tasks(self, todo: Sequence[str]) -> Iterator[Task]:
        """Claimed cells.  Runs in threads of joblib, which would wait for ever if it raised there."""
        try:
            for key in todo:
                if self.storage.claim(key, self.owner, self.settings.lease):
                    task = self._task(key)
                    if task is not None:
                        self.running.add(key)
                        yield task
                elif self.storage.state(key) == "done":
                    self._settle(key, "elsewhere")
        except Exception as error:
            self.trouble = error

    def _task(self, key: str) -> Task | None:
        cell = self.cells[key].cell
        missing = [need for need in cell.needs if self.storage.state(need) != "done"]
        if missing:
            last = (self.storage.error(missing[0]) or "it isn't there").strip().splitlines()[-1]
            self.storage.fail(key, self.owner, f"{NEEDS}{missing[0]}, which failed: {last}")
            self._settle(key, "failed")
            return None
        payloads = tuple(self.settings.payload(need) for need in cell.needs)
        return Task(key, KINDS[cell.kind].compute, cell.inputs, self.settings.networks[cell.model], payloads)

    def _store(self, outcome: Outcome) -> None:
        key = outcome.key
        self.running.discard(key)
        if outcome.error is None:
            assert outcome.result is not None
            if self.storage.finish(key, self.owner, outcome.result, outcome.seconds, outcome.payload):
                self._settle(key, "done")
            return  # else the claim was lost: whoever has it now finishes the cell
        self.storage.fail(key, self.owner, outcome.error)
        self.tries[key] += 1
        if outcome.hopeless or self.tries[key] > self.settings.retries:
            self._settle(key, "failed")

    def _lost(self, text: str) -> None:
        lost, self.running = self.running, set()
        for key in lost:
            self.storage.fail(key, self.owner, text)
            if len(lost) == 1:
                self.tries[key] += 1
                if self.tries[key] > self.settings.retries:
                    self._settle(key, "failed")
        self.suspects |= lost

    def _settle(self, key: str, how: str) -> None:
        del self.open[key]
        self.settings.counts[how] += 1
        self.settings.tick()


@dataclasses.dataclass
class _Run:
    """What all stages of one run share."""

    storage: StudyStorage
    owner: str
    networks: dict[str, StudyNetwork]
    states: dict[str, str]
    lease: float
    retries: int
    tick: Callable[[], None]
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    _payloads: OrderedDict[str, bytes] = dataclasses.field(default_factory=OrderedDict)

    def payload(self, key: str) -> bytes:
        """A payload, read once for many cells in a row."""
        if key not in self._payloads:
            self._payloads[key] = self.storage.payload(key)
            while len(self._payloads) > 4:
                self._payloads.popitem(last=False)
        return self._payloads[key]


def run_stages(
    study: str, stages: Sequence[Sequence[GridCell]], networks: dict[str, StudyNetwork], storage: StudyStorage, *,
    n_jobs: int = 1, retries: int = 1, lease: float = LEASE, progress: bool = False,
) -> RunSummary:
    """Compute the cells that aren't done yet, stage by stage; see :meth:`mipprune.study.Study.run`."""
    from tqdm.auto import tqdm

    begin = time.perf_counter()
    repaired = storage.repair()
    storage.declare(study, [cell.cell for stage in stages for cell in stage])
    states = storage.states(study)
    keys = {cell.cell.key for stage in stages for cell in stage}
    found = sum(states[key] == "done" for key in keys)
    owner, interrupted = storage.new_owner(), False
    with tqdm(total=len(keys), initial=found, disable=not progress, unit="cell", desc=study) as bar:
        run = _Run(storage, owner, networks, states, lease, retries, lambda: _tick(bar))
        with _heartbeat(storage, owner, lease):
            try:
                for stage in stages:
                    _Stage(run, stage).run(n_jobs)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                with contextlib.suppress(StorageError):  # what the lease is for
                    storage.release(owner)
    done, elsewhere, failed = (run.counts[how] for how in ("done", "elsewhere", "failed"))
    left = len(keys) - found - done - elsewhere - failed
    seconds = time.perf_counter() - begin
    return RunSummary(
        study, len(keys), found, done, elsewhere, failed, left, len(repaired), interrupted, seconds
    )


def _tick(bar: Any) -> None:
    bar.update(1)


@contextlib.contextmanager
def _heartbeat(storage: StudyStorage, owner: str, lease: float) -> Iterator[None]:
    """Renew the owner's claims while the cells run."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(lease / 3):
            with contextlib.suppress(StorageError):  # a claim that is lost for it is run again by others
                storage.renew(owner, lease)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
