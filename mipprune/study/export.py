"""Tables of finished cells: rows, CSV, data frames, Parquet."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from ..records import write_bytes_atomic
from .cell import StoredCell, canonical
from .storage import StudyStorage

if TYPE_CHECKING:
    import pandas

__all__ = ["flat_row", "frame_of", "rows_of", "write_csv", "write_parquet"]

#: Inputs that no reader of a table wants: they only make keys.
HIDDEN = ("network", "version")
#: Results with moments of the clock in them.
TIMED = ("progress",)


def flat_row(cell: StoredCell, timing: bool = True) -> dict[str, Any]:
    """Network, inputs and results of a finished cell; what is no number or text is written as JSON."""
    row: dict[str, Any] = {"model": cell.model, **cell.inputs}
    for key in HIDDEN:
        row.pop(key, None)
    row.update(cell.result or {})
    if timing:
        row.update(seconds=cell.seconds, attempts=cell.attempts)
    else:
        for key in TIMED:
            row.pop(key, None)
    for key, value in row.items():
        if isinstance(value, (dict, list)):
            row[key] = canonical(value)
    return row


def rows_of(storage: StudyStorage, study: str, kind: str, timing: bool = True) -> list[dict[str, Any]]:
    """Flat rows of a study's finished cells of one kind, in the order of the study.

    Args:
        timing: also how long each took and at which attempt; without, the rows depend on the inputs alone.
    """
    return [flat_row(cell, timing) for cell in storage.cells(study, kind=kind, state="done")]


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        if not row.keys() <= found.keys():
            found |= dict.fromkeys(row)
    return list(found)


def write_csv(path: str | os.PathLike[str], rows: list[dict[str, Any]]) -> None:
    """Write rows as UTF-8 CSV (RFC 4180), atomically; floats so that they read back equal, None as nothing."""
    stream, columns = io.StringIO(), _columns(rows)
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows([row.get(column, "") for column in columns] for row in rows)
    write_bytes_atomic(path, stream.getvalue().encode())


def frame_of(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Rows as a pandas data frame.  Raises MissingDependencyError without pandas."""
    try:
        import pandas
    except ImportError as error:
        raise MissingDependencyError("data frames need pandas: pip install 'mipprune[tables]'") from error
    return pandas.DataFrame(rows, columns=_columns(rows))


def write_parquet(path: str | os.PathLike[str], rows: list[dict[str, Any]]) -> None:
    """Write rows as a Parquet file, atomically.  Raises MissingDependencyError without pandas or pyarrow."""
    frame = frame_of(rows)
    stream = io.BytesIO()
    try:
        frame.to_parquet(stream, engine="pyarrow", index=False)
    except ImportError as error:
        raise MissingDependencyError("Parquet needs pyarrow: pip install 'mipprune[tables]'") from error
    write_bytes_atomic(Path(path), stream.getvalue())
