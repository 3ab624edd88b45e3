"""Torch-Pruning beside mipprune: every criterion it has, locally and globally, at the budgets of quality.py.

    python benchmarks/peers.py --json FILE [--seeds 5] [--models cnn,...] [--kinds l2,...] [--table]

Torch-Pruning takes channel ratios, so multiply-adds are brought under a budget by 25 small steps.  The steps don't
depend on the budget: one walk passes all budgets, and the network of each is the first at or under it, which is the
same network that a walk of its own would end with.  Stages: "one-shot", "bn", "finetune" (five epochs at the learning
rate of the dense training, 0.003) and "finetune-low" (at 0.001); method "torch-pruning KIND SCOPE + mipprune repair",
stage "refit", takes the units that Torch-Pruning kept and cuts and repairs the network our way.  The file is written
after every walk, and walks that are in it are not taken again.

"obdc" doesn't run as released on networks with batch-norm convolutions or biased linear layers (1.6.1: its preparation
looks into attention groups alone, its Fisher blocks have a column for the bias that its score has not); here it gets
its hooks, and per-sample gradients of the weights, from this file.  On attention it asks for channels that the layer
doesn't have and is left out, as "bnscale" is where there is no batch-norm.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.metadata
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bar
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mipprune as mp
from mipprune.game import LabelledData, as_data
from mipprune.graph import UnitGraph
from mipprune.pruning.repairing import Repairer
from mipprune.records import write_json_atomic

__all__ = ["BUDGETS", "KINDS", "SCOPES", "Cut", "compare", "kept_units", "split_heads", "walk"]

BUDGETS = (0.5, 0.2, 0.1, 0.05)
KINDS = ("random", "l1", "l2", "lamp", "bnscale", "taylor", "obdc", "hessian")
SCOPES = ("local", "global")
STEPS = 25
#: Learning rates of the five epochs afterwards.
RATES = {"finetune": 3e-3, "finetune-low": 1e-3}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cut:
    """The first network of a walk at or under a budget.

    Attributes:
        kept: module path -> int64, the dense network's output channels that are left.
        ratio: its multiply-adds over the dense network's.
        seconds: CPU time since the walk began.
    """

    budget: float
    model: nn.Module
    kept: dict[str, np.ndarray]
    ratio: float
    seconds: float


def walk(
    model: nn.Module, data: bar.Data, budgets: Sequence[float], kind: str, scope: str, seed: int
) -> list[Cut]:
    """Cut a copy of ``model`` step by step; what a criterion of Torch-Pruning makes of it at each budget.

    A budget that the 25 steps (95% of the channels at most) don't reach gets no cut.
    """
    import torch_pruning as tp

    begin = time.process_time()
    torch.manual_seed(seed)
    small = copy.deepcopy(model)
    importance = _importance(kind)
    last = next(m for name, m in small.named_children() if name in ("f2", "f3", "fc", "head"))
    attention = [m for m in small.modules() if isinstance(m, bar.Attention)]
    pruner = tp.pruner.BasePruner(
        small, data.train[0][:2], importance=importance, global_pruning=scope == "global", pruning_ratio=0.95,
        max_pruning_ratio=0.95, iterative_steps=STEPS, ignored_layers=[last],
        num_heads={m.qkv: m.num_heads for m in attention},
        in_channel_groups={}, out_channel_groups={},  # their defaults are shared between pruners
        unwrapped_parameters=[(small.pos, 2)] if hasattr(small, "pos") else None,
    )
    names = {m: name for name, m in small.named_modules()}
    kept = {name: np.arange(m.weight.shape[0]) for m, name in names.items() if isinstance(m, (nn.Conv2d, nn.Linear))}
    dense = bar.macs(small, data.train[0])
    left, found = sorted(budgets, reverse=True), []
    for _ in range(STEPS):
        _prepare(kind, importance, small, data.train, last)
        for group in pruner.step(interactive=True):
            for dep, index in group:
                if names.get(dep.target.module) in kept and pruner.DG.is_out_channel_pruning_fn(dep.handler):
                    name = names[dep.target.module]
                    kept[name] = np.delete(kept[name], [int(i) for i in index])
            group.prune()
        _forget(kind, importance, small)
        for m in attention:
            m.num_heads = pruner.num_heads[m.qkv]
            m.head_dim = m.qkv.out_features // (3 * m.num_heads)
        ratio = bar.macs(small, data.train[0]) / dense
        while left and ratio <= left[0]:
            small.zero_grad()
            seconds = time.process_time() - begin
            found.append(Cut(left.pop(0), copy.deepcopy(small).eval(), dict(kept), ratio, seconds))
        if not left:
            break
    return found


def _importance(kind: str) -> Any:
    import torch_pruning as tp

    if kind == "obdc":
        importance = tp.importance.OBDCImportance(num_classes=10)
        importance.MatGradHandler = _sample_gradients
        return importance
    return {
        "random": tp.importance.RandomImportance,
        "l1": lambda: tp.importance.MagnitudeImportance(p=1, group_reduction="mean"),
        "l2": lambda: tp.importance.MagnitudeImportance(p=2, group_reduction="mean"),
        "lamp": lambda: tp.importance.LAMPImportance(p=2),
        "bnscale": tp.importance.BNScaleImportance,
        "taylor": tp.importance.TaylorImportance,
        "hessian": tp.importance.HessianImportance,
    }[kind]()


def _prepare(kind: str, importance: Any, small: nn.Module, part: bar.Part, last: nn.Module) -> None:
    """The gradients that a criterion wants, on the training data."""
    x, y = part
    small.zero_grad()
    if kind == "taylor":
        F.cross_entropy(small(x), y).backward()
    elif kind == "hessian":
        importance.zero_grad()
        for loss in F.cross_entropy(small(x[:64]), y[:64], reduction="none"):
            small.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(small)
    elif kind == "obdc":
        for layer in small.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer is not last:
                importance.modules.append(layer)
                layer.register_forward_pre_hook(importance._save_input)
                layer.register_full_backward_hook(importance._save_grad_output)
        for batch in torch.arange(len(x)).split(128)[:10]:
            logits = small(x[batch])
            F.cross_entropy(logits, torch.multinomial(logits.detach().softmax(1), 1)[:, 0]).backward()
            importance.step()


def _forget(kind: str, importance: Any, small: nn.Module) -> None:
    if kind == "obdc":
        importance._rm_hooks(small)
        importance._clear_buffer()


def _sample_gradients(x: torch.Tensor, grad: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Every sample's gradient of the layer's weights: (N, outputs, columns)."""
    if isinstance(layer, nn.Conv2d):
        columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return torch.einsum("nor,ncr->noc", grad.flatten(2), columns)
    return torch.einsum("nro,nrc->noc", grad.reshape(len(x), -1, grad.shape[-1]), x.reshape(len(x), -1, x.shape[-1]))


class SplitAttention(nn.Module):
    """:class:`bar.Attention` with layers of their own for every head, so that each dimension of a head is a unit."""

    def __init__(self, attention: bar.Attention) -> None:
        super().__init__()
        width = attention.head_dim
        self.scale = width**-0.5  # the dense one: our repair is fitted to it
        weights = attention.qkv.weight.detach().split(width), attention.qkv.bias.detach().split(width)
        layers = []
        for weight, bias in zip(*weights, strict=True):
            layer = nn.Linear(weight.shape[1], width)
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers.append(layer)
        n = attention.num_heads
        self.q, self.k, self.v = (nn.ModuleList(layers[i * n:(i + 1) * n]) for i in range(3))
        self.proj = copy.deepcopy(attention.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = []
        for q, k, v in zip(self.q, self.k, self.v, strict=True):
            heads.append((self.scale * (q(x) @ k(x).transpose(1, 2))).softmax(-1) @ v(x))
        return self.proj(torch.cat(heads, -1))


def split_heads(model: nn.Module) -> nn.Module:
    """A copy that computes the same with :class:`SplitAttention`: Torch-Pruning removes dimensions within heads."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, bar.Attention):
                setattr(module, name, SplitAttention(child))
    return twin.eval()


def kept_units(graph: UnitGraph, kept: dict[str, np.ndarray]) -> np.ndarray:
    """The mask (n_units,) over a network's units (after :func:`split_heads`) of the output channels in ``kept``."""
    channels = dict(kept)
    for name, index in kept.items():
        if name.endswith(".qkv"):
            stem, heads = name[:-3], sum(p.startswith(name[:-3] + "q.") for p, _ in graph.model.named_modules())
            width = graph.model.get_submodule(f"{stem}q.0").out_features
            for i, part in enumerate("qkv"):
                for head in range(heads):
                    at = (i * heads + head) * width
                    channels[f"{stem}{part}.{head}"] = index[(index >= at) & (index < at + width)] - at
    mask = np.zeros(graph.n_units, dtype=bool)
    gone = np.zeros(graph.n_units, dtype=bool)
    for (tensor, dim), units in graph.unit_sites.items():
        name = tensor.removesuffix(".weight")
        if dim == 0 and tensor.endswith(".weight") and name in channels:
            stays = np.isin(np.arange(len(units)), channels[name])
            mask[units[stays & (units >= 0)]] = True
            gone[units[~stays & (units >= 0)]] = True
    if (mask == gone).any():
        raise ValueError("the channels that are left aren't whole units of this network")
    return mask


def compare(
    name: str, model: nn.Module, data: bar.Data, seed: int, kinds: Sequence[str] = KINDS,
    budgets: Sequence[float] = BUDGETS, path: Path | None = None,
) -> Iterator[Row]:
    """Rows of all criteria and scopes for one network; those in the file at ``path`` are read, new ones added to it.

    The file gets all :data:`BUDGETS`, whichever are asked for here.
    Every row has ``model, seed, kind, scope, budget, method, stage, accuracy`` (in %), ``macs_ratio, cpu_seconds``.
    """
    rows: list[Row] = json.loads(path.read_text())["rows"] if path is not None and path.exists() else []
    done = {(r["model"], r["seed"], r["kind"], r["scope"]) for r in rows}
    repairer = None
    for kind in kinds:
        for scope in SCOPES:
            if (name, seed, kind, scope) not in done:
                if repairer is None:
                    graph = mp.trace(split_heads(model), data.train[0][:1])
                    repairer = Repairer(graph, as_data(data.train, graph), as_data(data.calibration, graph), ())
                about = {"model": name, "seed": seed, "kind": kind, "scope": scope}
                try:
                    cuts = walk(model, data, budgets if path is None else BUDGETS, kind, scope, seed)
                except Exception as error:  # a criterion that this network has no use for
                    warnings.warn(f"torch-pruning {kind} {scope} on {name}: {error}", stacklevel=1)
                    rows.append(about | {"error": f"{type(error).__name__}: {error}"})
                else:
                    rows += [about | row for cut in cuts for row in _measured(cut, data, repairer, kind, scope, seed)]
                    if not cuts:
                        rows.append(about | {"error": "nothing was cut"})
                if path is not None:
                    versions = {p: importlib.metadata.version(p) for p in ("torch", "torch-pruning")}
                    write_json_atomic(path, {"versions": versions, "rows": rows})
    for row in rows:
        if (row["model"], row["seed"]) == (name, seed) and row["kind"] in kinds and row.get("budget") in budgets:
            yield row


def _measured(
    cut: Cut, data: bar.Data, repairer: Repairer, kind: str, scope: str, seed: int
) -> Iterator[Row]:
    method, small = f"torch-pruning {kind} {scope}", copy.deepcopy(cut.model)

    def row(stage: str, network: nn.Module, seconds: float, name: str = method, ratio: float = cut.ratio) -> Row:
        return {"budget": cut.budget, "method": name, "stage": stage, "accuracy": bar.accuracy(network, data.test),
                "macs_ratio": ratio, "cpu_seconds": seconds}

    yield row("one-shot", small, cut.seconds)
    if mp.recalibrate_batch_norm(small, LabelledData((data.train[0],), data.train[1])):
        yield row("bn", small, cut.seconds)
    for stage, rate in RATES.items():
        tuned = copy.deepcopy(small)
        seconds = bar.fit(tuned, data.train, 5, seed, rate)
        yield row(stage, tuned, cut.seconds + seconds)
    begin = time.process_time()
    graph = repairer.graph
    kept = kept_units(graph, cut.kept)
    repaired, _ = repairer.deploy(kept, ("bn", "refit", "head"))
    seconds = cut.seconds + time.process_time() - begin
    yield row("refit", repaired, seconds, f"{method} + mipprune repair", graph.macs(kept) / graph.macs())


def best(rows: Sequence[Row]) -> Iterator[tuple[str, float, str, str, float, int]]:
    """(model, budget, stage, criterion, mean, seeds): per cell the criterion of the highest mean over the seeds.

    A criterion that lacks a seed which another has can't be best.
    """
    cells: dict[tuple[str, float, str], dict[str, list[float]]] = {}
    for row in rows:
        if "error" not in row:
            cell = cells.setdefault((row["model"], row["budget"], row["stage"]), {})
            cell.setdefault(f"{row['kind']} {row['scope']}", []).append(row["accuracy"])
    for (model, budget, stage), found in sorted(cells.items(), key=lambda c: (c[0][0], -c[0][1], c[0][2])):
        seeds = max(map(len, found.values()))
        mean, name = max((float(np.mean(v)), name) for name, v in found.items() if len(v) == seeds)
        yield model, budget, stage, name, mean, seeds


def main() -> None:
    """Take every walk that the file lacks, or show what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", default="cnn,resnet,transformer")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--table", action="store_true", help="show the best criterion per cell of the file, and end")
    arguments = parser.parse_args()
    if arguments.table:
        for model, budget, stage, name, mean, seeds in best(json.loads(arguments.json.read_text())["rows"]):
            print(f"| {model}, {budget:.0%} | {stage} | {mean:.1f} | {name} | {seeds} |")
        return
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torch_pruning")
    data = bar.digits()
    for seed in range(arguments.seeds):
        for name in arguments.models.split(","):
            model, _ = bar.trained(name, data, seed)
            begin = time.process_time()
            rows = list(compare(name, model, data, seed, arguments.kinds.split(","), path=arguments.json))
            print(f"{name}, seed {seed}: {len(rows)} rows, {time.process_time() - begin:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
