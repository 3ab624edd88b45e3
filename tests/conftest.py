"""What all tests share: one thread, fixed seeds, hypothesis without deadlines, and the digits data."""

from __future__ import annotations

import os

# Before numpy and torch are imported: their thread pools read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import random
import signal
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
# A job started in the background ignores Ctrl-C, and so would its children; the tests of Ctrl-C need the usual handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "dev",
    deadline=None,  # a shared machine stalls now and then
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "ci",
    hypothesis.settings.get_profile("dev"),
    derandomize=True,  # a red run on the same commit is the same red run
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries that still read the global state
    torch.manual_seed(0)


Split = tuple[torch.Tensor, torch.Tensor]


class Digits(NamedTuple):
    """scikit-learn's 1,797 digits: ``(inputs, targets)`` per part, float32 inputs in [0, 1], int64 targets 0..9."""

    train: Split
    calibration: Split
    test: Split


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Images of shape (N, 1, 8, 8), split 60/10/30 by class with a fixed seed.  Shared: do not write to the tensors."""
    datasets = pytest.importorskip("sklearn.datasets")
    split = pytest.importorskip("sklearn.model_selection").train_test_split
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = (pixels / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    rest_x, test_x, rest_y, test_y = split(images, labels, test_size=0.3, stratify=labels, random_state=0)
    train_x, cal_x, train_y, cal_y = split(rest_x, rest_y, test_size=1 / 7, stratify=rest_y, random_state=0)
    return Digits(_tensors(train_x, train_y), _tensors(cal_x, cal_y), _tensors(test_x, test_y))


@pytest.fixture(scope="session")
def digits_flat(digits: Digits) -> Digits:
    """The same split with inputs of shape (N, 64)."""
    return Digits(*((x.flatten(1), y) for x, y in digits))


def _tensors(x: np.ndarray, y: np.ndarray) -> Split:
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64))
