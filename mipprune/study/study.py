"""A study: networks, grids of cells over them, and a storage where every cell is computed once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..config import TomlFile
from ..errors import ConfigError, DataError
from ..pruning.options import Budget, LossIncrease
from .export import rows_of, write_csv, write_parquet
from .grid import Grid, read_grid
from .kinds import KINDS, GridCell, stages_of
from .networks import LiveNetwork, StudyNetwork
from .runner import LEASE, RunSummary, run_stages
from .sqlite import SqliteStorage
from .storage import StudyStorage

if TYPE_CHECKING:
    import pandas
    from torch import nn

__all__ = ["Study"]


class Study:
    """A grid of computations that is written down once, runs over and over, and computes each cell once.

    ::

        study = mp.Study("sampling", storage="sampling.db")
        study.add_model("mlp", model, data)
        study.add("estimate", layer="2", method=["permutation", "regression"], n_evals=[200, 1000], seed=range(5))
        study.add("prune", budget=[mp.Macs(0.5), mp.Macs(0.25)], surrogate=["quadratic", "additive"])
        study.run(n_jobs=2)
        study.table("estimate")

    A cell is known by the content of its inputs: the network's tensors and classes, the data, and every option.
    What is done stays done, across runs, processes and studies that share the storage.

    Args:
        name: of the study; one storage holds many.
        storage: a file (made if it isn't there), or any :class:`~mipprune.study.storage.StudyStorage`.

    Raises:
        ConfigError: the name is empty.
        StorageError: the file is something else, or can't be opened.
    """

    def __init__(self, name: str, storage: str | os.PathLike[str] | StudyStorage) -> None:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"a study needs a name, got {name!r}")
        self.name = name
        self.storage = storage if isinstance(storage, StudyStorage) else SqliteStorage(storage)
        self.networks: dict[str, StudyNetwork] = {}
        self._grids: dict[bool, list[Grid]] = {False: [], True: []}
        self._fingerprints: dict[str, str] = {}

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], storage: str | os.PathLike[str] | StudyStorage | None = None
    ) -> Self:
        """The study that a TOML file describes.

        Args:
            path: the study file.
            storage: goes before the file's own.

        Raises:
            ConfigError: a mistake in the file; the text has the line and the nearest valid key.
            OSError, StorageError: the file can't be read, the storage can't be opened.
        """
        from .files import read_study_file

        read = read_study_file(Path(path))
        study = cls(read.name, read.storage if storage is None else storage)
        study.networks.update(read.networks)
        study._grids = {False: list(read.grids), True: list(read.quick)}
        return study

    def add_model(self, name: str, model: nn.Module | StudyNetwork, data: Any = None, holdout: Any = None) -> None:
        """Add a trained network and its calibration data, as :func:`mipprune.prune` takes them; both are copied."""
        if name in self.networks:
            raise ConfigError(f"the study has a network {name!r} already")
        if not isinstance(model, StudyNetwork):
            if data is None:
                raise DataError(f"network {name!r} needs calibration data")
            model = LiveNetwork(model, data, holdout)
        self.networks[name] = model

    def add(self, kind: str, **axes: Any) -> int:
        """Add the cells of all combinations.

        Args:
            kind: ``"estimate"``, ``"prune"`` or another registered kind.
            axes: every key of the kind's section (:class:`~mipprune.study.EstimateSection`,
                :class:`~mipprune.config.PruneSection`), and ``model``: a value, or a list or range of values.

        Returns:
            How many cells they are.

        Raises:
            ConfigError: an unknown kind or key, a wrong value; the text has the nearest valid key.
        """
        if kind not in KINDS:
            raise ConfigError(f"no kind of cell {kind!r}; known: {', '.join(KINDS)}")
        file = TomlFile(Path(f"study {self.name}"), "", {})
        grid = read_grid(kind, {key: _as_toml(value) for key, value in axes.items()}, list(self.networks), file, kind)
        for grids in self._grids.values():
            grids.append(grid)
        return len(grid.models) * len(grid.sections)

    def plan(self, quick: bool = False) -> list[list[GridCell]]:
        """All cells with those they need, in stages; builds every network once, to know its fingerprint.

        Args:
            quick: the cells of the study file's ``quick`` keys instead.

        Raises:
            ConfigError: a network that can't be made.
        """
        grids = self._grids[quick]
        for name in dict.fromkeys(name for grid in grids for name in grid.models):
            if name not in self._fingerprints:
                self._fingerprints[name] = self.networks[name].fingerprint()
        return stages_of([cell for grid in grids for cell in grid.cells(self._fingerprints)])

    def run(
        self, *, n_jobs: int = 1, quick: bool = False, retries: int = 1, lease: float = LEASE, progress: bool = False
    ) -> RunSummary:
        """Compute what isn't done yet.

        Every cell is claimed when a worker is free for it and stored when it ends, so the run can be stopped in any
        way, and several processes can work on one storage.  A cell that fails keeps its error and is tried again,
        within this run and by the next one; what mipprune itself refuses is tried again by the next run only.

        Args:
            n_jobs: cells at a time, through joblib (``joblib.parallel_config`` is obeyed, so Dask and Ray too).
            quick: only the cells of the study file's ``quick`` keys.
            retries: further attempts at a cell that failed, and at starting workers, within this run.
            lease: seconds after which a claim of a process that no longer answers is taken over.  A dead process of
                this machine is noticed at once.
            progress: show a progress bar.

        Returns:
            What was done.  After Ctrl-C too, with ``interrupted=True``.

        Raises:
            ConfigError: no cells, or a network that can't be made.
            StorageError: the storage can't be written, because the disk is full for instance.  Nothing stored is lost.
        """
        stages = self.plan(quick)
        if not stages:
            raise ConfigError(f"study {self.name!r} has no cells: add some")
        return run_stages(
            self.name, stages, self.networks, self.storage, n_jobs=n_jobs, retries=retries, lease=lease,
            progress=progress,
        )

    def states(self) -> Counter[str]:
        """How many stored cells of this study are waiting, running, done and failed."""
        return Counter(self.storage.states(self.name).values())

    def table(self, kind: str, timing: bool = True) -> list[dict[str, Any]]:
        """Finished cells of one kind, one flat row each: network, inputs, results.

        Args:
            kind: of the cells.
            timing: also how long each took and at which attempt; without, the rows depend on the inputs alone.
        """
        return rows_of(self.storage, self.name, kind, timing)

    def to_pandas(self, kind: str, timing: bool = True) -> pandas.DataFrame:
        """:meth:`Study.table` as a data frame.  Raises MissingDependencyError without pandas."""
        from .export import frame_of

        return frame_of(self.table(kind, timing))

    def to_csv(self, path: str | os.PathLike[str], kind: str, timing: bool = True) -> None:
        """Write :meth:`Study.table` to ``path`` as CSV, atomically."""
        write_csv(path, self.table(kind, timing))

    def to_parquet(self, path: str | os.PathLike[str], kind: str, timing: bool = True) -> None:
        """Write :meth:`Study.table` to ``path`` as Parquet, atomically.

        Raises:
            MissingDependencyError: pandas or pyarrow isn't installed.
        """
        write_parquet(path, self.table(kind, timing))

    def close(self) -> None:
        """Close the storage."""
        self.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_toml(value: Any) -> Any:
    """A value of Python as a study file would write it."""
    if isinstance(value, Budget):
        return {value.resource: value.ratio}
    if isinstance(value, LossIncrease):
        return value.nats
    if isinstance(value, (range, tuple, list, np.ndarray)):
        return [_as_toml(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return dict(value) if isinstance(value, Mapping) else value
