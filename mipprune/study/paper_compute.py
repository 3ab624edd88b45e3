"""What the cells of :mod:`mipprune.study.paper_kinds` compute: thin calls of the functions that the package has."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import train
from ..estimate import gtap_iterated_building, gtap_iterated_pruning, gtap_top_n, shapley_pruning_ranks
from ..estimate import interactions as pairs_of
from ..game import LayerGame
from ..game.data import read_data
from ..graph import trace
from ..pruning import Units
from ..pruning.pipeline import prepare
from ..relu import OamipOptions, select
from ..relu.oracle import network_oracle
from .compute import Payloads, layer_game, loaded
from .networks import StudyNetwork

__all__ = ["gtap", "interactions", "oamip", "ranks", "train_and_prune"]

Found = tuple[dict[str, Any], None]


def gtap(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> Found:
    """Loss and held-out accuracy of the layer that GTAP leaves, without any repair or training."""
    game = layer_game(inputs, source, payloads[0])
    run = {"top_n": gtap_top_n, "iterated_pruning": gtap_iterated_pruning, "iterated_building": gtap_iterated_building}
    n_keep = min(max(1, round(inputs["keep"] * game.n_players)), game.n_players - 1)
    found = run[inputs["algorithm"]](
        game, n_keep, **{key: inputs[key] for key in ("p", "method", "n_evals", "seed")}
    )
    model, data = loaded(inputs, source, payloads[0])
    graph, _, held_out = prepare(model, data.calibration, data.holdout, None, 0)
    judge = LayerGame(graph, inputs["layer"], held_out, value="accuracy")
    return {
        "kept": int(found.kept.sum()), "players": game.n_players, "evals_used": found.n_evals,
        "rounds": len(found.rounds), "undecided": found.rounds[0].undecided, "loss": -float(found.path_values[-1]),
        "dense_loss": -float(game.value_full), "accuracy": float(judge.value(found.kept)),
        "dense_accuracy": float(judge.value_full),
    }, None


def ranks(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> Found:
    """Per rank the mean over all sizes of its loss above the best set's, in nats."""
    game = layer_game(inputs, source, payloads[0])
    found = shapley_pruning_ranks(game, ks=(inputs["k"],), n_evals=inputs["n_evals"], seed=inputs["seed"], oracle=True)
    assert found.oracle is not None
    oracle = found.oracle.oracle
    above = {row.name: row.mean_gap for row in found.oracle.rows}
    return {"players": game.n_players, "nested": bool(oracle.nested),
            **{f"above best: {name}": value for name, value in above.items()}}, None


def interactions(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> Found:
    """Every pair's interaction, row by row for i < j, and the largest standard error."""
    game = layer_game(inputs, source, payloads[0])
    found = pairs_of(game, p=inputs["p"], n_evals=inputs["n_evals"], seed=inputs["seed"])
    upper = np.triu_indices(game.n_players, 1)
    return {
        "players": game.n_players, "evals_used": found.n_evals, "largest_stderr": float(found.stderr.max()),
        "pairs": found.values[upper],
    }, None


def oamip(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> Found:
    """The mask of the program, how much of it is proved, and what the masked network does on held-out data."""
    model, data = loaded(inputs, source, payloads[0])
    samples = read_data(data.calibration, model).take(slice(0, inputs["samples"]))
    graph = trace(model, tuple(x[:1] for x in samples.inputs))
    given: dict[str, Any] = {"oamip": OamipOptions(loss_weight=inputs["loss_weight"], threshold=inputs["threshold"])}
    if inputs["formulation"] == "sound":
        given = {"margin": inputs["margin"]}
    found = select(graph, samples, inputs["formulation"], layer=inputs["layer"], time_limit=inputs["time_limit"],
                   seed=inputs["seed"], **given)
    whole, _, held_out = prepare(model, data.calibration, data.holdout, None, 0)
    logits = network_oracle(whole, held_out)(found.kept)[0]
    accuracy = float((logits.argmax(1) == held_out.targets.cpu().numpy()).mean())
    return {
        "units": len(found.kept), "kept": found.n_kept, "objective": found.objective, "bound": found.bound,
        "proved": found.proved, "termination": found.termination, "accuracy": accuracy,
        "sample_accuracy": found.accuracy,
    }, None


def train_and_prune(inputs: dict[str, Any], source: StudyNetwork, payloads: Payloads) -> Found:
    """Accuracy and sharpness of a network that lost its units during training."""
    model, data = loaded(inputs, source, payloads[0])
    options = {key: inputs[key] for key in ("flatness", "weight_decay", "sharpness_aware", "epochs", "seed")}
    held = 0.25 if data.holdout is None else data.holdout
    report = train.train_and_prune(
        model, data.calibration, holdout=held, budget=Units(inputs["units"]), progress=False, **options
    ).report
    sharp = report.sharpness
    return {
        "units_ratio": report.ratio("units"), "accuracy": report.accuracy, "loss": report.loss,
        "train_loss": report.train_loss, "held_out": report.n_holdout, "top_eigenvalue": sharp.top_eigenvalue,
        "relative_sharpness": sharp.relative, "kfac_sum": sharp.kfac_sum, "termination": report.termination,
    }, None
