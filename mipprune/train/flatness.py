"""The flatness penalty: ``mu max(0, rho - K)``, rho the spectral radius of the K-FAC blocks, with its gradient."""

from __future__ import annotations

import torch
from torch import nn

from ..curvature.checks import plain_attention
from ..curvature.kronecker import merge_positions, output_roots
from ..curvature.probes import Probes, probed_layers
from ..errors import ConfigError

__all__ = ["FlatnessPenalty"]

#: Power iterations from a random start, and the seed of that start.
FIRST_ITERATIONS, START_SEED = 30, 0


class FlatnessPenalty:
    """``mu max(0, rho - K)`` for one network while it trains (2111.08577, our form).

    rho adds up ``lambda_max(A_l) lambda_max(G_l)`` over the Linear and Conv layers.  With v and u the layer's top
    eigenvectors, it equals ``E[(a.v)^2] E[(g.u)^2]``, and by the Hellmann-Feynman theorem its gradient is the gradient
    of that expression with v and u held fixed, wherever the top eigenvalues are simple.  So v and u are detached,
    follow by power iteration from where the step before left them, and rho is differentiated through a and g (twice
    through the network).  The class probabilities in the output curvature are differentiated too.

    Batch-norm and dropout act as in evaluation: a batch's own statistics would tie its samples together.

    Args:
        mu: weight, at least 0.
        threshold: K, the radius that is free.
        aggregate: ``"sum"`` over layers or ``"max"``, see :func:`mipprune.curvature.spectral_radius`.
        method, sharing: of the derivatives, see :func:`mipprune.curvature.kfac_factors`; ``"sketch"`` costs one
            backward pass and is unbiased in the moments and in their gradients, ``"exact"`` one pass for each class.
        iterations: power iterations per step.

    A step costs a forward pass, one backward pass for each root and one through all of that: about as much again as
    the training step, for ``"sketch"``.

    Attributes:
        vectors: layer -> (v of shape (groups, d), u of shape (groups, o)).

    Raises:
        ConfigError: an option out of range.
    """

    def __init__(
        self, mu: float, threshold: float = 0.0, *, aggregate: str = "sum", method: str = "sketch",
        sharing: str = "reduce", iterations: int = 1,
    ) -> None:
        if not 0 <= mu < float("inf") or not threshold >= 0 or iterations < 1:
            raise ConfigError(f"the flatness penalty needs mu >= 0, threshold >= 0 and iterations >= 1, "
                              f"got {mu}, {threshold}, {iterations}")
        if aggregate not in ("sum", "max") or method not in ("sketch", "exact") or sharing not in ("reduce", "expand"):
            raise ConfigError(f"the flatness penalty takes aggregate 'sum' or 'max', method 'sketch' or 'exact', "
                              f"sharing 'reduce' or 'expand'; got {aggregate!r}, {method!r}, {sharing!r}")
        self.mu, self.threshold, self.aggregate = mu, threshold, aggregate
        self.method, self.sharing, self.iterations = method, sharing, iterations
        self.vectors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, model: nn.Module, inputs: tuple[torch.Tensor, ...], draws: torch.Tensor) -> torch.Tensor:
        """The penalty on one batch, a scalar that can be differentiated in the weights."""
        return self.mu * (self.radius(model, inputs, draws) - self.threshold).clamp_min(0.0)

    def radius(self, model: nn.Module, inputs: tuple[torch.Tensor, ...], draws: torch.Tensor) -> torch.Tensor:
        """The radius rho on one batch at the present vectors, after following them.

        Args:
            model: run in evaluation mode and left in the mode it had.
            inputs: of one batch, (N, ...) each.
            draws: uniform numbers (N, n_draws), the seeds of the random signs; ``"exact"`` doesn't look at them.
        """
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with plain_attention(), Probes(probed_layers(model)) as probes:
                logits = probes.run(model, inputs)
                rows = {name: merge_positions(x, self.sharing, outputs=False) for name, x in probes.inputs().items()}
                back: dict[str, list[torch.Tensor]] = {name: [] for name in rows}
                for root in output_roots(logits, self.method, draws):
                    for name, grad in probes.pull_back(logits, root, create_graph=True).items():
                        back[name].append(merge_positions(grad, self.sharing, outputs=True))
        finally:
            for module, mode in modes:
                module.training = mode
        passes = 1 if self.method == "exact" else draws.shape[1]
        radii = [self._layer(name, rows[name], torch.cat(back[name], 1), passes) for name in rows]
        return torch.stack(radii).sum() if self.aggregate == "sum" else torch.stack(radii).max()

    def _layer(self, name: str, a: torch.Tensor, g: torch.Tensor, passes: int) -> torch.Tensor:
        v, u = self.vectors.get(name, (None, None))
        v, u = self._follow(a.detach(), v), self._follow(g.detach(), u)
        self.vectors[name] = v, u
        moment_a = torch.einsum("ntgi,gi->ntg", a, v).square().sum((0, 1)) / len(a)
        moment_g = torch.einsum("ntgi,gi->ntg", g, u).square().sum((0, 1)) / len(g) / passes
        return (moment_a * moment_g).max()  # over the groups of a grouped convolution

    def _follow(self, rows: torch.Tensor, vector: torch.Tensor | None) -> torch.Tensor:
        """Power iteration for the top eigenvector of ``rows' rows``, in every group."""
        steps = self.iterations
        if vector is None or vector.shape != rows.shape[2:]:
            generator = torch.Generator().manual_seed(START_SEED)
            vector = torch.randn(rows.shape[2:], generator=generator, dtype=torch.float64).to(rows)
            steps = max(steps, FIRST_ITERATIONS)
        for _ in range(steps):
            new = torch.einsum("ntgi,ntg->gi", rows, torch.einsum("ntgi,gi->ntg", rows, vector))
            norm = new.norm(dim=1, keepdim=True)
            vector = torch.where(norm > 0, new / norm.clamp_min(torch.finfo(norm.dtype).tiny), vector)
        return vector
