"""Layers side by side: the same curves whatever the number of jobs and whoever runs them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import joblib
import numpy as np
import pytest

from mipprune.solver import SizeCurve, recombine, size_curves
from mipprune.solver.components import solve_by_components
from mipprune.surrogates import LinearHead, Quadratic, Surrogate

from .test_components import instance
from .test_recombine import network


def layers() -> list[Surrogate]:
    """Three layers, large enough for the relaxation and branch and bound, and of two kinds."""
    rng = np.random.default_rng(0)
    return [
        Quadratic(rng.random(26), rng.normal(size=(9, 26))),
        LinearHead(rng.random((40, 14)), rng.normal(size=(3, 14)), np.zeros(3), rng.integers(0, 3, 40)),
        Quadratic(rng.random(8), rng.normal(size=(8, 8))),
    ]


def curves(n_jobs: int) -> list[SizeCurve]:
    return size_curves(layers(), min_keep=[1, 2, 1], keep=[[3], None, None], remove=[None, [0], None], n_jobs=n_jobs)


def assert_same(one: list[SizeCurve], other: list[SizeCurve]) -> None:
    assert len(one) == len(other) == 3
    for a, b in zip(one, other, strict=True):
        assert {**a.to_dict(), "seconds": 0} == {**b.to_dict(), "seconds": 0}


@contextmanager
def dask() -> Iterator[None]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


@contextmanager
def ray() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else it writes a token into the home folder
    import ray
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        register_ray()
        with joblib.parallel_config(backend="ray"):
            yield
    finally:
        ray.shutdown()


def test_the_pins_reach_the_layers() -> None:
    first, second, _ = curves(1)
    assert first.masks[:, 3].all()
    assert not second.masks[:, 0].any()
    assert (first.fewest, second.fewest, second.most) == (1, 2, 13)


def test_processes_give_the_same_curves() -> None:
    alone = curves(1)
    assert_same(alone, curves(2))
    costs = network([26, 14, 8])
    budget = {"macs": 0.4 * costs.cost("macs", costs.sizes)}
    one, two = (recombine(c, costs, budgets=budget) for c in (alone, curves(2)))
    assert one.kept.tolist() == two.kept.tolist()
    problem = instance(3)
    one, two = (solve_by_components(problem, n_jobs=jobs) for jobs in (1, 2))
    assert (one.kept == two.kept).all()
    assert one.bound == two.bound


@pytest.mark.slow
@pytest.mark.parametrize(("package", "cluster"), [("distributed", dask), ("ray", ray)])
def test_a_cluster_gives_the_same_curves(package: str, cluster: object) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    alone = curves(1)
    with cluster():  # type: ignore[operator]
        assert_same(alone, curves(2))
