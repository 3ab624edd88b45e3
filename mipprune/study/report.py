"""A study's report: one HTML page with everything inside, Markdown with pictures beside it, tables in the terminal."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..records import write_bytes_atomic
from .cell import STATES
from .figures import (
    accuracy_figure,
    convergence_figure,
    interaction_figure,
    kept_figure,
    panels_figure,
    picture,
    traces_figure,
)
from .storage import StudyStorage
from .summary import Convergence, Overview, PrunePoint, overview

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

__all__ = ["write_report"]

#: Tables of one section that a terminal shows; the page has all.
MOST_TABLES = 6
#: Pictures of one kind; what is beyond is in the tables only, and the report says so.
MOST_FIGURES = 24

SPARE = ("10 to 90 %", "lowest to highest", "95 % interval", "in 95 % interval", "largest gap")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .2rem .45rem; text-align: right; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #666; } th:first-child, td:first-child, td.text, th.text { text-align: left; }
img { max-width: 100%; height: auto; display: block; margin: .6rem 0 1.4rem; } .wide { overflow-x: auto; }
@media print { .wide { overflow: visible; } table { font-size: .6rem; } }
@media print { body { margin: 0; max-width: none; } h2, img { break-inside: avoid; } }
"""


class _Table(NamedTuple):
    """Texts; the first ``n_words`` columns are words, the others numbers.

    A terminal leaves the ``spare`` columns out, or shows the ``brief`` head and rows if there are any.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_words: int
    spare: Sequence[str] = ()
    brief: Sequence[Sequence[str]] = ()


class _Picture(NamedTuple):
    name: str
    text: str
    figure: Figure


class _Section(NamedTuple):
    title: str
    lines: Sequence[str]
    tables: Sequence[_Table]
    pictures: Sequence[_Picture]


def write_report(storage: StudyStorage, study: str, folder: Path, console: Console | None = None) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the pictures (SVG and PNG) to ``folder``; print the tables.

    Returns:
        The files, the page first.

    Raises:
        MissingDependencyError: matplotlib isn't installed.
        StorageError, OSError: the storage can't be read, or the folder not written.
    """
    found = overview(storage, study)
    sections = [_progress(found)]
    if found.pruning:
        sections.append(_pruning(found.pruning))
    if found.convergence:
        sections.append(_convergence(found.convergence))
    if found.graphs:
        lines = ["Solid: the two units stand in for each other, so losing both costs more than the sum. "
                 "Dashed: they need each other. The thicker, the stronger; the strongest two pairs per unit are drawn."]
        pictures = [_Picture(f"interactions-{i + 1}", one[0], interaction_figure(*one))
                    for i, one in enumerate(found.graphs[:MOST_FIGURES])]
        sections.append(_Section("Interactions", [*lines, *_left_out(len(found.graphs))], [], pictures))
    if found.traces:
        lines = ["Objective of the best mask so far, and the proved bound below it (dotted), over wall-clock time; "
                 "where they meet, the mask is optimal for the surrogate. A marker is the end of a search."]
        pictures = [_Picture(f"solver-{i + 1}", f"{one.title}: incumbent and bound over time", traces_figure(one))
                    for i, one in enumerate(found.traces[:MOST_FIGURES])]
        sections.append(_Section("Solver gap over time", [*lines, *_left_out(len(found.traces))], [], pictures))
    if found.others:
        tables = [_Table(one.kind, one.head, one.rows, one.n_words, brief=one.brief) for one in found.others]
        lines = ["Means over the seeds, with the lowest and highest where they differ. In pictures, a dot is one run "
                 "and a bar the mean; a line goes through means, and its band from the lowest to the highest."]
        pictures = [_Picture(one.kind, f"{one.kind} cells", panels_figure(one)) for one in found.panels]
        sections.append(_Section("Other cells", lines, tables, pictures))
    if found.errors:
        sections.append(_errors(found))
    drawn = {p.name: (picture(p.figure, "svg"), picture(p.figure, "png")) for s in sections for p in s.pictures}
    files = [folder / "report.html", folder / "report.md"]
    write_bytes_atomic(files[0], _page(study, sections, drawn).encode())
    for name, (svg, png) in drawn.items():
        for suffix, data in (("svg", svg), ("png", png)):
            files.append(folder / f"{name}.{suffix}")
            write_bytes_atomic(files[-1], data)
    write_bytes_atomic(files[1], _markdown(study, sections).encode())  # last: what it points to is there
    if console is not None:
        for section in sections:
            for table in section.tables[:MOST_TABLES]:
                _print(console, table)
            if more := len(section.tables[MOST_TABLES:]):
                console.print(f"... and {more} more tables of this kind in {files[0].name}", highlight=False)
    return files


def _progress(found: Overview) -> _Section:
    states = [state for state in STATES if any(state in row for row in found.counts.values())]
    rows = [[kind, *(str(row.get(state, "")) for state in states)] for kind, row in found.counts.items()]
    done = sum(row.get("done", 0) for row in found.counts.values())
    line = f"{done:,} finished cells, {found.seconds:,.0f} s of computing."
    return _Section("Cells", [line], [_Table("Cells by kind and state", ["kind", *states], rows, 1)], [])


def _pruning(points: Sequence[PrunePoint]) -> _Section:
    rows = [
        [p.model, p.task, p.options or "-", str(p.n_seeds), f"{p.macs:.1%}", f"{p.accuracy:.2%}",
         f"{p.interval[0]:.2%} to {p.interval[1]:.2%}", f"{p.extremes[0]:.2%} to {p.extremes[1]:.2%}",
         f"{p.magnitude:.2%}", f"{p.dense:.2%}", "-" if p.gap is None else f"{p.gap:.2%}",
         f"{p.proved}/{p.n_seeds}", f"{p.seconds:.1f}"] for p in points
    ]
    head = ["network", "asked for", "options", "runs", "MACs", "accuracy", "95 % interval", "lowest to highest",
            "by magnitude", "dense", "largest gap", "proved", "seconds"]
    lines = ["Accuracy on held-out data. The interval is Wilson's, of the mean accuracy on that many held-out samples; "
             "lowest and highest are over the seeds. Gap and proof are those of the surrogate problem."]
    pictures = []
    models = list(dict.fromkeys(p.model for p in points))
    for model in models[:MOST_FIGURES]:
        own = [p for p in points if p.model == model]
        text = f"{model}: accuracy over multiply-adds"
        pictures.append(_Picture(f"accuracy-{model}", text, accuracy_figure(model, own)))
        if all(p.kept.keys() == own[0].kept.keys() for p in own) and len(own) <= 60:
            pictures.append(_Picture(f"kept-{model}", f"{model}: units kept per layer", kept_figure(model, own)))
    return _Section("Pruning", [*lines, *_left_out(len(models))], [_Table("Pruning", head, rows, 3, SPARE)], pictures)


def _convergence(found: Sequence[Convergence]) -> _Section:
    head = ["method", "evaluations", "seeds", "relative error", "10 to 90 %", "Spearman", "in 95 % interval",
            "true loss", "10 to 90 %"]
    tables, pictures = [], []
    if len(found) > 1:
        rows = [[one.title, f"{one.exact_loss:.4f}", f"{one.best_loss:.4f}", one.unit] for one in found]
        tables.append(_Table("True loss of masks", ["", "by exact importances", "best mask", "unit"], rows, 1))
    for number, one in enumerate(found):
        rows = [
            [p.method, f"{p.n_evals:,}", str(p.n_seeds), f"{p.error[1]:.4f}", f"{p.error[0]:.4f} to {p.error[2]:.4f}",
             f"{p.spearman:.3f}", "-" if p.coverage is None else f"{p.coverage:.1%}", f"{p.true_loss[1]:.4f}",
             f"{p.true_loss[0]:.4f} to {p.true_loss[2]:.4f}"] for p in one.points
        ]
        rows += [["exact", "", "", "0", "", "1", "", f"{one.exact_loss:.4f}", ""],
                 ["best mask", "", "", "", "", "", "", f"{one.best_loss:.4f}", ""]]
        tables.append(_Table(one.title, head, rows, 1, SPARE))
        if number < MOST_FIGURES:
            pictures.append(_Picture(f"convergence-{number + 1}", one.title, convergence_figure(one)))
    lines = ["Medians over the seeds. The true loss is the loss increase of the best mask under the importances, "
             "looked up among all coalitions, beside those of the exact importances and of the best mask of that size."]
    return _Section("Exact and sampled", [*lines, *_left_out(len(found))], tables, pictures)


def _left_out(number: int) -> list[str]:
    return [f"Pictures of the first {MOST_FIGURES} of {number}."] if number > MOST_FIGURES else []


def _errors(found: Overview) -> _Section:
    table = _Table("Failed cells", ["kind", "network", "error"], [list(error) for error in found.errors[:50]], 3)
    number = sum(row.get("failed", 0) for row in found.counts.values())
    others = f", {number - len(found.errors)} of them because they need one of these" * (number > len(found.errors))
    lines = [f"{number} cells failed{others}; `mipprune study status STUDY --errors` shows the whole texts."]
    return _Section("Failures", lines, [table], [])


def _page(study: str, sections: Sequence[_Section], pictures: dict[str, tuple[bytes, bytes]]) -> str:
    body = [f"<h1>{html.escape(study)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [f"<p>{html.escape(line)}</p>" for line in section.lines]
        for shown in section.pictures:
            data = base64.b64encode(pictures[shown.name][0]).decode()
            body.append(f'<img alt="{html.escape(shown.text)}" src="data:image/svg+xml;base64,{data}">')
        for table in section.tables:
            rows = "\n".join(_row(table, "td", row) for row in table.rows)
            body.append(f"<h3>{html.escape(table.title)}</h3>\n<div class='wide'><table>\n"
                        f"<thead>{_row(table, 'th', table.head)}</thead>\n<tbody>{rows}</tbody></table></div>")
    joined = "\n".join(body)
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(study)}</title>\n"
            f"<style>{STYLE}</style>\n</head>\n<body>\n{joined}\n</body>\n</html>\n")


def _row(table: _Table, tag: str, cells: Sequence[str]) -> str:
    texts = (' class="text"' if i < table.n_words else "" for i in range(len(cells)))
    return "<tr>" + "".join(f"<{tag}{t}>{html.escape(c)}</{tag}>" for t, c in zip(texts, cells)) + "</tr>"


def _markdown(study: str, sections: Sequence[_Section]) -> str:
    parts = [f"# {study}\n"]
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts += [f"{line}\n" for line in section.lines]
        parts += [f"![{p.text}]({p.name.replace(' ', '%20')}.svg)\n" for p in section.pictures]
        for table in section.tables:
            rule = [":--" if i < table.n_words else "--:" for i in range(len(table.head))]
            cells = [[c.replace("|", "\\|") for c in row] for row in (table.head, rule, *table.rows)]
            parts.append(f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n")
    return "\n".join(parts)


def _print(console: Console, table: _Table) -> None:
    from rich.markup import escape
    from rich.table import Table

    head, *rows = table.brief or [table.head, *table.rows]
    chosen = [i for i, column in enumerate(head) if table.brief or column not in table.spare]
    n_words = 1 if table.brief else table.n_words
    shown = Table(title=escape(table.title), title_justify="left")
    for i in chosen:
        text = head[i].replace("_", "\n" if len(head[i]) > 9 else " ")  # narrow columns break between words only
        shown.add_column(text, justify="left" if i < n_words else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(row[i]) for i in chosen))
    console.print(shown)
