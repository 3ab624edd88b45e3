"""A real study that can be run in a process of its own, to be killed; imported before, so that it starts at once."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

import mipprune as mp
import mipprune.cli
import mipprune.pruning
import mipprune.study.compute
from mipprune.study import Study

N_CELLS = 2 + 2 * 5 * 12 + 4


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def killable_study(path: Path) -> Study:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)
    study = Study("killed", path)
    study.add_model("net", network(), data)
    study.add("estimate", layer="2", method=["sample_permutation", "permutation"], n_evals=[60, 120, 240, 480, 960],
              seed=range(12))
    study.add("prune", budget=[mp.Macs(0.7), mp.Macs(0.5)], surrogate="quadratic", stages=[1, 2])
    return study


def run_killable(path: Path, n_jobs: int) -> None:
    torch.set_num_threads(1)
    with killable_study(path) as study:
        summary = study.run(n_jobs=n_jobs)
    os._exit(0 if summary.failed == summary.left == 0 else 3)


def tables(path: Path, folder: Path) -> dict[str, bytes]:
    """Every table of the study as the bytes of its CSV file, and the payloads."""
    out = {}
    with killable_study(path) as study:
        for kind in ("network", "exact", "estimate", "prune"):
            study.to_csv(folder / "table.csv", kind, timing=False)
            out[kind] = (folder / "table.csv").read_bytes()
            if kind in ("network", "exact"):
                cell, = study.storage.cells(study.name, kind=kind)
                out[f"payload of {kind}"] = study.storage.payload(cell.key)
    return out
