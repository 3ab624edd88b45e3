"""Pictures of a report, readable in print and by colour-blind people.  Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError
from .panels import Panel, Panels
from .plots import STYLES
from .summary import Convergence, ConvergencePoint, PrunePoint
from .traces import SolverTraces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["accuracy_figure", "convergence_figure", "interaction_figure", "kept_figure", "panels_figure",
           "picture", "traces_figure"]


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("reports need matplotlib: pip install 'mipprune[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture(figure: Figure, kind: str) -> bytes:
    """The figure as ``"svg"`` or ``"png"``; the same bytes every time."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mipprune"}):
        figure.savefig(stream, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
    return stream.getvalue()


def _styled(names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    return [(name, *STYLES[i % len(STYLES)]) for i, name in enumerate(names)]


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="0.92")
    axis.set_axisbelow(True)


def convergence_figure(found: Convergence) -> Figure:
    """Relative error, and loss increase of the masks, over the budget: medians, and bands of 10 to 90 %."""
    figure = _figure(9.0, 3.6)
    left, right = figure.subplots(1, 2)
    for name, colour, line, marker in _styled(list(dict.fromkeys(point.method for point in found.points))):
        points: list[ConvergencePoint] = [point for point in found.points if point.method == name]
        budgets = [point.n_evals for point in points]
        style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "label": name}
        for axis, values in ((left, [p.error for p in points]), (right, [p.true_loss for p in points])):
            axis.plot(budgets, [middle for _, middle, _ in values], **style)
            axis.fill_between(budgets, [v[0] for v in values], [v[2] for v in values], color=colour, alpha=0.12, lw=0)
    for loss, text, line in ((found.exact_loss, "exact importances", "-"), (found.best_loss, "best mask", ":")):
        right.axhline(loss, color="0.3", linewidth=1, linestyle=line)
        right.annotate(text, (0.99, loss), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", ha="right",
                       color="0.3")
    left.set(yscale="log", ylabel="relative error")
    right.set(ylabel=f"true loss increase ({found.unit})")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="coalition evaluations")
        budgets = sorted({point.n_evals for point in found.points})
        if len(budgets) <= 8:  # else matplotlib's own powers of ten
            axis.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
        axis.set_xticks([], minor=True)
        _plain(axis)
    left.legend(fontsize=8, frameon=False)
    figure.suptitle(found.title, fontsize=10)
    return figure


def accuracy_figure(model: str, points: Sequence[PrunePoint]) -> Figure:
    """Held-out accuracy over the share of multiply-adds, with 95 % intervals; magnitude and the dense network too."""
    figure = _figure(6.0, 4.0 + 0.2 * len({point.options for point in points}))
    axis = figure.subplots()
    styled = _styled(list(dict.fromkeys(point.options for point in points)))
    for name, colour, line, marker in styled:
        own = sorted((p for p in points if p.options == name), key=lambda p: p.macs)
        errors = [[p.accuracy - p.interval[0] for p in own], [p.interval[1] - p.accuracy for p in own]]
        axis.errorbar([p.macs for p in own], [p.accuracy for p in own], yerr=errors, color=colour, linestyle=line,
                      marker=marker, markersize=5, capsize=3, linewidth=1.4, label=name or "mipprune")
    other = sorted({(p.macs, p.magnitude) for p in points})
    if len({macs for macs, _ in other}) == len(other):
        axis.plot(*zip(*other), color="0.45", linestyle=":", marker="x", label="same budget by magnitude")
    else:  # magnitude's masks are repaired like the others, so every way to repair has a line of its own
        for name, colour, _, _ in styled:
            lost = sorted({(p.macs, p.magnitude) for p in points if p.options == name})
            text = f"by magnitude, {name or 'mipprune'}"
            axis.plot(*zip(*lost), color=colour, linestyle=":", marker="x", linewidth=1, label=text)
    axis.axhline(points[0].dense, color="0.3", linewidth=1, label="dense")
    axis.set(xlabel="multiply-adds, share of the dense network", ylabel="accuracy on held-out data", title=model)
    axis.xaxis.set_major_formatter("{x:.0%}")
    axis.yaxis.set_major_formatter("{x:.0%}")
    _plain(axis)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center")  # inside it would cover a line sooner or later
    return figure


def kept_figure(model: str, points: Sequence[PrunePoint]) -> Figure:
    """Share of the units kept, per layer (columns) and run (rows), darker for more, the counts written in."""
    groups = list(points[0].kept)
    names = [", ".join(filter(None, (point.task, point.options))) for point in points]
    # eight-point letters are about 0.065 inches wide; the title must fit too
    figure = _figure(max(4.0, 0.6 + 0.065 * max(map(len, names)) + 0.9 * len(groups)), 1.0 + 0.32 * len(points))
    axis = figure.subplots()
    shares = [[point.kept[g][0] / point.kept[g][1] for g in groups] for point in points]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, point in enumerate(points):
        for x, group in enumerate(groups):
            kept, size = point.kept[group]
            axis.text(x, y, f"{kept:g}/{size}", ha="center", va="center", fontsize=8,
                      color="white" if kept / size > 0.6 else "black")
    axis.set_xticks(range(len(groups)), groups, fontsize=8)
    axis.set_yticks(range(len(points)), names, fontsize=8)
    figure.suptitle(f"{model}: units kept per layer", fontsize=10)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return figure


def interaction_figure(title: str, n_units: int, pairs: Sequence[float]) -> Figure:
    """The strongest two pairs per unit as a graph on a circle: blue and solid below 0, orange and dashed above."""
    import networkx as nx
    import numpy as np

    figure = _figure(5.6, 5.6)
    axis = figure.subplots()
    left, right = np.triu_indices(n_units, 1)
    strongest = np.argsort(-np.abs(pairs), kind="stable")[: 2 * n_units]
    largest = max(float(np.abs(pairs).max(initial=0.0)), 1e-300)
    graph = nx.Graph()
    graph.add_nodes_from(range(n_units))
    places = nx.circular_layout(graph)
    for sign, colour, line in ((-1, "#0072B2", "-"), (1, "#D55E00", "--")):
        chosen = [k for k in strongest if pairs[k] * sign > 0]
        edges = [(int(left[k]), int(right[k])) for k in chosen]
        widths = [0.4 + 4.0 * abs(pairs[k]) / largest for k in chosen]
        nx.draw_networkx_edges(graph, places, edgelist=edges, width=widths, edge_color=colour, style=line, ax=axis)
    nx.draw_networkx_nodes(graph, places, node_color="white", edgecolors="0.3", node_size=260, ax=axis)
    nx.draw_networkx_labels(graph, places, font_size=8, ax=axis)
    axis.set_axis_off()
    figure.suptitle(f"{title} (strongest {largest:.3g})", fontsize=10)
    return figure


def traces_figure(found: SolverTraces) -> Figure:
    """Incumbents (solid) and bounds (dotted) over seconds as steps, a colour and marker per solver."""
    figure = _figure(6.4, 3.8)
    axis = figure.subplots()
    for name, colour, _, marker in _styled(list(dict.fromkeys(solver for solver, _ in found.searches))):
        label: str | None = name
        for solver, events in found.searches:
            if solver != name:
                continue
            seconds = [max(event[0], 1e-4) for event in events]
            for which, line in ((1, "-"), (2, ":")):
                axis.step(seconds, [event[which] for event in events], where="post", color=colour, linestyle=line,
                          label=label, linewidth=1.4)
                axis.plot(seconds[-1:], [events[-1][which]], color=colour, marker=marker, markersize=5)
                label = None  # one entry per solver, however many searches
    axis.set(xscale="log", xlabel="seconds", ylabel=found.objective)
    _plain(axis)
    axis.legend(fontsize=8, frameon=False, title="incumbent, and bound dotted", title_fontsize=8)
    figure.suptitle(found.title, fontsize=10)
    return figure


def panels_figure(found: Panels) -> Figure:
    """Rows of dots (a grey one per run, a black one for their mean) or lines (means, bands from lowest to highest)."""
    return _dots(found) if found.over is None else _lines(found)


def _grid(found: Panels, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Two panels a row of that size in inches; panels of one quantity share its axis."""
    columns = min(2, len(found.panels))
    rows = -(-len(found.panels) // columns)
    figure = _figure(width * columns, height * rows)
    one_quantity, rows_of_dots = bool(found.values), found.over is None
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=one_quantity or not rows_of_dots,
                                sharey=one_quantity or rows_of_dots).ravel())
    for axis in axes[len(found.panels):]:
        axis.set_axis_off()
    return figure, axes[:len(found.panels)]


def _dots(found: Panels) -> Figure:
    labels = list(dict.fromkeys(series.label for panel in found.panels for series in panel.series))
    words = 0.065 * max(map(len, labels)) / min(2, len(found.panels))  # inches, left of the first column only
    figure, axes = _grid(found, 2.9 + words, 0.9 + 0.22 * len(labels))
    for axis, panel in zip(axes, found.panels, strict=True):
        for series in panel.series:
            (_, values), = series.points
            row = labels.index(series.label)
            axis.plot(values, [row] * len(values), color="#56B4E9", linestyle="none", marker="o", markersize=4)
            axis.plot([sum(values) / len(values)], [row], color="black", linestyle="none", marker="|", markersize=11,
                      markeredgewidth=2)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        _finish(axis, found, panel, "x")
        axis.grid(axis="y", color="0.92")
    axes[0].invert_yaxis()
    return figure


def _lines(found: Panels) -> Figure:
    labels = list(dict.fromkeys(series.label for panel in found.panels for series in panel.series))
    styles = {label: style for label, *style in _styled(labels)}
    figure, axes = _grid(found, 4.5, 2.9 + 0.05 * len(labels))
    for axis, panel in zip(axes, found.panels, strict=True):
        for series in panel.series:
            colour, line, marker = styles[series.label]
            xs = [x for x, _ in series.points]
            axis.plot(xs, [sum(v) / len(v) for _, v in series.points], color=colour, linestyle=line, marker=marker,
                      markersize=4, label=series.label)
            axis.fill_between(xs, [min(v) for _, v in series.points], [max(v) for _, v in series.points], color=colour,
                              alpha=0.12, lw=0)
        axis.set(xlabel=found.over)
        _finish(axis, found, panel, "y")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), fontsize=8, frameon=False, loc="outside lower center",
                  ncols=min(2, len(found.panels)))
    return figure


def _finish(axis: Any, found: Panels, panel: Panel, along: str) -> None:
    """The name of what is drawn, and a logarithmic axis with plain numbers."""
    axis.set(**{f"{along}label": found.values or panel.title.replace("_", " ")})
    if found.values:
        axis.set_title(panel.title, fontsize=9)
    if found.log:
        axis.set(**{f"{along}scale": "log"})
        getattr(axis, f"{along}axis").set_major_formatter("{x:g}")
    _plain(axis)
