"""Result records: frozen dataclasses that go to JSON and come back equal, and files that are never half written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

_R = TypeVar("_R", bound="Record")

__all__ = ["Record", "digest_of", "frozen_array", "read_json", "write_bytes_atomic", "write_json_atomic"]


def frozen_array(values: Any, dtype: Any = np.float64) -> np.ndarray:
    """Copy ``values`` into a read-only array, so that a frozen record really is frozen."""
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """Base of all result records.

    Fields may be ``None``, bools, ints, floats, strings, numpy arrays, other records, and tuples or string-keyed
    dicts of these.  Two records are equal when their ``to_dict`` are equal.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data.  Arrays become ``{"dtype", "shape", "data"}``, non-finite floats their names."""
        out: dict[str, Any] = {"record": type(self).__name__}
        for field in dataclasses.fields(self):
            out[field.name] = _encode(getattr(self, field.name))
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: ``data`` is of another record, lacks a field or has one too many.
        """
        found = data.get("record") if isinstance(data, dict) else type(data).__name__
        if found != cls.__name__:
            for kind in _subclasses(cls):
                if kind.__name__ == found:
                    return kind.from_dict(data)  # a field typed with a base class holds one of its kinds
            raise ValueError(f"expected the data of a {cls.__name__}, got {found!r}")
        hints = typing.get_type_hints(cls)
        names = {field.name for field in dataclasses.fields(cls)}
        given = set(data) - {"record"}
        if given != names:
            raise ValueError(
                f"{cls.__name__}: missing fields {sorted(names - given)}, unknown fields {sorted(given - names)}"
            )
        return cls(**{name: _decode(data[name], hints[name]) for name in names})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_json_atomic(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.  Raises ``ValueError`` on a file that holds anything else."""
        return cls.from_dict(read_json(path))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def _subclasses(cls: type[_R]) -> list[type[_R]]:
    return [kind for sub in cls.__subclasses__() for kind in (sub, *_subclasses(sub))]


def _encode(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": _encode(value.ravel().tolist())}
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _encode(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"a record can't hold a {type(value).__name__}")


def _decode(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _decode(value, next(a for a in args if a is not type(None)))
    if hint is np.ndarray:
        return frozen_array(value["data"], dtype=value["dtype"]).reshape(value["shape"])
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(value)
    if origin is tuple:
        inner = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        return tuple(_decode(v, inner if inner is not None else args[i]) for i, v in enumerate(value))
    if origin is dict:
        return {k: _decode(v, args[1]) for k, v in value.items()}
    if hint is float:
        return float(value)
    return value


def digest_of(record: Record) -> str:
    """SHA-256 of a record's content, hexadecimal: names, types and values of all fields, arrays byte by byte.

    Two records with the same digest are equal; it doesn't depend on the machine, the process or the file format.
    """
    sink = hashlib.sha256()
    _feed(sink.update, record)
    return sink.hexdigest()


def _feed(update: Callable[[bytes], object], value: Any) -> None:
    """Every value as its kind, its length where it has one, and its content, so that no two run together."""
    if isinstance(value, Record):
        update(f"record {type(value).__name__} {len(dataclasses.fields(value))};".encode())
        for field in dataclasses.fields(value):
            update(f"{field.name}=".encode())
            _feed(update, getattr(value, field.name))
    elif isinstance(value, np.ndarray):
        update(f"array {value.dtype.str.lstrip('<>=|')} {value.shape};".encode())
        update(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).tobytes())
    elif isinstance(value, (list, tuple)):
        update(f"sequence {len(value)};".encode())
        for item in value:
            _feed(update, item)
    elif isinstance(value, dict):
        update(f"dict {len(value)};".encode())
        for key in sorted(value):
            _feed(update, key)
            _feed(update, value[key])
    else:
        text = json.dumps(_encode(value)).encode()  # None, bools, numbers, strings
        update(f"{type(_plain(value)).__name__} {len(text)};".encode() + text)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def write_bytes_atomic(path: str | os.PathLike[str], payload: bytes) -> None:
    """Write a file so that a reader (or a crash) sees the old content or the new, never a part of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)  # mkstemp makes private files; results are meant to be shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json_atomic(path: str | os.PathLike[str], data: Any) -> None:
    """Write strict JSON (no NaN literals) atomically."""
    write_bytes_atomic(path, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; a file that isn't JSON is a ``ValueError`` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
