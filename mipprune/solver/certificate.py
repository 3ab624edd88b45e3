"""A proof of a lower bound that needs no solver: tangent points and multipliers, leaf by leaf."""

from __future__ import annotations

import dataclasses
import os
from typing import Self

import numpy as np

from ..errors import CertificateError
from ..records import Record, digest_of, frozen_array, read_json, write_json_atomic
from .problem import Problem

__all__ = ["Certificate", "Leaf", "load_certificate", "save_certificate"]


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf(Record):
    """Multipliers that bound the objective (or refute feasibility) over the masks of one leaf.

    Attributes:
        objective: 1.0, or 0.0 when the leaf is shown to hold no feasible mask.
        drop: multiplier of ``max_drop``, at least 0.
        budgets: resource -> multiplier, at least 0.
        forbidden: float64, shape (F,), multipliers of the no-good cuts.
        point, term: int64, shape (K,): which tangent of which convex term.
        share: float64, shape (K,), multiples of 2^-40: the shares of a term's tangents; they add up to 1 per term.
    """

    objective: float
    drop: float
    budgets: dict[str, float]
    forbidden: np.ndarray
    point: np.ndarray
    term: np.ndarray
    share: np.ndarray

    def __post_init__(self) -> None:
        for name, dtype in (("forbidden", float), ("point", np.int64), ("term", np.int64), ("share", float)):
            object.__setattr__(self, name, frozen_array(getattr(self, name), dtype))
        if not self.point.shape == self.term.shape == self.share.shape == (len(self.share),):
            raise ValueError("point, term and share: expected vectors of one length")


@dataclasses.dataclass(frozen=True, eq=False)
class Certificate(Record):
    """What :func:`~mipprune.solver.certificate_check.check_certificate` needs, besides the problem, to derive a bound.

    The masks are split by a binary tree: a node either names a unit, and its first subtree holds the masks that keep
    it, the second those that don't, or it is a leaf.  Together the leaves hold every mask.

    Attributes:
        problem_digest: :attr:`Problem.digest` of the problem that it speaks about.
        kept: bool, shape (n,): the incumbent.
        objective: the incumbent's objective.
        bound: lower bound on the objective of every feasible mask, that of the weakest leaf.
        tree: int64, shape (M,): the nodes in preorder, a unit's number or -1 for a leaf.
        leaves: one per leaf, in the same order.
        points: float64, shape (P, n): removal vectors in the box, where tangents are taken.
        seal: SHA-256 of everything above, against accidents; a forger can renew it, but not the derivation.
    """

    problem_digest: str
    kept: np.ndarray
    objective: float
    bound: float
    tree: np.ndarray
    leaves: tuple[Leaf, ...]
    points: np.ndarray
    seal: str = ""

    def __post_init__(self) -> None:
        for name, dtype in (("kept", bool), ("tree", np.int64), ("points", float)):
            object.__setattr__(self, name, frozen_array(getattr(self, name), dtype))
        if not self.seal:
            object.__setattr__(self, "seal", self.contents_digest)

    @property
    def contents_digest(self) -> str:
        """SHA-256 of all fields but the seal, hexadecimal."""
        return digest_of(dataclasses.replace(self, seal="-"))

    @property
    def kind(self) -> str:
        """``"root"`` if the bound comes from one relaxation, ``"tree"`` if the masks were split."""
        return "root" if len(self.leaves) == 1 else "tree"

    def __str__(self) -> str:
        return (
            f"certificate ({self.kind}, {len(self.leaves)} leaves, {len(self.points)} tangent points): "
            f"objective {self.objective:.6g}, bound {self.bound:.6g}"
        )

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Self:
        certificate = super().from_dict(data)
        if not data.get("seal"):
            raise ValueError("a certificate without its seal")
        return certificate


def save_certificate(path: str | os.PathLike[str], problem: Problem, certificate: Certificate) -> None:
    """Write problem and certificate into the JSON file ``path``, atomically."""
    write_json_atomic(path, {"problem": problem.to_dict(), "certificate": certificate.to_dict()})


def load_certificate(path: str | os.PathLike[str]) -> tuple[Problem, Certificate]:
    """Read what :func:`save_certificate` wrote to ``path``; nothing is checked but the form.

    Raises:
        CertificateError: the file holds something else.
    """
    try:
        data = read_json(path)
        if not isinstance(data, dict) or set(data) != {"problem", "certificate"}:
            raise ValueError("expected an object with the keys 'problem' and 'certificate'")
        return Problem.from_dict(data["problem"]), Certificate.from_dict(data["certificate"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CertificateError(f"{path}: not a certificate: {error}") from error
