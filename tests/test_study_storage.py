"""The storage of studies: the contract, and what only SQLite can do wrong."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from mipprune.errors import StorageError
from mipprune.study.sqlite import SqliteStorage
from mipprune.study.storage import StudyStorage
from mipprune.testing import StorageContract


class TestSqlite(StorageContract):
    def open(self, folder: Path) -> StudyStorage:
        return SqliteStorage(folder / "study.db", timeout=5)

    def damage(self, folder: Path, key: str) -> None:
        alter(folder / "study.db", "UPDATE cells SET result = replace(result, '1', '2') WHERE key = ?", key)

    @pytest.mark.parametrize("column", ["key", "kind", "inputs", "state", "result", "seconds", "payload", "checksum"])
    def test_any_column_may_be_damaged(self, tmp_path: Path, column: str) -> None:
        storage = self.open(tmp_path)
        storage.declare("a", [self.cell(1), self.cell(2)])
        owner = storage.new_owner()
        for number in (1, 2):
            assert storage.claim(self.cell(number).key, owner, 9)
            assert storage.finish(self.cell(number).key, owner, {"x": 1}, 0.5, b"bytes")
        wrong = "0.25" if column == "seconds" else "'nonsense'"
        alter(tmp_path / "study.db", f"UPDATE cells SET {column} = {wrong} WHERE key = ?", self.cell(1).key)
        assert [c.result for c in storage.cells("a") if c.state == "done"] == [{"x": 1}]
        assert len(storage.repair()) == 1
        storage.declare("a", [self.cell(1), self.cell(2)])
        assert storage.states("a") == {self.cell(1).key: "waiting", self.cell(2).key: "done"}
        assert len(list(storage.cells("a"))) == 2

    @pytest.mark.parametrize("column", ["study", "key", "model"])
    def test_a_damaged_membership_doesnt_double_a_row(self, tmp_path: Path, column: str) -> None:
        storage = self.open(tmp_path)
        storage.declare("a", [self.cell(1)])
        alter(tmp_path / "study.db", f"UPDATE members SET {column} = 'nonsense' WHERE key = ?", self.cell(1).key)
        storage.declare("a", [self.cell(1)])
        assert len(storage.repair()) == 1
        assert [c.state for c in storage.cells("a")] == ["waiting"]
        assert storage.studies() == ["a"]

    def test_a_damaged_payload_is_never_handed_out(self, tmp_path: Path) -> None:
        storage = self.open(tmp_path)
        storage.declare("a", [self.cell(1)])
        key, owner = self.cell(1).key, storage.new_owner()
        assert storage.claim(key, owner, 9)
        assert storage.finish(key, owner, {}, 0.5, b"bytes")
        alter(tmp_path / "study.db", "UPDATE payloads SET data = x'00' WHERE key = ?", key)
        with pytest.raises(StorageError, match="damaged"):
            storage.payload(key)
        assert storage.repair() == [key]
        storage.declare("a", [self.cell(1)])
        assert storage.states("a") == {key: "waiting"}


def alter(path: Path, statement: str, key: str) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute(statement, (key,)).rowcount == 1
    db.close()


def test_a_claim_of_a_dead_process_is_taken_over_at_once(tmp_path: Path) -> None:
    cell = StorageContract.cell(1)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=claim_and_die, args=(tmp_path / "study.db",))
    process.start()
    process.join()
    storage = SqliteStorage(tmp_path / "study.db")
    assert storage.states("a") == {cell.key: "running"}
    assert storage.claim(cell.key, storage.new_owner(), 9)


def claim_and_die(path: Path) -> None:
    storage = SqliteStorage(path)
    storage.declare("a", [StorageContract.cell(1)])
    assert storage.claim(StorageContract.cell(1).key, storage.new_owner(), 1e6)


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "study.db")
    cells = [StorageContract.cell(i) for i in range(3)]
    storage.declare("a", cells)
    owner = storage.new_owner()
    for cell in cells[:2]:
        assert storage.claim(cell.key, owner, 9)
    assert storage.finish(cells[0].key, owner, {"x": 1}, 0.0)
    pages = storage._db.execute("PRAGMA page_count").fetchone()[0]
    storage._db.execute(f"PRAGMA max_page_count = {pages}")  # sqlite's own answer to a full disk
    with pytest.raises(StorageError, match="the disk is full; what was stored before is safe"):
        storage.finish(cells[1].key, owner, {"x": 2}, 0.0, b"0" * 1_000_000)
    with pytest.raises(StorageError, match="the disk is full"):
        storage.declare("b", [StorageContract.cell(i) for i in range(100, 5000)])
    storage._db.execute("PRAGMA max_page_count = 1000000")
    assert [storage.states("a")[cell.key] for cell in cells] == ["done", "running", "waiting"]
    assert storage.states("b") == {}
    assert storage.finish(cells[1].key, owner, {"x": 2}, 0.0, b"0" * 1_000_000)


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and longer than a header would be " * 9)
    with pytest.raises(StorageError, match=r"notes\.txt: not a storage of studies"):
        SqliteStorage(text)
    assert text.read_text().startswith("not a database")
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE people (name TEXT)")
    with pytest.raises(StorageError, match=r"other\.db: a database, but none of a study"):
        SqliteStorage(tmp_path / "other.db")
    storage = SqliteStorage(tmp_path / "study.db")
    storage._db.execute("PRAGMA user_version = 99")
    storage.close()
    with pytest.raises(StorageError, match="later mipprune"):
        SqliteStorage(tmp_path / "study.db")
    with pytest.raises(StorageError, match="can't be opened; its folder"):
        SqliteStorage(tmp_path / "no folder" / "study.db")
