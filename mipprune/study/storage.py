"""The contract of a study's storage: what was asked for, who works on it, what came out."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from .cell import Cell, StoredCell

__all__ = ["StudyStorage"]


class StudyStorage(abc.ABC):
    """Keeps cells by key, and for each study which cells it asked for.

    Contract (checked by ``mipprune.testing.StorageContract``):

    * A method that returns has stored what it says, for every other opener of the same storage and after a crash of
      this process at any later moment.  A method that raises, or dies half way, has stored nothing.
    * Cells are shared: two studies that ask for the same key have one cell and one result.
    * At most one owner holds a cell.  A *claim* lasts ``lease`` seconds, unless it's renewed; a claim that ran out, or
      whose process is known to be gone, can be taken over.  Who has lost a claim can't finish or fail the cell.
    * A finished cell stays finished with the result of its first finish: nothing but :meth:`repair` ever takes it back.
    * A cell whose stored content was altered is never handed out as a result: it reads as ``"damaged"``, and
      :meth:`repair` forgets it, so that it's computed again.
    * Safe to use from several threads and processes at once.

    Owners are strings that :meth:`new_owner` makes, one per run.  All times are in seconds.  Every method raises
    :class:`~mipprune.errors.StorageError` when the storage can't be read or written, a full disk for instance.
    """

    @abc.abstractmethod
    def declare(self, study: str, cells: Iterable[Cell]) -> int:
        """Add the cells to the study, all or none; returns how many are new.

        If some are, the study's order becomes that of ``cells``, followed by what else it has: so the order doesn't
        depend on what was asked for first.
        """

    @abc.abstractmethod
    def studies(self) -> list[str]:
        """Names of all studies, sorted."""

    @abc.abstractmethod
    def states(self, study: str) -> dict[str, str]:
        """Key -> state of all cells of the study; ``{}`` for a study that isn't there.  Doesn't look for damage."""

    @abc.abstractmethod
    def counts(self, study: str) -> dict[tuple[str, str], int]:
        """(kind, state) -> number of the study's cells, in the order the kinds came in.  Doesn't look for damage."""

    @abc.abstractmethod
    def cells(self, study: str, kind: str | None = None, state: str | None = None) -> Iterator[StoredCell]:
        """The study's cells in the order of :meth:`declare`; a cell that goes by two names comes once for each.

        Args:
            study: its name.
            kind: only cells of this kind.
            state: only cells that are in this state.
        """

    @abc.abstractmethod
    def new_owner(self) -> str:
        """A name for one run of this process, unlike all others."""

    @abc.abstractmethod
    def claim(self, key: str, owner: str, lease: float) -> bool:
        """Take a cell that is waiting or has failed, or whose claim ran out: True if it's now the owner's to run."""

    @abc.abstractmethod
    def renew(self, owner: str, lease: float) -> None:
        """Let all claims of the owner last ``lease`` seconds from now."""

    @abc.abstractmethod
    def release(self, owner: str) -> None:
        """Give back all claims of the owner: these cells wait again."""

    @abc.abstractmethod
    def finish(
        self, key: str, owner: str, result: dict[str, Any], seconds: float, payload: bytes | None = None
    ) -> bool:
        """Store the result of a claimed cell; False, and nothing stored, if the owner no longer holds it.

        Args:
            key: of the cell.
            owner: who claimed it.
            result: plain JSON data.
            seconds: how long it took.
            payload: bytes for the cells that need this one.
        """

    @abc.abstractmethod
    def fail(self, key: str, owner: str, error: str) -> bool:
        """Store the error of a claimed cell; False, and nothing stored, if the owner no longer holds it."""

    @abc.abstractmethod
    def state(self, key: str) -> str | None:
        """State of one cell, None if there is no such cell."""

    @abc.abstractmethod
    def error(self, key: str) -> str | None:
        """Text of the cell's last failure."""

    @abc.abstractmethod
    def payload(self, key: str) -> bytes:
        """The bytes that a finished cell left for those that need it.  Raises KeyError if there are none."""

    @abc.abstractmethod
    def repair(self) -> Collection[str]:
        """Forget what is damaged, so that declaring and running the study makes it anew; returns the keys found."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of files and connections; using the storage afterwards is an error."""
