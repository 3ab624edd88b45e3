"""The ``mipprune`` command: a thin skin over the package, so that a run can be written down in a file and repeated."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

import mipprune as mp

from . import study_cli
from .errors import MipPruneError, PlanError
from .records import write_bytes_atomic, write_json_atomic

if TYPE_CHECKING:
    from .config import PruneSection

__all__ = ["app"]

#: What a run leaves behind, each after the run's name.
OUTPUTS = (".safetensors", ".plan.json", ".report.json", ".report.txt")


class _Commands(TyperGroup):
    """One place where errors become one line: what mipprune or the system refuses; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (MipPruneError, OSError) as error:
            if getattr(error, "errno", None) == errno.EPIPE:  # the reader of our output left: not our error
                raise
            line = f"[red]error: {escape(_text(error))}[/red]"
            Console(stderr=True).print(line, soft_wrap=True, highlight=False)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:  # older typer versions would leave with 1
            raise typer.Exit(130) from error


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Prune PyTorch networks by optimisation, and say what is proved about the answer.",
)

app.add_typer(study_cli.app, name="study")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to prune, on which data, how far.")]
VerifiedFile = Annotated[Path, typer.Argument(metavar="FILE", help="PRUNED.safetensors or a certificate (.json).")]
PlanFile = Annotated[Path, typer.Argument(metavar="FILE", help="A plan (.json) or a pruned network (.safetensors).")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mipprune {mp.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    quick: Annotated[bool, typer.Option("--quick", help="Fewer training epochs.")] = False,
) -> None:
    """Train two small networks on scikit-learn's digits and prune each of them twice."""
    from .demo import run_demo

    run_demo(out, quick)


@app.command()
def run(
    config_file: ConfigFile,
    out: Annotated[Path | None, typer.Option(help="Folder for the results, instead of the configuration's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar and no table; errors still show.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite results that are there.")] = False,
) -> None:
    """Prune the network that CONFIG.toml names; write the network, the plan and the report."""
    from .config import load_config
    from .sources import load_run_data, load_run_model

    config = load_config(config_file)
    folder, name = out or config.output_dir, config.output_name
    _refuse_outputs(folder, name, force)
    model, data = load_run_model(config), load_run_data(config)
    progress = not quiet and sys.stderr.isatty()  # a bar in a log file is noise
    result = mp.prune(model, data.calibration, holdout=data.holdout, progress=progress, **_keywords(config.prune))
    files = _write_outputs(folder, name, result, force)
    if not quiet:
        console = Console()
        console.print(str(result), soft_wrap=True, markup=False, highlight=False)
        for file in files:
            console.print(f"wrote {file}", soft_wrap=True, markup=False, highlight=False)


@app.command()
def inspect(
    file: PlanFile,
    cuts: Annotated[bool, typer.Option("--cuts", help="Also what is cut from every tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Show which units a plan keeps."""
    from .surgery import load_plan

    plan = load_plan(file)
    if as_json:
        print(json.dumps(_plan_data(plan, cuts), indent=1))
        return
    console = Console()
    console.print(_groups_table(plan))
    if cuts:
        console.print(_cuts_table(plan))
    console.print(f"architecture {plan.architecture}", soft_wrap=True, highlight=False)


@app.command()
def verify(
    file: VerifiedFile,
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG.toml", help="The run's configuration, for a network.")
    ] = None,
    problem: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For a certificate: the problem that it has to be about.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="For a certificate: exact arithmetic, slower.")] = False,
) -> None:
    """Check a pruned network against its dense original, or a certificate's bound; leave with 0 if all holds."""
    if config_file is None and file.suffix == ".safetensors":
        raise typer.BadParameter("a pruned network is checked against its run: give --config CONFIG.toml")
    if config_file is None:
        _verify_certificate(file, problem, exact)
    elif exact or problem is not None:
        raise typer.BadParameter("--exact and --problem are for certificates, --config is for networks")
    else:
        _verify_network(file, config_file)


def _verify_certificate(file: Path, problem_file: Path | None, exact: bool) -> None:
    from .solver import check_certificate, load_certificate, load_problem

    problem, certificate = load_certificate(file)
    if problem_file is not None:
        problem = load_problem(problem_file)
    report = check_certificate(problem, certificate, exact=exact)
    how = "exact rational arithmetic" if exact else "float64 with error bounds"
    trust = "" if report.proves else "; the tangents of this surrogate class were taken as given"
    console = Console()
    for line in (
        f"the incumbent keeps {int(certificate.kept.sum())} of {problem.n_units} units, is feasible and costs "
        f"{report.objective:.10g} in {problem.objective}",
        f"no feasible selection costs less than {report.bound:.10g} ({how}, {report.n_leaves} leaves, "
        f"{report.n_points} tangent points{trust})",
        f"problem {problem.digest}",
    ):
        console.print(f"[green]ok[/green] {line}", highlight=False, soft_wrap=True)


def _verify_network(pruned: Path, config_file: Path) -> None:
    """Plan, surgery and stored weights of a pruned network."""
    from .config import load_config
    from .pruning.measure import measure
    from .pruning.pipeline import prepare  # the very split that ``prune`` makes
    from .sources import load_run_data, load_run_model
    from .surgery import load_plan

    config = load_config(config_file)
    plan = load_plan(pruned)
    if pruned.suffix == ".json":
        raise PlanError(f"{pruned}: a plan alone, without weights to verify; name the .safetensors file")
    dense = load_run_model(config)
    fresh = plan.apply(dense)
    stored = mp.load(pruned, dense)
    data = load_run_data(config)
    graph, calibration, holdout = prepare(
        dense, data.calibration, data.holdout, None, config.prune.seed, config.prune.ignore
    )
    kept = _mask(plan, graph)
    checked = mp.verify(graph, kept, fresh, calibration)
    console = Console()
    for line in (
        f"the plan fits: {plan.n_kept} of {plan.n_units} units kept",
        f"masked and cut network agree to {checked.max_abs_diff:.2g} on {checked.n_samples} samples "
        f"(outputs up to {checked.scale:.3g})",
        "the stored weights fit the plan",
    ):
        console.print(f"[green]ok[/green] {line}", highlight=False, soft_wrap=True)
    table = Table(title=f"held-out data ({len(holdout)} samples)", title_justify="left")
    for column in ("", "accuracy", "loss"):
        table.add_column(column, justify="right" if column else "left")
    for name, model in (("dense", dense), ("stored", stored)):
        quality = measure(model, holdout, "held-out data")
        table.add_row(name, f"{quality.accuracy:.2%}", f"{quality.loss:.4f}")
    console.print(table)


def _keywords(section: PruneSection) -> dict[str, Any]:
    """The section as keywords of :func:`mipprune.prune`."""
    arguments = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    if section.tolerance is not None:
        arguments["tolerance"] = mp.LossIncrease(section.tolerance)
    if section.budget is not None:
        kinds = {"macs": mp.Macs, "params": mp.Params, "units": mp.Units, "latency": mp.Latency}
        ratios = dataclasses.asdict(section.budget)
        arguments["budget"] = [kinds[name](ratio) for name, ratio in ratios.items() if ratio is not None] or None
    return arguments


def _refuse_outputs(folder: Path, name: str, force: bool) -> None:
    """Fail before the work rather than after it."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
    existing = [folder / (name + suffix) for suffix in OUTPUTS if (folder / (name + suffix)).exists()]
    if existing and not force:
        raise FileExistsError(f"{existing[0]} exists; --force overwrites it, --out or [output] name writes elsewhere")


def _write_outputs(folder: Path, name: str, result: mp.PruneResult, force: bool) -> list[Path]:
    """All files or none: they are written aside and then moved."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".mipprune-") as aside:
        drafts = [Path(aside) / (name + suffix) for suffix in OUTPUTS]
        network, plan, report, table = drafts
        result.save(network)
        result.plan.save(plan)
        write_json_atomic(report, {"summary": result.report.summary(), "report": result.report.to_dict()})
        write_bytes_atomic(table, f"{result}\n".encode())
        _refuse_outputs(folder, name, force)  # another run may have finished meanwhile
        return [draft.replace(folder / draft.name) for draft in drafts]


def _mask(plan: mp.PrunePlan, graph: mp.UnitGraph) -> np.ndarray:
    """The plan as a mask over the traced network's units, once it is sure that both mean the same."""
    kept = np.zeros(graph.n_units, dtype=bool)
    found = {group.group: group for group in plan.groups}
    for group in graph.groups:
        if group.name not in found or found[group.name].size != group.size:
            raise PlanError(f"the plan has no group {group.name!r} of {group.size} units, as this network does")
        kept[group.offset + found[group.name].kept] = True
    if mp.PrunePlan.from_mask(graph, kept) != plan:
        raise PlanError("the plan's cuts aren't those that its kept units imply in this network")
    return kept


def _removed(group: Any) -> list[int]:
    return np.setdiff1d(np.arange(group.size), group.kept).tolist()


def _plan_data(plan: mp.PrunePlan, cuts: bool) -> dict[str, Any]:
    data: dict[str, Any] = {
        "architecture": plan.architecture, "units_kept": plan.n_kept, "units_total": plan.n_units,
        "groups": [
            {"group": g.group, "producers": list(g.producers), "kept": len(g.kept), "total": g.size,
             "removed": _removed(g)} for g in plan.groups
        ],
    }
    if cuts:
        data["cuts"] = [
            {"tensor": c.tensor, "dim": c.dim, "kept": len(c.kept), "total": c.size, "removed": _removed(c)}
            for c in plan.cuts
        ]
    return data


def _groups_table(plan: mp.PrunePlan) -> Table:
    from .surgery.plan import ranges

    table = Table(title=f"{plan.n_kept} of {plan.n_units} units kept", title_justify="left")
    for column in ("group", "kept", "of", "removed"):
        table.add_column(column, justify="right" if column in ("kept", "of") else "left", overflow="fold")
    for g in plan.groups:
        table.add_row(escape(", ".join(g.producers)), str(len(g.kept)), str(g.size), ranges(_removed(g)))
    return table


def _cuts_table(plan: mp.PrunePlan) -> Table:
    table = Table(title=f"{len(plan.cuts)} cuts", title_justify="left")
    for column in ("tensor", "dimension", "kept", "of"):
        table.add_column(column, justify="left" if column == "tensor" else "right", overflow="fold")
    for c in plan.cuts:
        table.add_row(escape(c.tensor), str(c.dim), str(len(c.kept)), str(c.size))
    return table
