"""What cells compute.  Runs in worker processes; results are plain data that the inputs alone decide."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
from torch import nn

from ..curvature import expand_gates, fit_linear_head
from ..errors import ConfigError
from ..estimate import Estimate, banzhaf, exact_table, semivalue, shapley
from ..game import LayerGame, TableGame
from ..game.data import read_data
from ..graph import trace
from ..pruning import LossIncrease, Macs, Params, Units, prune
from ..pruning.measure import measure
from ..pruning.pipeline import prepare
from ..solver import Problem, solve
from ..sources import RunData
from ..surrogates import LinearHead, Quadratic
from .comparison import compare
from .networks import StudyNetwork

__all__ = ["estimate", "exact", "layer_game", "loaded", "network", "prune_network", "solve_layer"]

Payloads = tuple[bytes, ...]


def network(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> tuple[dict[str, Any], bytes]:
    """The trained network: its quality and costs; the payload is its state dict as safetensors."""
    model = source.trained(source.build())
    data = source.data()
    graph, _, held_out = prepare(model, data.calibration, data.holdout, None, 0)
    quality = measure(model, held_out, "held-out data")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    result = {
        "accuracy": quality.accuracy, "loss": quality.loss, "units": graph.n_units, "params": graph.params(),
        "macs": graph.macs(), "groups": {group.name: group.size for group in graph.groups},
    }
    return result, safetensors.torch.save(tensors)


def exact(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> tuple[dict[str, Any], bytes]:
    """The values of all coalitions of one layer; the payload is the table as a .npy file."""
    table = exact_table(layer_game(inputs, source, payloads[0]))
    stream = io.BytesIO()
    np.save(stream, table.table)
    result = {"players": table.n_players, "value_full": table.value_full, "value_empty": table.value_empty}
    return result, stream.getvalue()


def estimate(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> tuple[dict[str, Any], None]:
    """One sampled estimate beside the exact one: errors, ranks, and the mask of ``keep`` that it leads to."""
    values = np.load(io.BytesIO(payloads[1]), allow_pickle=False)
    n = int(values.size).bit_length() - 1
    table = TableGame(values, tuple(f"{inputs['layer']}[{i}]" for i in range(n)))
    truth = _index(table, inputs, method="exact")
    game = layer_game(inputs, source, payloads[0]) if inputs["method"].startswith("sample_") else table
    found = _index(game, inputs, method=inputs["method"], n_evals=inputs["n_evals"], seed=inputs["seed"])
    if found.player_names != truth.player_names:
        found = dataclasses.replace(found, player_names=truth.player_names)
    n_keep = max(1, round(inputs["keep"] * n))
    compared = compare(truth, found, ks=[n_keep], keep=[n_keep], game=table)
    row, (reference, own, best) = compared.rows[0], compared.solutions
    return {
        "evals_used": found.n_evals, "players": n, "relative_error": row.relative_error, "max_error": row.max_error,
        "spearman": row.spearman, "kendall": row.kendall, "top_overlap": row.overlaps[0], "coverage": row.coverage,
        "kept": own.n_kept, "mask_overlap": own.overlap, "regret": own.regret, "true_loss": own.true_drop,
        "true_loss_of_exact": reference.true_drop, "true_loss_of_best": best.true_drop, "proved": own.proved,
    }, None


def prune_network(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> tuple[dict[str, Any], None]:
    """One run of :func:`mipprune.prune`: quality, costs, objective, bound and gap, units kept per layer."""
    model, data = loaded(inputs, source, payloads[0])
    options = {key: value for key, value in inputs.items() if key not in ("network", "version", "budget", "tolerance")}
    kinds = {"macs": Macs, "params": Params, "units": Units}
    budget = [kinds[name](share) for name, share in (inputs["budget"] or {}).items()]
    tolerance = None if inputs["tolerance"] is None else LossIncrease(inputs["tolerance"])
    report = prune(model, data.calibration, holdout=data.holdout, progress=False, budget=budget or None,
                   tolerance=tolerance, **options).report
    summary = report.summary()
    del summary["seconds"], summary["mask_vs_surgery_max_abs_diff"]
    return {
        "task": report.task, **summary, "dense_loss": report.dense.loss, "pruned_loss": report.pruned.loss,
        "magnitude_accuracy": report.baseline.accuracy, "held_out": report.pruned.n_samples,
        "kept_of": {layer.group: [layer.kept, layer.size] for layer in report.layers},
    }, None


def solve_layer(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> tuple[dict[str, Any], None]:
    """A layer's surrogate problem solved: objective, bound, proof, and (seconds, objective, bound) until the end."""
    model, data = loaded(inputs, source, payloads[0])
    samples = read_data(data.calibration, model)
    if inputs["samples"] is not None:
        samples = samples.take(slice(0, inputs["samples"]))
    graph = trace(model, tuple(x[:1] for x in samples.inputs))
    surrogate: LinearHead | Quadratic
    if inputs["surrogate"] == "head":
        fit = fit_linear_head(graph, inputs["layer"], samples)
        surrogate = LinearHead(fit.activations, fit.weight, fit.bias, fit.targets)
    else:
        expansion, group = expand_gates(graph, samples), graph.group(inputs["layer"])
        block = next(b for b, g in zip(expansion.curvature, graph.groups, strict=True) if g.name == group.name)
        surrogate = Quadratic.from_curvature(expansion.gradient[group.units], block)
    if inputs["keep"] is None:
        problem = Problem.minimize_units(surrogate, max_drop=inputs["max_drop"])
    else:
        n_keep = max(1, round(inputs["keep"] * surrogate.n_units))
        problem = Problem.minimize_drop(surrogate, budgets={"units": n_keep})
    found = solve(problem, inputs["solver"], time_limit=inputs["time_limit"], seed=inputs["seed"])
    progress = [*found.progress, (found.seconds, found.objective, found.bound)]
    return {
        "units": surrogate.n_units, "kept": found.n_kept, "drop": found.drop, "objective": found.objective,
        "bound": found.bound, "gap": found.gap, "proved": found.proved, "termination": found.termination,
        "used": found.solver, "progress": progress,
    }, None


def _index(game: Any, inputs: dict[str, Any], **options: Any) -> Estimate:
    if inputs["index"] == "semivalue":
        return semivalue(game, p=inputs["p"], **options)
    return (shapley if inputs["index"] == "shapley" else banzhaf)(game, **options)


class _Loaded(NamedTuple):
    model: nn.Module
    data: RunData


#: The network used last in this process, by its fingerprint and the digest of its weights.
_last: dict[tuple[str, str], _Loaded] = {}


def loaded(inputs: dict[str, Any], source: StudyNetwork, weights: bytes) -> _Loaded:
    """The network with the stored weights, and its data."""
    key = inputs["network"], hashlib.sha256(weights).hexdigest()
    if key not in _last:
        model = source.build()
        tensors = safetensors.torch.load(weights)
        own = model.state_dict()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
            raise ConfigError("the stored weights don't fit the network that its factory makes now; "
                              "the factory must make the same one every time")
        model.load_state_dict(tensors)
        _last.clear()
        _last[key] = _Loaded(model.eval(), source.data())
    return _last[key]


def layer_game(inputs: dict[str, Any], source: StudyNetwork, weights: bytes) -> LayerGame:
    """The game of a layer on the first ``samples`` of the calibration data."""
    model, data = loaded(inputs, source, weights)
    samples = read_data(data.calibration, model)
    if inputs["samples"] is not None:
        samples = samples.take(slice(0, inputs["samples"]))
    graph = trace(model, tuple(x[:1] for x in samples.inputs))
    return LayerGame(graph, inputs["layer"], samples, value=inputs.get("value", "cross_entropy"))
