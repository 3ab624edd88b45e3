"""What the report draws of kinds that have no picture of their own."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mipprune.study.cell import Cell, StoredCell
from mipprune.study.drawn import DRAWN, Drawn
from mipprune.study.kinds import KINDS, Kind, register_kind
from mipprune.study.panels import panels_of
from mipprune.study.report import write_report
from mipprune.study.sqlite import SqliteStorage

#: A report is made from stored results alone, and importing torch would take longer than making it.
WITHOUT_TORCH = """
import pathlib, sys
from mipprune.study.report import write_report
from mipprune.study.sqlite import SqliteStorage
folder = pathlib.Path(sys.argv[1])
write_report(SqliteStorage(folder / "s.db"), "s", folder / "other")
sys.exit("torch" in sys.modules)
"""


def cells(results: list[dict[str, Any]], inputs: list[dict[str, Any]], model: str = "net") -> list[StoredCell]:
    common = {"version": 1, "network": "0"}
    return [StoredCell(f"{model}{i}", "mine", model, {**common, **given}, "done", 1, None, result, 1.0)
            for i, (result, given) in enumerate(zip(results, inputs, strict=True))]


def test_a_row_per_setting_and_a_dot_per_run() -> None:
    # "size" follows from "how", so that no label needs it; the seed is what the runs of a row differ by
    inputs = [{"seed": seed, "size": size, "how": how, "p": None if how == "one" else 0.5, "same": 7}
              for how, size in (("one", 1), ("two", 2)) for seed in (0, 1)]
    found = panels_of("mine", cells([{"a": float(i), "b": i > 1} for i in range(4)], inputs), Drawn(("a", "b", "c")))
    assert found is not None
    panel, = found.panels  # what is true or false, or not there, isn't drawn
    assert panel.title == "a"
    assert [(s.label, s.points) for s in panel.series] == [
        ("one", ((0.0, (0.0, 1.0)),)), ("two", ((0.0, (2.0, 3.0)),)),
    ]


def test_two_networks_and_numbers_are_told_apart_by_name() -> None:
    inputs = [{"keep": keep, "seed": 0} for keep in (0.5, 0.25)]
    both = cells([{"a": 1}, {"a": 2}], inputs) + cells([{"a": 3}, {"a": 4}], inputs, model="other")
    found = panels_of("mine", both, Drawn(("a",)))
    assert found is not None
    assert [s.label for s in found.panels[0].series] == [
        "net, keep=0.5", "net, keep=0.25", "other, keep=0.5", "other, keep=0.25",
    ]


def test_lines_over_a_setting_with_the_results_together() -> None:
    inputs = [{"keep": keep, "what": what, "seed": seed}
              for what in ("x", "y") for keep in (0.9, 0.5) for seed in (0, 1)]
    results = [{"loose_a": i, "loose_b": 10 * i, "other": 0} for i in range(8)]
    drawn = Drawn(("loose_*",), over="keep", together=True, text="ratio", log=True)
    found = panels_of("mine", cells(results, inputs), drawn)
    assert found is not None
    assert (found.over, found.values, found.log) == ("keep", "ratio", True)
    assert [panel.title for panel in found.panels] == ["x", "y"]
    assert [(s.label, s.points) for s in found.panels[1].series] == [
        ("a", ((0.5, (6.0, 7.0)), (0.9, (4.0, 5.0)))), ("b", ((0.5, (60.0, 70.0)), (0.9, (40.0, 50.0)))),
    ]


def test_lines_of_two_networks_have_panels_of_their_own() -> None:
    inputs = [{"n": n, "how": how} for how in ("x", "y") for n in (1, 2)]
    results = [{"a": i, "b": 10 * i} for i in range(4)]
    both = cells(results, inputs) + cells(results, inputs, model="other")
    found = panels_of("mine", both, Drawn(("a", "b"), over="n"))
    assert found is not None
    assert [panel.title for panel in found.panels] == ["net: a", "net: b", "other: a", "other: b"]
    assert [(s.label, s.points) for s in found.panels[3].series] == [
        ("x", ((1.0, (0.0,)), (2.0, (10.0,)))), ("y", ((1.0, (20.0,)), (2.0, (30.0,)))),
    ]


@pytest.mark.parametrize(("results", "inputs"), [
    ([{"a": 1}, {}], [{"keep": 0.5}, {"keep": 0.6}]), ([{"a": 1}, {"a": None}], [{"keep": 0.5}, {"keep": 0.6}]),
    ([{"a": 1}, {"a": 1}], [{"keep": 0.5}, {}]),
])
def test_cells_of_an_older_form_make_no_picture(results: list[dict[str, Any]], inputs: list[dict[str, Any]]) -> None:
    assert panels_of("mine", cells(results, inputs), Drawn(("a",), over="keep")) is None


def test_figures_show_every_run_and_the_means() -> None:
    pytest.importorskip("matplotlib")
    from mipprune.study.figures import panels_figure

    inputs = [{"keep": keep, "seed": seed} for keep in (0.5, 0.9) for seed in (0, 1)]
    results = [{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 5.0}, {"a": 4.0, "b": 6.0}, {"a": 8.0, "b": 6.0}]
    dots = panels_of("mine", cells(results, inputs), Drawn(("a", "b")))
    assert dots is not None
    axes = panels_figure(dots).axes
    assert [list(line.get_xdata()) for line in axes[0].lines] == [[1.0, 2.0], [1.5], [4.0, 8.0], [6.0]]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["keep=0.5", "keep=0.9"]
    assert [axis.get_xlabel() for axis in axes] == ["a", "b"]
    lines = panels_of("mine", cells(results, inputs), Drawn(("a", "b"), over="keep", together=True, text="nats"))
    assert lines is not None
    figure = panels_figure(lines)
    axis, = figure.axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines] == [
        ([0.5, 0.9], [1.5, 6.0]), ([0.5, 0.9], [5.0, 6.0]),
    ]
    assert axis.get_ylabel() == "nats"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_the_report_draws_what_a_kind_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    for registry in (KINDS, DRAWN):
        monkeypatch.setitem(registry, "mine", None)  # so that it's forgotten afterwards
    register_kind(Kind("mine", None, "nowhere:f", lambda inputs: (), drawn=Drawn(("a",))))
    storage = SqliteStorage(tmp_path / "s.db")
    made = [Cell(kind, "net", {"seed": seed, "network": "0", "version": 1}) for kind in ("mine", "tabled")
            for seed in (0, 1)]
    storage.declare("s", made)
    owner = storage.new_owner()
    for i, cell in enumerate(made):
        assert storage.claim(cell.key, owner, 60)
        assert storage.finish(cell.key, owner, {"a": float(i)}, 0.1)
    assert subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]).returncode == 0
    files = [file.name for file in write_report(storage, "s", tmp_path / "out")]
    assert files == ["report.html", "report.md", "mine.svg", "mine.png"]
    assert 'alt="mine cells"' in (tmp_path / "out/report.html").read_text()
    storage.close()


def test_many_settings_are_summed_up_in_one_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    storage = SqliteStorage(tmp_path / "s.db")
    values = ["cross_entropy", "accuracy"]
    common = {"layer": "2", "index": "shapley", "p": None, "samples": None, "network": "0", "version": 1, "seed": 0,
              "method": "permutation", "n_evals": 100}
    made = [Cell("estimate", "net", {**common, "value": value, "keep": keep / 8})
            for value in values for keep in (1, 2, 4, 6)]
    storage.declare("s", made)
    owner = storage.new_owner()
    for i, cell in enumerate(made):
        assert storage.claim(cell.key, owner, 60)
        result = {"relative_error": 0.1, "spearman": 1.0, "coverage": 1.0, "true_loss": 0.5,
                  "true_loss_of_exact": 0.25 + i, "true_loss_of_best": 0.125 + i}
        assert storage.finish(cell.key, owner, result, 0.1)
    console = Console(record=True, width=120, file=io.StringIO())
    write_report(storage, "s", tmp_path / "out", console)
    text = (tmp_path / "out/report.md").read_text()
    assert "| net, layer 2: shapley, cross_entropy, keeping 50% | 2.2500 | 2.1250 | nats |" in text
    assert "| net, layer 2: shapley, accuracy, keeping 75% | 7.2500 | 7.1250 | share of the samples |" in text
    assert text.count("| evaluations |") == 8
    printed = console.export_text()
    assert printed.count("evaluations") == 5  # six tables with the one that sums up
    assert "... and 3 more tables of this kind in report.html" in printed
    svg = [(tmp_path / f"out/convergence-{i}.svg").read_text() for i in (1, 8)]
    assert ["nats" in picture for picture in svg] == [True, False]
    storage.close()
