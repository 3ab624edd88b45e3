"""``mipprune study``: run a study file, see how far it is, write its tables and its report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from .study import StoredCell, StudyStorage

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Grids of runs: stored, resumable, with tables and a report.")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Networks and grids.")]
Source = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file, or the storage itself.")]
StorageFile = Annotated[Path | None, typer.Option("--storage", help="Instead of the study file's own.")]
Name = Annotated[str | None, typer.Option("--name", help="Which study, where a storage holds several.")]


@app.command()
def run(
    study_file: StudyFile,
    storage: StorageFile = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the cells of the file's `quick` keys.")] = False,
    n_jobs: Annotated[int, typer.Option(help="Cells at a time; -1 for all cores.")] = 1,
    retries: Annotated[int, typer.Option(min=0, help="Further attempts at a cell that failed.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no table; errors still show.")] = False,
) -> None:
    """Compute the cells that aren't done yet.  Leaves with 1 if some failed, with 130 after Ctrl-C."""
    from .study import Study

    with Study.from_file(study_file, storage) as study:
        summary = study.run(
            n_jobs=n_jobs, quick=quick, retries=retries, progress=not quiet and sys.stderr.isatty()
        )
        if not quiet:
            console = Console()
            console.print(str(summary), markup=False, highlight=False, soft_wrap=True)
            if summary.failed:
                _print_errors(console, study.storage, study.name, 3)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def status(
    source: Source,
    storage: StorageFile = None,
    name: Name = None,
    errors: Annotated[bool, typer.Option("--errors", help="Also the whole text of every error.")] = False,
) -> None:
    """Show how many cells are done, wait, run, failed or are damaged, by kind and network."""
    from .study.cell import STATES

    opened, study = _open(source, storage, name)
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for cell in opened.cells(study):
        row = counts.setdefault((cell.kind, cell.model), dict.fromkeys(STATES, 0))
        row[cell.state] += 1
    table = Table(title=study, title_justify="left")
    for column in ("kind", "network", *STATES):
        table.add_column(column, justify="left" if column in ("kind", "network") else "right")
    for (kind, model), row in counts.items():
        table.add_row(escape(kind), escape(model), *(str(row[state] or "") for state in STATES))
    console = Console()
    console.print(table)
    _print_errors(console, opened, study, None if errors else 3)
    opened.close()


@app.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Option(help="FILE.csv or FILE.parquet.")],
    kind: Annotated[str | None, typer.Option(help="Which kind of cells, where the study has several.")] = None,
    storage: StorageFile = None,
    name: Name = None,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Columns that differ from run to run.")] = True,
) -> None:
    """Write the finished cells of one kind as a table."""
    from .study.export import rows_of, write_csv, write_parquet

    writers = {".csv": write_csv, ".parquet": write_parquet}
    if out.suffix not in writers:
        raise DataError(f"{out}: expected a name that ends with .csv or .parquet")
    opened, study = _open(source, storage, name)
    there = list(dict.fromkeys(kind for kind, state in opened.counts(study) if state == "done"))
    chosen = [k for k in there if k not in ("network", "exact")] if kind is None else [kind]
    if len(chosen) != 1 or chosen[0] not in there:
        raise ConfigError(f"{study}: name one kind with --kind; finished cells are there of: {', '.join(there) or '-'}")
    rows = rows_of(opened, study, chosen[0], timing)
    writers[out.suffix](out, rows)
    opened.close()
    Console().print(f"wrote {len(rows)} rows to {out}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and the pictures.")],
    storage: StorageFile = None,
    name: Name = None,
) -> None:
    """Write one self-contained HTML page, and Markdown with pictures; print the tables."""
    from .study.report import write_report

    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: there is a file of that name; name a folder")
    opened, study = _open(source, storage, name)
    console = Console(width=None if sys.stdout.isatty() else 110)
    page, text, *pictures = write_report(opened, study, out, console)
    n_pictures = len(pictures) // 2  # each as SVG and PNG
    drawn = f", {n_pictures} picture{'s' * (n_pictures > 1)} as SVG and PNG" if pictures else ""
    console.print(f"wrote {page} and {text.name}{drawn}", markup=False, highlight=False, soft_wrap=True)
    opened.close()


def _open(source: Path, storage: Path | None, name: str | None) -> tuple[StudyStorage, str]:
    """An existing storage and the name of a study in it."""
    from .study.sqlite import SqliteStorage

    if source.suffix == ".toml":
        from .study.files import storage_of

        own, default = storage_of(source)
        name, file = name or own, storage or default
    else:
        file = storage or source
    if not file.is_file():
        raise StorageError(f"no storage {file}; `mipprune study run` makes it")
    opened = SqliteStorage(file)
    studies = opened.studies()
    if name is None and len(studies) == 1:
        name = studies[0]
    if name not in studies:
        raise StorageError(f"{file}: name one of its studies with --name: {', '.join(studies) or 'it has none'}")
    return opened, name


def _print_errors(console: Console, storage: StudyStorage, study: str, most: int | None) -> None:
    """The failed cells with the last line of their error, or all of it; not those that only need one of them."""
    from .study.averages import names_of_settings
    from .study.cell import NEEDS

    failed = list(storage.cells(study, state="failed"))
    roots = [cell for cell in failed if not (cell.error or "").startswith(NEEDS)]
    names: dict[str, Callable[[StoredCell], str]] = {}
    for cell in roots[:most]:
        if cell.kind not in names:
            names[cell.kind] = names_of_settings(list(storage.cells(study, kind=cell.kind)))
        text = (cell.error or "").strip()
        seed = f", seed={cell.inputs['seed']}" if "seed" in cell.inputs else ""
        what = f"{cell.kind} ({names[cell.kind](cell)}{seed}), attempt {cell.attempts}"
        shown = text if most is None else text.splitlines()[-1] if text else ""
        console.print(f"{what}:\n  {shown}", markup=False, highlight=False, soft_wrap=True)
    if more := len(roots[most:] if most is not None else []):
        console.print(f"... and {more} more; --errors of `mipprune study status` shows all", highlight=False)
    if len(failed) > len(roots):
        number = len(failed) - len(roots)
        console.print(f"{number} cells couldn't run because they need one that failed", highlight=False)
