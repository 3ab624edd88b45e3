"""What a study is made of: cells, each known by the content of its inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from typing import Any

from ..records import Record

__all__ = ["NEEDS", "STATES", "Cell", "StoredCell", "canonical", "plain"]

#: What a stored cell can be; "damaged" is one whose row no longer fits its checksum.
STATES = ("waiting", "running", "done", "failed", "damaged")

#: How the error of a cell begins that failed because one failed that it needs.
NEEDS = "needs cell "


def plain(value: Any) -> Any:
    """``value`` as strict JSON data: numpy scalars unwrapped, tuples as lists, numbers that aren't finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"a cell can't hold a {type(value).__name__}")


def canonical(value: Any) -> str:
    """The one JSON text of plain data: sorted keys, no spaces, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Cell(Record):
    """One computation of a study.

    Attributes:
        kind: name of a registered kind, see :mod:`mipprune.study.kinds`.
        model: what the study calls the network; no part of the cell's identity.
        inputs: everything that the result depends on, as plain JSON data; networks and data by their fingerprints.
        needs: keys of cells that must be done before, because this one reads their payloads.
    """

    kind: str
    model: str
    inputs: dict[str, Any]
    needs: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """SHA-256 of kind and inputs: the cell's identity, whatever study or network name asks for it."""
        return hashlib.sha256(f"{self.kind}\n{canonical(self.inputs)}".encode()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class StoredCell(Record):
    """A cell as its storage knows it.

    Attributes:
        key, kind, model, inputs: see :class:`Cell`.
        state: one of :data:`STATES`.
        attempts: how often it was begun.
        error: text of the last failure; kept when a later attempt succeeds.
        result: plain JSON data of a cell that is done, otherwise None.
        seconds: wall-clock time of the attempt that succeeded.
    """

    key: str
    kind: str
    model: str
    inputs: dict[str, Any]
    state: str
    attempts: int
    error: str | None
    result: dict[str, Any] | None
    seconds: float | None
