"""What an importance estimate costs: Shapley values of a layer by mipprune beside captum, shapiq and TorchPruner's way.

    python benchmarks/estimation.py [--quick] [--device cpu|cuda] [--json FILE]

Cases: a digits MLP 64-128-64-10 (players: the 128 units of hidden layer 1) and a small CNN (32 channels of its second
convolution); the value of a coalition is minus the mean cross-entropy on 256 held-out images with only these units on.

How it is measured: every method gets about the same CPU time (2.5 s, 0.3 s with --quick) in one process and thread, and
is called as a user would.  CPU time is time.process_time around the call (with --device cuda: wall-clock time after a
synchronisation); training, tracing, the cached activations before the layer and one warm-up call of every method lie
outside.  captum and shapiq get the cached activations too, and only the rest of the network is run for them.  The error
is the L2 distance to a long reference run of ours (another seed) over the reference's norm, root mean square over the
repeats; a long run of plain shared permutations checks the reference.  The equal-error ratio extrapolates from the
measured points by error^2 ~ 1/time: ``(t_peer error_peer^2) / (t_ours error_ours^2)``, for the best method of a peer.

"wide" is a walk over a layer of 4096 units: the multiply-adds that its steps need, as a share of the rate of a plain
matrix product on the same device.

"pairs" are all pairwise Banzhaf interactions of the first case, with masks of every image's own, against a run of 8
times as many masks; masks shared by all images, through the ordinary network, check it.

TorchPruner is not on PyPI; its algorithm is written out below: per permutation units are taken out one after another,
and the whole network is run on all images at every step.  "torchpruner" draws them from a DataLoader, as its
documentation asks; "torchpruner_ready_batch" is the same with the images as one tensor.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mipprune as mp
from mipprune.datasets import load_split
from mipprune.estimate import interactions, shapley
from mipprune.game import LayerGame

N_IMAGES = 256
OURS = "mipprune sample_permutation"

#: One run: (budget in evaluations, seed) -> (values (n,), evaluations made).
Run = Callable[[int, int], tuple[np.ndarray, int]]


@dataclasses.dataclass
class Case:
    """A network split at the layer whose units are the players."""

    name: str
    model: nn.Sequential
    layer: str  # module path
    split: int  # the players are the outputs of model[:split]
    inputs: torch.Tensor
    targets: torch.Tensor

    def __post_init__(self) -> None:
        self.game = LayerGame(mp.trace(self.model, self.inputs[:8]), self.layer, (self.inputs, self.targets))
        self.n = self.game.n_players
        with torch.no_grad():
            self.cached = self.model[: self.split](self.inputs)
        self.rest = self.model[self.split :]

    def values(self, coalitions: np.ndarray) -> np.ndarray:
        """The batched callback of the peers: coalitions (M, n) or (n,) -> (M,), by the rest of the network alone."""
        gates = torch.as_tensor(np.atleast_2d(coalitions), dtype=torch.float32, device=self.cached.device)
        return self.worth(gates).cpu().numpy().astype(np.float64)

    @torch.no_grad()
    def worth(self, gates: torch.Tensor) -> torch.Tensor:
        """Values of float gates (M, n): float32 (M,), 16 coalitions of all images at a time (fastest of 4..128)."""
        out = []
        for some in gates.split(16):
            masked = self.cached * some.reshape(len(some), 1, self.n, *[1] * (self.cached.ndim - 2))
            logits = self.rest(masked.flatten(0, 1))
            loss = nn.functional.cross_entropy(logits, self.targets.repeat(len(some)), reduction="none")
            out.append(-loss.reshape(len(some), -1).mean(1))
        return torch.cat(out)


# -- networks ----------------------------------------------------------------------------------------------------------


def make_cases(device: str) -> list[Case]:
    """Both networks, trained on the training part; the images come from the held-out part."""
    cases = []
    for name in ("mlp 64-128-64-10, hidden layer 1", "cnn 16-32, second convolution"):
        conv = name.startswith("cnn")
        split = load_split("digits" if conv else "digits_flat")
        torch.manual_seed(0)
        model = _cnn() if conv else nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        _train(model, *split.train, epochs=10 if conv else 30)
        x, y = (t[:N_IMAGES].to(device) for t in split.holdout)
        model = model.to(device).eval()
        cases.append(Case(name, model, "2" if conv else "0", 4 if conv else 2, x, y))
    return cases


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )


def _train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in torch.randperm(len(x)).repeat(epochs).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()


# -- methods -----------------------------------------------------------------------------------------------------------


def ours(game: LayerGame, **options: Any) -> Run:
    """Mipprune's shapley with a method of its own."""

    def run(budget: int, seed: int) -> tuple[np.ndarray, int]:
        found = shapley(game, n_evals=max(budget, 5 * game.n_players), seed=seed, **options)
        return np.asarray(found.values), found.n_evals

    return run


def captum_sampling(case: Case, batch: int) -> Run:
    """Captum's ShapleyValueSampling on the gates of the units, ``batch`` coalitions a call."""
    from captum.attr import ShapleyValueSampling

    sampler = ShapleyValueSampling(case.worth)
    ones = torch.ones(1, case.n, device=case.cached.device)

    def run(budget: int, seed: int) -> tuple[np.ndarray, int]:
        torch.manual_seed(seed)
        count = max(1, round(budget / case.n))
        found = sampler.attribute(ones, baselines=0.0, n_samples=count, perturbations_per_eval=batch)
        return found[0].cpu().numpy().astype(np.float64), 1 + count * case.n

    return run


def shapiq_method(case: Case, name: str, **options: Any) -> Run:
    """An approximator of shapiq with the batched callback."""
    import shapiq

    def run(budget: int, seed: int) -> tuple[np.ndarray, int]:
        approximator = getattr(shapiq, name)(n=case.n, random_state=seed, **options)
        found = approximator.approximate(budget=max(budget, 2 * case.n), game=case.values)
        return np.array([found[(i,)] for i in range(case.n)]), int(found.estimation_budget)

    return run


def torchpruner_way(case: Case, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Run:
    """TorchPruner's algorithm: a hook zeroes a growing list of units; the whole network gives one loss per image."""
    removed: list[int] = []

    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill_(1, torch.tensor(removed, device=output.device), 0.0) if removed else output

    def losses() -> torch.Tensor:
        some = [nn.functional.cross_entropy(case.model(x), y, reduction="none") for x, y in batches]
        return torch.cat(some)

    @torch.no_grad()
    def run(budget: int, seed: int) -> tuple[np.ndarray, int]:
        rng, total = np.random.default_rng(seed), torch.zeros(len(case.targets), case.n, device=case.targets.device)
        count = max(1, round(budget / case.n))
        dense = losses()
        handle = case.model.get_submodule(case.layer).register_forward_hook(hook)
        for _ in range(count):
            before = dense
            for unit in rng.permutation(case.n).tolist():
                removed.append(unit)
                after = losses()
                total[:, unit] += after - before
                before = after
            removed.clear()
        handle.remove()
        return total.mean(0).double().cpu().numpy() / count, 1 + count * case.n

    return run


def methods(case: Case) -> dict[str, tuple[str, Run]]:
    """Name -> (package, run)."""
    plain = LayerGame(case.game.graph, case.layer, (case.inputs, case.targets), fused=False)
    whole = LayerGame(case.game.graph, case.layer, (case.inputs, case.targets), fused=False, incremental=False)
    found: dict[str, tuple[str, Run]] = {OURS: ("mipprune", ours(case.game, method="sample_permutation"))}
    if case.game._chain is not None:
        found[f"{OURS}, without the compiled kernel"] = ("", ours(plain, method="sample_permutation"))
    found[f"{OURS}, the whole suffix at every step"] = ("", ours(whole, method="sample_permutation"))
    found["mipprune permutation (shared by all images)"] = ("", ours(plain, method="permutation"))
    found["mipprune regression (shared by all images)"] = ("", ours(plain, method="regression"))
    found["captum ShapleyValueSampling, one by one"] = ("captum", captum_sampling(case, 1))
    found["captum ShapleyValueSampling, batched"] = ("captum", captum_sampling(case, case.n))
    found["shapiq PermutationSamplingSV"] = ("shapiq", shapiq_method(case, "PermutationSamplingSV"))
    found["shapiq KernelSHAP"] = ("shapiq", shapiq_method(case, "KernelSHAP"))
    found["shapiq KernelSHAP, paired"] = ("shapiq", shapiq_method(case, "KernelSHAP", pairing_trick=True))
    ready = [(case.inputs, case.targets)]
    loader = DataLoader(TensorDataset(case.inputs, case.targets), batch_size=N_IMAGES)
    found["TorchPruner's algorithm, DataLoader"] = ("torchpruner", torchpruner_way(case, loader))
    found["TorchPruner's algorithm, one ready batch"] = ("torchpruner_ready_batch", torchpruner_way(case, ready))
    return found


# -- measuring ---------------------------------------------------------------------------------------------------------


def timed(run: Run, budget: int, seed: int, device: str) -> tuple[np.ndarray, int, float]:
    """Values, evaluations and seconds of one run."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    values, evaluations = run(budget, seed)
    if device == "cuda":
        torch.cuda.synchronize()
    return values, evaluations, clock() - start


def fitting_budget(run: Run, n: int, seconds: float, device: str) -> int:
    """Evaluations that take about ``seconds``: grown from a warm-up until a tenth of it is used, then scaled."""
    budget = 6 * n
    timed(run, budget, 0, device)
    while True:
        _, made, taken = timed(run, budget, 0, device)
        if taken > seconds / 10:
            return max(budget, int(made * seconds / taken))
        budget = max(2 * budget, int(made * seconds / 8 / max(taken, 1e-4)))


def reference(case: Case, seconds: float, device: str) -> tuple[np.ndarray, dict[str, Any]]:
    """A long run of ours with a seed of its own, and how it agrees with a long run of plain shared permutations."""
    options = {"seed": 987_654_321}
    budget = fitting_budget(ours(case.game, method="sample_permutation"), case.n, seconds, device)
    exact = shapley(case.game, method="sample_permutation", n_evals=budget, **options)
    plain = LayerGame(case.game.graph, case.layer, (case.inputs, case.targets), fused=False)
    budget = fitting_budget(ours(plain, method="permutation", antithetic=False), case.n, seconds, device)
    check = shapley(plain, method="permutation", antithetic=False, n_evals=budget, seed=13)
    norm = np.linalg.norm(exact.values)
    gap = float(np.linalg.norm(check.values - exact.values) / norm)
    expected = float(np.sqrt((check.stderr**2 + exact.stderr**2).sum()) / norm)
    return np.asarray(exact.values), {
        "case": case.name, "evaluations": exact.n_evals, "rel_stderr": float(np.linalg.norm(exact.stderr) / norm),
        "plain_permutation_evaluations": check.n_evals, "rel_gap_to_plain": gap, "rel_gap_expected": expected,
    }


def measure(case: Case, seconds: float, repeats: int, truth: np.ndarray, device: str) -> list[dict[str, Any]]:
    """One row per method."""
    rows = []
    for name, (package, run) in methods(case).items():
        budget = fitting_budget(run, case.n, seconds, device)
        found = [timed(run, budget, 1 + seed, device) for seed in range(repeats)]
        error = [np.linalg.norm(v - truth) / np.linalg.norm(truth) for v, _, _ in found]
        rows.append({
            "case": case.name, "method": name, "package": package,
            "cpu_seconds": float(np.mean([t for _, _, t in found])),
            "evaluations": int(np.mean([e for _, e, _ in found])),
            "rel_l2_error": float(np.sqrt(np.mean(np.square(error)))),
            "spearman": float(np.mean([stats.spearmanr(v, truth).statistic for v, _, _ in found])),
        })
        print(_line(rows[-1]), flush=True)
    return rows


def measure_pairs(case: Case, seconds: float, repeats: int) -> dict[str, Any]:
    """All pairwise Banzhaf interactions in about ``0.7 seconds``, against a run of 8 times as many masks."""
    pairs = np.triu_indices(case.n, 1)
    cost = 1 + case.n + len(pairs[0])

    def run(masks: int, seed: int, method: str) -> tuple[Any, float]:
        start = time.process_time()
        found = interactions(case.game, method=method, n_evals=masks * cost, seed=seed)
        return found, time.process_time() - start

    run(4, 0, "sample_sampled")
    taken = run(4, 0, "sample_sampled")[1]
    masks = max(4, 2 * int(0.7 * seconds / taken * 2))
    truth, _ = run(8 * masks, 987_654_321, "sample_sampled")
    norm = np.linalg.norm(truth.values)
    found = [run(masks, 1 + seed, "sample_sampled") for seed in range(repeats)]
    check, _ = run(max(4, masks // 4), 13, "sampled")  # masks that all images share, batches of the ordinary network
    return {
        "n_pairs": len(pairs[0]), "masks": masks, "evaluations": found[0][0].n_evals,
        "cpu_seconds": float(np.mean([t for _, t in found])),
        "rel_error": float(np.sqrt(np.mean([np.sum((f.values - truth.values) ** 2) for f, _ in found])) / norm),
        "reference_masks": 8 * masks, "reference_rel_stderr": float(np.linalg.norm(truth.stderr) / norm),
        "rel_gap_to_plain": float(np.linalg.norm(check.values - truth.values) / norm),
        "rel_gap_expected": float(np.sqrt((check.stderr**2 + truth.stderr**2).sum()) / norm),
    }


def measure_wide(device: str, quick: bool) -> dict[str, Any]:
    """Walks over a wide layer: multiply-adds per second that they need, over the rate of a plain matrix product.

    Needed per step and image: one column of the reader, and all that follows it.
    """
    n, m, images = (1024, 256, 16) if quick else (4096, 1024, 64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, n), nn.ReLU(), nn.Linear(n, m), nn.ReLU(), nn.Linear(m, 10)).to(device).eval()
    x, y = torch.randn(images, 64, device=device), torch.arange(images, device=device) % 10
    game = LayerGame(mp.trace(model, x), "0", (x, y))
    orders = np.random.default_rng(0).random((images, n)).argsort(axis=1)

    def seconds(work: Callable[[], object]) -> float:
        work()
        clock = time.perf_counter if device == "cuda" else time.process_time
        start = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    a = torch.randn(2048, 2048, device=device)
    peak = 2048**3 / seconds(lambda: a @ a)
    taken = seconds(lambda: game.walk(orders))
    needed = images * n * (m + m * 10)
    return {
        "units": n, "readers": m, "images": images, "seconds": taken, "multiply_adds_per_second": needed / taken,
        "matmul_multiply_adds_per_second": peak, "fraction_of_matmul": needed / taken / peak,
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """CPU time for our error, over our CPU time; of each package's best method: error^2 ~ 1/time."""
    price = {r["method"]: r["cpu_seconds"] * r["rel_l2_error"] ** 2 for r in rows}
    return {
        peer: min(price[r["method"]] for r in rows if r["package"] == peer) / price[OURS]
        for peer in ("shapiq", "captum", "torchpruner", "torchpruner_ready_batch")
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"  {row['method']:<60} {row['cpu_seconds']:6.2f} s {row['evaluations']:>9,} evals  "
        f"error {row['rel_l2_error']:.4f}  Spearman {row['spearman']:.4f}"
    )


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="0.3 s a method, one repeat")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    seconds, repeats = (0.3, 1) if options.quick else (2.5, 3)
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quick": options.quick, "device": options.device,
        "python": platform.python_version(), "processor": platform.machine(),
        "versions": {p: _version(p) for p in ("mipprune", "torch", "numpy", "numba", "captum", "shapiq")},
        "equal_error_rule": "error^2 ~ 1/time from each method's measured point; the best method of each package",
        "rows": [], "references": [], "equal_error_time_ratios": {},
    }
    for case in make_cases(options.device):
        truth, check = reference(case, 10 * seconds, options.device)
        print(f"{case.name}: {case.n} players, {len(case.targets)} images; reference {check['evaluations']:,} evals, "
              f"its relative standard error {check['rel_stderr']:.4f}; gap to plain permutations "
              f"{check['rel_gap_to_plain']:.4f}, expected {check['rel_gap_expected']:.4f}")
        rows = measure(case, seconds, repeats, truth, options.device)
        result["references"].append(check)
        result["rows"] += rows
        result["equal_error_time_ratios"][case.name] = ratios(rows)
        print("  CPU time for our error over ours:",
              ", ".join(f"{k} {v:,.0f}" for k, v in ratios(rows).items()), "\n")
        if "pairs" not in result and options.device == "cpu":
            result["pairs"] = measure_pairs(case, seconds, repeats)
            print("  pairwise Banzhaf interactions:", json.dumps(result["pairs"]), "\n")
    result["wide"] = measure_wide(options.device, options.quick)
    print("a wide layer:", json.dumps(result["wide"]))
    result["equal_error_time_ratio"] = next(iter(result["equal_error_time_ratios"].values()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    if package == "mipprune":
        return mp.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
