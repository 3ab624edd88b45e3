"""What every study storage must do: inherit from :class:`StorageContract` in a test file and say how to open one."""

from __future__ import annotations

import abc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..study.cell import Cell
from ..study.storage import StudyStorage

__all__ = ["StorageContract"]

LEASE = 60.0


class StorageContract(abc.ABC):
    """Conformance tests of :class:`~mipprune.study.storage.StudyStorage`, for pytest.

    Usage::

        class TestMyStorage(StorageContract):
            def open(self, folder: Path) -> StudyStorage:
                return MyStorage(folder / "studies")
    """

    @abc.abstractmethod
    def open(self, folder: Path) -> StudyStorage:
        """The storage of this folder: made by the first call, opened once more by every other."""

    def damage(self, folder: Path, key: str) -> None:
        """Alter the stored result of the finished cell ``key`` behind the storage's back."""
        pytest.skip("the test class doesn't say how to damage a row")

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StudyStorage:
        return self.open(tmp_path)

    @staticmethod
    def cell(number: int, model: str = "net") -> Cell:
        """A cell that is known by its ``number``, whatever network name ``model`` it goes by."""
        return Cell("square", model, {"number": number, "text": "ü", "list": [1, 2.5, None, True]})

    def test_declared_cells_wait_in_order(self, storage: StudyStorage) -> None:
        cells = [self.cell(i) for i in (3, 1, 2)]
        assert storage.declare("a", cells) == 3
        assert [c.inputs["number"] for c in storage.cells("a")] == [3, 1, 2]
        assert storage.declare("a", cells[::-1]) == 0
        assert [c.inputs["number"] for c in storage.cells("a")] == [3, 1, 2]
        assert storage.declare("a", [self.cell(9), *cells[1:]]) == 1
        assert [c.inputs["number"] for c in storage.cells("a")] == [9, 1, 2, 3]
        assert storage.declare("a", [self.cell(9), *cells[1:]]) == 0
        assert storage.states("a") == {c.key: "waiting" for c in [*cells, self.cell(9)]}
        *_, found = storage.cells("a")
        assert (found.key, found.inputs) == (cells[0].key, cells[0].inputs)
        assert (found.state, found.attempts, found.error, found.result) == ("waiting", 0, None, None)
        assert storage.studies() == ["a"]
        assert storage.state(cells[0].key) == "waiting"
        assert storage.state("no such key") is None
        assert storage.states("b") == {}
        assert list(storage.cells("b")) == []

    def test_a_declaration_that_breaks_off_adds_nothing(self, storage: StudyStorage) -> None:
        def broken() -> Iterator[Cell]:
            yield self.cell(1)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            storage.declare("a", broken())
        assert storage.states("a") == {}
        assert storage.declare("a", [self.cell(1)]) == 1

    def test_a_claim_excludes_others(self, storage: StudyStorage, tmp_path: Path) -> None:
        storage.declare("a", [self.cell(1)])
        key, other = self.cell(1).key, self.open(tmp_path)
        mine, theirs = storage.new_owner(), other.new_owner()
        assert mine != theirs
        assert storage.claim(key, mine, LEASE)
        assert not other.claim(key, theirs, LEASE)
        assert not storage.claim(key, mine, LEASE)
        assert other.states("a") == {key: "running"}
        assert not other.finish(key, theirs, {"x": 1}, 0.1)
        assert not other.fail(key, theirs, "no")
        other.release(theirs)  # holds nothing: changes nothing
        assert other.states("a") == {key: "running"}
        storage.release(mine)
        assert other.claim(key, theirs, LEASE)

    def test_a_finished_cell_stays_finished(self, storage: StudyStorage, tmp_path: Path) -> None:
        storage.declare("a", [self.cell(1)])
        key, owner = self.cell(1).key, storage.new_owner()
        assert storage.claim(key, owner, LEASE)
        result = {"x": 0.1, "y": [1, None, "ü"], "z": {"a": True}}
        assert storage.finish(key, owner, result, 1.5)
        assert not storage.finish(key, owner, {"x": 2}, 1.0)
        assert not storage.fail(key, owner, "late")
        assert not storage.claim(key, owner, LEASE)
        storage.release(owner)
        storage.declare("a", [self.cell(1)])
        found = next(self.open(tmp_path).cells("a"))
        assert (found.state, found.result, found.seconds, found.attempts) == ("done", result, 1.5, 1)
        assert storage.repair() == []

    def test_a_failure_keeps_its_error_and_can_be_tried_again(self, storage: StudyStorage) -> None:
        storage.declare("a", [self.cell(1)])
        key, owner = self.cell(1).key, storage.new_owner()
        assert storage.claim(key, owner, LEASE)
        assert storage.fail(key, owner, "line 1\nline 2")
        assert storage.error(key) == "line 1\nline 2"
        assert storage.states("a") == {key: "failed"}
        assert storage.claim(key, owner, LEASE)
        assert storage.finish(key, owner, {}, 0.0)
        found = next(storage.cells("a"))
        assert (found.state, found.attempts, found.error) == ("done", 2, "line 1\nline 2")

    def test_a_claim_that_ran_out_is_lost(self, storage: StudyStorage) -> None:
        storage.declare("a", [self.cell(1)])
        key, first, second = self.cell(1).key, storage.new_owner(), storage.new_owner()
        assert storage.claim(key, first, -1.0)
        assert storage.claim(key, second, LEASE)
        assert not storage.finish(key, first, {"by": "first"}, 0.0)
        storage.renew(first, LEASE)
        storage.release(first)
        assert storage.finish(key, second, {"by": "second"}, 0.0)

    def test_renewing_keeps_a_claim(self, storage: StudyStorage) -> None:
        storage.declare("a", [self.cell(1)])
        key, first = self.cell(1).key, storage.new_owner()
        assert storage.claim(key, first, -1.0)
        storage.renew(first, LEASE)
        assert not storage.claim(key, storage.new_owner(), LEASE)

    def test_cells_are_shared_between_studies_and_names(self, storage: StudyStorage) -> None:
        assert storage.declare("a", [self.cell(1, "first name"), self.cell(1, "second name")]) == 2
        assert storage.declare("b", [self.cell(1), self.cell(2)]) == 2
        owner = storage.new_owner()
        assert storage.claim(self.cell(1).key, owner, LEASE)
        assert storage.finish(self.cell(1).key, owner, {"x": 1}, 0.0)
        assert [c.model for c in storage.cells("a")] == ["first name", "second name"]
        assert [c.result for c in storage.cells("a")] == [{"x": 1}, {"x": 1}]
        assert [c.state for c in storage.cells("b")] == ["done", "waiting"]
        assert [c.inputs["number"] for c in storage.cells("b", state="waiting")] == [2]
        assert len(list(storage.cells("b", kind="square"))) == 2
        assert storage.counts("b") == {("square", "done"): 1, ("square", "waiting"): 1}
        assert storage.counts("c") == {}
        assert list(storage.cells("b", kind="cube")) == []

    def test_payloads(self, storage: StudyStorage) -> None:
        storage.declare("a", [self.cell(1), self.cell(2)])
        owner, data = storage.new_owner(), bytes(range(256)) * 4000
        for number, payload in ((1, data), (2, None)):
            assert storage.claim(self.cell(number).key, owner, LEASE)
            assert storage.finish(self.cell(number).key, owner, {}, 0.0, payload)
        assert storage.payload(self.cell(1).key) == data
        with pytest.raises(KeyError):
            storage.payload(self.cell(2).key)

    def test_damage_is_seen_and_repaired(self, storage: StudyStorage, tmp_path: Path) -> None:
        storage.declare("a", [self.cell(1), self.cell(2)])
        key, owner = self.cell(1).key, storage.new_owner()
        for number in (1, 2):
            assert storage.claim(self.cell(number).key, owner, LEASE)
            assert storage.finish(self.cell(number).key, owner, {"x": 1}, 0.0)
        self.damage(tmp_path, key)
        assert [(c.state, c.result) for c in storage.cells("a")] == [("damaged", None), ("done", {"x": 1})]
        assert list(storage.repair()) == [key]
        storage.declare("a", [self.cell(1), self.cell(2)])
        assert sorted(storage.states("a").values()) == ["done", "waiting"]

    def test_threads_share_it(self, storage: StudyStorage) -> None:
        cells = [self.cell(i) for i in range(40)]
        storage.declare("a", cells)
        won: list[str] = []

        def work() -> None:
            owner = storage.new_owner()
            for cell in cells:
                if storage.claim(cell.key, owner, LEASE):
                    won.append(cell.key)
                    assert storage.finish(cell.key, owner, {"n": cell.inputs["number"]}, 0.0)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == sorted(cell.key for cell in cells)
        assert [c.result for c in storage.cells("a")] == [{"n": i} for i in range(40)]
