"""Studies in one SQLite file, in write-ahead mode: many readers, one writer at a time, nothing lost to a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import StorageError
from .cell import Cell, StoredCell, canonical
from .storage import StudyStorage

__all__ = ["SqliteStorage"]

#: "mipp", in the file's header; and the version of the tables below.
APPLICATION, FORMAT = 0x6D697070, 1
#: Rows that are parsed at a time.
BATCH = 1000

TABLES = """
CREATE TABLE cells (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, inputs TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting',
    attempts INTEGER NOT NULL DEFAULT 0, owner TEXT, lease REAL, error TEXT, result TEXT, seconds REAL, payload TEXT,
    checksum TEXT
);
CREATE TABLE payloads (key TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE members (
    position INTEGER PRIMARY KEY, study TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, checksum TEXT NOT NULL,
    UNIQUE (study, key, model)
);
"""

#: Through the members in their order: the index on studies would make sqlite sort all rows afterwards.
READ = """
SELECT cells.key, kind, members.model, inputs, state, attempts, error, result, seconds, payload, cells.checksum,
    members.checksum
FROM members NOT INDEXED CROSS JOIN cells ON cells.key = members.key WHERE members.study = ?
"""


class SqliteStorage(StudyStorage):
    """A :class:`StudyStorage` in one file (and, while it's open, two beside it: ``-wal`` and ``-shm``).

    The file must lie on a local disk: several processes of one machine may share it, machines may not.  Workers on
    other machines are fine, for results are stored by the process that runs the study.

    Args:
        path: the file; made if it isn't there.
        timeout: seconds to wait for another process that is writing.

    Raises:
        StorageError: the file is no storage of ours, or of a later format, or can't be opened.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = 60.0) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._host = _host()
        with self._explained():
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        run = self._db.execute
        application, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION and run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StorageError(f"{self.path}: a database, but none of a study; name another file")
        if version > FORMAT:
            raise StorageError(f"{self.path}: stored by a later mipprune (format {version}, this one reads {FORMAT})")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # what was reported as stored survives a power cut too
        with self._transaction():  # several processes may come here first
            if run("PRAGMA application_id").fetchone()[0] != APPLICATION:
                for statement in TABLES.split(";")[:-1]:
                    run(statement)
                run(f"PRAGMA user_version = {FORMAT}")
                run(f"PRAGMA application_id = {APPLICATION}")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """One thread at a time, and sqlite's errors in words."""
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise StorageError(f"{self.path}: {_explanation(error)}") from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")  # waits for its turn here, never half way
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def declare(self, study: str, cells: Iterable[Cell]) -> int:
        with self._transaction():
            query = "SELECT key, model, checksum FROM members WHERE study = ? ORDER BY position"
            known = {(key, model): checksum for key, model, checksum in self._db.execute(query, (study,))}
            wanted: dict[tuple[str, str], tuple[str, str, str]] = {}
            for cell in cells:
                key = cell.key
                wanted[key, cell.model] = key, cell.kind, canonical(cell.inputs)
            self._db.executemany("INSERT OR IGNORE INTO cells (key, kind, inputs) VALUES (?, ?, ?)", wanted.values())
            n_new = len(wanted.keys() - known.keys())
            if n_new:
                self._db.execute("DELETE FROM members WHERE study = ?", (study,))
                self._db.executemany(
                    "INSERT INTO members (study, key, model, checksum) VALUES (?, ?, ?, ?)",
                    # checksums are carried along: what was damaged must not come to look right
                    [(study, *name, known.get(name) or _sum(study, *name)) for name in {**wanted, **known}],
                )
        return n_new

    def studies(self) -> list[str]:
        with self._explained():
            return [name for name, in self._db.execute("SELECT DISTINCT study FROM members ORDER BY study")]

    def states(self, study: str) -> dict[str, str]:
        query = "SELECT cells.key, state FROM members JOIN cells ON cells.key = members.key WHERE study = ?"
        with self._explained():
            return dict(self._db.execute(query, (study,)).fetchall())

    def counts(self, study: str) -> dict[tuple[str, str], int]:
        query = ("SELECT kind, state, count(*) FROM members JOIN cells ON cells.key = members.key WHERE study = ? "
                 "GROUP BY kind, state ORDER BY min(position)")
        with self._explained():
            return {(kind, state): number for kind, state, number in self._db.execute(query, (study,))}

    def cells(self, study: str, kind: str | None = None, state: str | None = None) -> Iterator[StoredCell]:
        query, given = READ, [study]
        if kind is not None:
            query, given = query + " AND kind = ?", [*given, kind]
        if state is not None and state != "damaged":
            query, given = query + " AND state = ?", [*given, state]
        with self._explained():
            rows = self._db.execute(query + " ORDER BY position", given).fetchall()
        for start in range(0, len(rows), BATCH):
            for found in _stored(study, rows[start : start + BATCH]):
                if state is None or found.state == state:
                    yield found

    def new_owner(self) -> str:
        return f"{self._host} {os.getpid()} {uuid.uuid4().hex}"

    def claim(self, key: str, owner: str, lease: float) -> bool:
        now = time.time()
        with self._transaction():
            row = self._db.execute("SELECT state, owner, lease FROM cells WHERE key = ?", (key,)).fetchone()
            if row is None:
                raise StorageError(f"{self.path}: no cell {key}; declare it first")
            state, holder, until = row
            free = state in ("waiting", "failed")
            if not free and not (state == "running" and (until < now or self._gone(holder))):
                return False
            self._db.execute(
                "UPDATE cells SET state = 'running', owner = ?, lease = ?, attempts = attempts + 1 WHERE key = ?",
                (owner, now + lease, key),
            )
            return True

    def _gone(self, owner: str) -> bool:
        """Whether the owner's process is known to have ended: only processes of this machine are."""
        host, _, rest = owner.rpartition(" ")[0].rpartition(" ")
        return host == self._host and rest.isdigit() and not _alive(int(rest))

    def renew(self, owner: str, lease: float) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET lease = ? WHERE owner = ? AND state = 'running'", (time.time() + lease, owner)
            )

    def release(self, owner: str) -> None:
        with self._transaction():
            self._db.execute(
                "UPDATE cells SET state = 'waiting', owner = NULL, lease = NULL "
                "WHERE owner = ? AND state = 'running'", (owner,)
            )

    def finish(
        self, key: str, owner: str, result: dict[str, Any], seconds: float, payload: bytes | None = None
    ) -> bool:
        with self._transaction():
            row = self._db.execute("SELECT kind, inputs FROM cells WHERE key = ?", (key,)).fetchone()
            text = canonical(result)
            left = None if payload is None else _digest(payload)
            update = self._db.execute(
                "UPDATE cells SET state = 'done', owner = NULL, lease = NULL, result = ?, seconds = ?, payload = ?, "
                "checksum = ? WHERE key = ? AND owner = ? AND state = 'running'",
                (text, seconds, left, _sum(key, *(row or ("", "")), text, seconds, left), key, owner),
            )
            if update.rowcount and payload is not None:
                self._db.execute("INSERT OR REPLACE INTO payloads VALUES (?, ?)", (key, payload))
            return bool(update.rowcount)

    def fail(self, key: str, owner: str, error: str) -> bool:
        with self._transaction():
            update = self._db.execute(
                "UPDATE cells SET state = 'failed', owner = NULL, lease = NULL, error = ? "
                "WHERE key = ? AND owner = ? AND state = 'running'", (error, key, owner),
            )
            return bool(update.rowcount)

    def state(self, key: str) -> str | None:
        return self._one("state", key)

    def error(self, key: str) -> str | None:
        return self._one("error", key)

    def _one(self, column: str, key: str) -> Any:
        with self._explained():
            row = self._db.execute(f"SELECT {column} FROM cells WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def payload(self, key: str) -> bytes:
        query = "SELECT data, payload FROM payloads JOIN cells ON cells.key = payloads.key WHERE cells.key = ?"
        with self._explained():
            row = self._db.execute(query, (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        if _digest(row[0]) != row[1]:
            raise StorageError(f"{self.path}: the payload of cell {key} is damaged; run the study again to repair it")
        return row[0]

    def repair(self) -> list[str]:
        with self._transaction():
            run = self._db.execute
            rows = run("SELECT key, kind, inputs, state, result, seconds, payload, checksum FROM cells")
            bad = [row[0] for row in rows if not _row_holds(*row)]
            bad += [key for key, data, digest in run(
                "SELECT cells.key, data, payload FROM cells LEFT JOIN payloads ON payloads.key = cells.key "
                "WHERE state = 'done' AND payload IS NOT NULL"
            ) if data is None or _digest(data) != digest]
            self._db.executemany("DELETE FROM cells WHERE key = ?", [(key,) for key in bad])
            run("DELETE FROM payloads WHERE key NOT IN (SELECT key FROM cells)")
            lost = [(position, key) for position, study, key, model, digest in
                    run("SELECT position, study, key, model, checksum FROM members")
                    if digest != _sum(study, key, model)]
            self._db.executemany("DELETE FROM members WHERE position = ?", [(position,) for position, _ in lost])
        return list(dict.fromkeys([*bad, *(str(key) for _, key in lost)]))

    def close(self) -> None:
        with self._explained():
            self._db.close()


def _sum(*parts: object) -> str:
    return _digest(repr(parts).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _row_holds(
    key: str, kind: str, inputs: str, state: str, result: str | None, seconds: float | None, payload: str | None,
    checksum: str | None,
) -> bool:
    """Whether a row is as it was written: its inputs by its key, its result by the checksum."""
    if _digest(f"{kind}\n{inputs}".encode()) != key or state not in ("waiting", "running", "failed", "done"):
        return False
    return state != "done" or checksum == _sum(key, kind, inputs, result, seconds, payload)


def _stored(study: str, rows: Sequence[tuple[Any, ...]]) -> list[StoredCell]:
    """The cells of some rows; their texts are parsed in one go, which takes a third of the time of one by one."""
    sound = [
        row[11] == _sum(study, row[0], row[2]) and _row_holds(*row[:2], *row[3:5], *row[7:11]) for row in rows
    ]
    inputs = iter(_parsed(row[3] for row, good in zip(rows, sound) if good))
    results = iter(_parsed(row[7] for row, good in zip(rows, sound) if good and row[4] == "done"))
    return [
        StoredCell(key, kind, model, next(inputs), state, attempts, error,
                   next(results) if state == "done" else None, seconds)
        if good else StoredCell(key, kind, model, {}, "damaged", attempts, error, None, None)
        for good, (key, kind, model, _, state, attempts, error, _, seconds, *_) in zip(sound, rows)
    ]


def _parsed(texts: Iterable[str]) -> list[Any]:
    found: list[Any] = json.loads(f"[{','.join(texts)}]")
    return found


def _host() -> str:
    """This machine, as far as process numbers mean the same: a container counts them on its own."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{space}".replace(" ", "_")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it belongs to somebody else
    return True


def _explanation(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name == "SQLITE_FULL":
        return "the disk is full; what was stored before is safe: make room and run again"
    if name.startswith("SQLITE_IOERR"):
        return f"the disk refused to read or write ({error}); what was stored before is safe"
    if name.startswith("SQLITE_CANTOPEN"):
        return "can't be opened; its folder has to be there and writable, for SQLite keeps a log beside the file"
    if name.startswith("SQLITE_READONLY"):
        return "may not be written"
    if name == "SQLITE_NOTADB":
        return "not a storage of studies (not an SQLite file)"
    if name.startswith("SQLITE_CORRUPT"):
        return (f"damaged beyond single rows ({error}); `sqlite3 FILE .recover | sqlite3 NEW` may save most of it, "
                f"and running the study on NEW finds what is left")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return f"another process has been writing for too long ({error})"
    return str(error)
