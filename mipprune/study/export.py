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


def flat_row(cell: StoredCell, timing: bool = True) -> dict[str, Any]:
    """Network, inputs and results of a finished cell; what is no number or text is written as JSON."""
    row: dict[str, Any] = {"model": cell.model}
    row |= {key: value for key, value in cell.inputs.items() if key not in HIDDEN}
    row |= cell.result or {}
    if timing:
        row |= {"seconds": cell.seconds, "attempts": cell.attempts}
    return {key: canonical(value) if isinstance(value, (dict, list)) else value for key, value in row.items()}


def rows_of(storage: StudyStorage, study: str, kind: str, timing: bool = True) -> list[dict[str, Any]]:
    """Flat rows of a study's finished cells of one kind, in the order of the study.

    Args:
        timing: also how long each took and at which attempt; without, the rows depend on the inputs alone.
    """
    return [flat_row(cell, timing) for cell in storage.cells(study, kind=kind, state="done")]


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def write_csv(path: str | os.PathLike[str], rows: list[dict[str, Any]]) -> None:
    """Write rows as UTF-8 CSV (RFC 4180), atomically; floats so that they read back equal, None as nothing."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _columns(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
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
