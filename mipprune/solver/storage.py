"""Problems in files: JSON for small ones, a zip of plain arrays for large ones.  Nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import surrogates  # noqa: F401  a stored problem names its surrogate's class, which has to be known
from ..errors import DataError
from ..records import read_json, write_bytes_atomic, write_json_atomic
from .problem import Problem

__all__ = ["load_problem", "save_problem"]

#: Name of the entry of an .npz file that holds everything but the arrays, as JSON in bytes.
HEADER = "record"


def save_problem(path: str | os.PathLike[str], problem: Problem) -> None:
    """Write a problem to ``path``, atomically: JSON, or numpy's compressed .npz if the name ends so.

    Both come back with the same :attr:`Problem.digest`.  The .npz of a convex head takes about 8 bytes per activation
    before compression, the JSON about 20.
    """
    if Path(path).suffix != ".npz":
        write_json_atomic(path, problem.to_dict())
        return
    arrays: dict[str, np.ndarray] = {}
    header = json.dumps(_take_arrays(problem.to_dict(), arrays), allow_nan=False).encode()
    stream = io.BytesIO()
    np.savez_compressed(stream, **{HEADER: np.frombuffer(header, dtype=np.uint8)}, **arrays)  # type: ignore[arg-type]
    write_bytes_atomic(path, stream.getvalue())


def load_problem(path: str | os.PathLike[str]) -> Problem:
    """Read what :func:`save_problem` wrote to ``path``.

    Raises:
        DataError: the file holds something else, or a surrogate of an unknown class.
    """
    try:
        if Path(path).suffix != ".npz":
            return Problem.from_dict(read_json(path))
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(bytes(stored[HEADER]).decode())
            return Problem.from_dict(_put_arrays(header, stored))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a stored problem: {error}") from error


def _take_arrays(data: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The record's data with every array moved to ``arrays`` and its name left in its place."""
    if isinstance(data, dict) and set(data) == {"dtype", "shape", "data"}:
        name = f"array{len(arrays)}"
        arrays[name] = np.array(data["data"], dtype=data["dtype"]).reshape(data["shape"])
        return {"array": name}
    if isinstance(data, dict):
        return {key: _take_arrays(value, arrays) for key, value in data.items()}
    if isinstance(data, list):
        return [_take_arrays(value, arrays) for value in data]
    return data


def _put_arrays(data: Any, stored: Any) -> Any:
    if isinstance(data, dict) and set(data) == {"array"}:
        array = stored[data["array"]]
        return {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.ravel()}
    if isinstance(data, dict):
        return {key: _put_arrays(value, stored) for key, value in data.items()}
    if isinstance(data, list):
        return [_put_arrays(value, stored) for value in data]
    return data
