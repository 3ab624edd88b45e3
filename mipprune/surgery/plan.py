"""Prune plans: which original units stay, as pure data that any copy of the dense network can be cut with."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import nn

from ..errors import PlanError
from ..graph import UnitGraph
from ..graph.attention_module import PrunableMultiheadAttention
from ..records import Record, frozen_array, read_json
from .hollow import hollow_out
from .rewriting import SizeRewrite, apply_rewrites
from .stub import Stub

__all__ = ["AttributeRepair", "KeptUnits", "ModuleRemoval", "PrunePlan", "SizeRewrite", "TensorCut", "ranges"]


@dataclasses.dataclass(frozen=True, eq=False)
class KeptUnits(Record):
    """Which units of one group stay.

    Attributes:
        group: module path of the layer that makes them.
        producers: all layers that make them.
        size: units in the dense network.
        kept: int64, ascending, in the dense network's numbering.
    """

    group: str
    producers: tuple[str, ...]
    size: int
    kept: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TensorCut(Record):
    """Which indices of one dimension of one parameter or buffer stay.

    Attributes:
        tensor: name of the parameter or buffer.
        dim: the dimension that is cut.
        size: its dense size.
        kept: the indices that stay, int64, ascending, in the dense numbering.
    """

    tensor: str
    dim: int
    size: int
    kept: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class AttributeRepair(Record):
    """An integer attribute of a module that counts units: its dense value ``old`` becomes ``new``.

    ``index`` is its place in a tuple, -1 if it isn't in one.
    """

    module: str
    attribute: str
    index: int
    old: int
    new: int


@dataclasses.dataclass(frozen=True, eq=False)
class ModuleRemoval(Record):
    """A module that a :class:`~mipprune.surgery.stub.Stub` takes the place of; ``returns`` says what that returns."""

    module: str
    returns: str


@dataclasses.dataclass(frozen=True, eq=False)
class PrunePlan(Record):
    """Everything that surgery needs, and nothing else: no weights, no code.

    Attributes:
        architecture: fingerprint of the dense network (names and shapes of its parameters and buffers).
        groups: the kept units, for people.
        cuts: the kept indices of every tensor that shrinks, for :meth:`apply`.
        repairs: the integer attributes (``num_heads``, ``groups``, ...) that change with them.
        rewrites: sizes in the code of methods that no attribute repairs; the plan says where, not what the code is.
        removals: the modules that leave as a whole, with coarse units (:func:`mipprune.coarsen`).
    """

    architecture: str
    groups: tuple[KeptUnits, ...]
    cuts: tuple[TensorCut, ...]
    repairs: tuple[AttributeRepair, ...] = ()
    rewrites: tuple[SizeRewrite, ...] = ()
    removals: tuple[ModuleRemoval, ...] = ()

    @classmethod
    def from_mask(cls, graph: UnitGraph, kept: np.ndarray) -> Self:
        """The plan that keeps the units of the bool mask ``kept`` of shape (graph.n_units,).

        Raises:
            PlanError: a mask of another shape, or one that empties a group that must not be empty.
        """
        kept = np.asarray(kept, dtype=bool)
        if kept.shape != (graph.n_units,):
            raise PlanError(f"expected a mask of {graph.n_units} units, got shape {kept.shape}")
        for group in graph.groups:
            if group.fewest > 0 and not kept[group.units].any():
                raise PlanError(f"the mask removes every unit of {group.name!r}; keep at least one (min_keep=1), or "
                                f"let mipprune.allow_empty(graph, x) say which groups may be emptied")
        groups = tuple(
            KeptUnits(g.name, g.producers, g.size, frozen_array(np.flatnonzero(kept[g.units]), np.int64))
            for g in graph.groups
        )
        cuts = []
        for (tensor, dim), units in sorted(graph.unit_sites.items()):
            stays = np.where(units < 0, True, kept[units])
            if not stays.all():
                cuts.append(TensorCut(tensor, dim, len(units), frozen_array(np.flatnonzero(stays), np.int64)))
        repairs = (
            AttributeRepair(a.module, a.attribute, a.index, a.constant + len(a.units),
                            a.constant + int(kept[a.units].sum()))
            for a in graph.attributes
        )
        changed = tuple(r for r in repairs if r.new != r.old)
        removals = tuple(ModuleRemoval(removal.module, removal.returns)
                         for unit, stays in zip(graph.coarse, kept.tolist()) if not stays for removal in unit.removals)
        rewrites = tuple(SizeRewrite.of(site, kept) for site in graph.rewrites) if cuts else ()
        return cls(fingerprint(graph.model), groups, tuple(cuts), changed, rewrites, removals)

    @property
    def n_kept(self) -> int:
        """Units that stay."""
        return sum(len(g.kept) for g in self.groups)

    @property
    def n_units(self) -> int:
        """Units of the dense network."""
        return sum(g.size for g in self.groups)

    def kept_indices(self, tensor: str) -> dict[int, np.ndarray]:
        """Kept indices of a parameter or buffer: dimension -> int64, ascending, in the dense network's numbering.

        Dimensions that keep everything are left out, so an uncut tensor (or an unknown name) gives ``{}``.
        """
        return {cut.dim: cut.kept for cut in self.cuts if cut.tensor == tensor}

    def cut(self, names: str | Sequence[str], tensor: torch.Tensor) -> torch.Tensor:
        """The kept part of a ``tensor`` of the shape of the dense parameter with that name (or those tied names)."""
        for step in self.cuts:
            if step.tensor == names or (not isinstance(names, str) and step.tensor in names):
                tensor = tensor.index_select(step.dim, torch.from_numpy(step.kept.copy()).to(tensor.device))
        return tensor

    def removes(self, tensor: str) -> bool:
        """Whether the parameter or buffer leaves as a whole."""
        return any(tensor.startswith(f"{removal.module}.") for removal in self.removals)

    def check_pruned(self, dense: nn.Module, pruned: nn.Module) -> None:
        """Raise :class:`PlanError` unless ``pruned`` has the shapes that this plan makes of ``dense``."""
        self._check(dense)
        tied: dict[int, list[str]] = {}
        tensors = {n: t for n, t in dense.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}
        for name, tensor in tensors.items():
            tied.setdefault(id(tensor), []).append(name)
        found = {n: tuple(t.shape) for n, t in pruned.state_dict().items() if isinstance(t, torch.Tensor)}
        for name, tensor in tensors.items():
            if self.removes(name):
                if name in found:
                    raise PlanError(f"{name!r} leaves with this plan, but is in the pruned network")
                continue
            expected = tuple(self.cut(tied[id(tensor)], tensor.detach().to("meta")).shape)
            if found.get(name) != expected:
                raise PlanError(f"{name!r} has shape {expected} after this plan, but "
                                f"{found.get(name, 'no tensor of that name')} in the pruned network")

    def apply(self, model: nn.Module) -> nn.Module:
        """A smaller copy of the dense ``model``; the model itself isn't touched.

        Raises:
            PlanError: the plan was made for another architecture; names the first tensor that differs.
        """
        self._check(model)
        small = copy.deepcopy(model)
        self._replace_attentions(small)
        for removal in self.removals:
            small.set_submodule(removal.module, Stub(small.get_submodule(removal.module), removal.returns))
        tensors = _tensors(small)
        cut: dict[int, torch.Tensor] = {}
        for step in self.cuts:
            old = tensors[step.tensor]
            now = cut.get(id(old), old.detach())
            cut[id(old)] = now.index_select(step.dim, torch.from_numpy(step.kept.copy()).to(now.device))
        with torch.no_grad():
            for module in small.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and id(parameter) in cut:
                        new = cut[id(parameter)]
                        if not isinstance(new, nn.Parameter):  # tied weights stay one tensor
                            new = nn.Parameter(new.contiguous(), requires_grad=parameter.requires_grad)
                            cut[id(parameter)] = new
                        module._parameters[name] = new
                for name, buffer in module._buffers.items():
                    if buffer is not None and id(buffer) in cut:
                        module._buffers[name] = cut[id(buffer)].contiguous()
        for repair in self.repairs:
            _set_attribute(small, repair)
        apply_rewrites(small, self.rewrites)
        for module in small.modules():
            _repair_attributes(module)
            hollow_out(module)
        return small

    def _replace_attentions(self, model: nn.Module) -> None:
        """Torch's own attention can't lose heads or channels: ours takes the place of those that are cut."""
        cut = {step.tensor.rpartition(".")[0].removesuffix(".out_proj") for step in self.cuts}
        beside = {removal.module.rpartition(".")[0] for removal in self.removals}  # a fused layer reads its neighbours
        for path, module in list(model.named_modules()):
            if (path in cut or path.rpartition(".")[0] in beside) and PrunableMultiheadAttention.supports(module):
                assert isinstance(module, nn.MultiheadAttention)
                model.set_submodule(path, PrunableMultiheadAttention(module))

    def _check(self, model: nn.Module) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        for repair in self.repairs:
            if _get_attribute(modules.get(repair.module), repair) != repair.old:
                raise PlanError(f"the plan was made for a model whose {repair.module}.{repair.attribute} is "
                                f"{repair.old}; apply the plan to the dense model")
        for removal in self.removals:
            if removal.module not in modules:
                raise PlanError(f"the plan removes {removal.module!r}, which {type(model).__name__} doesn't have; "
                                f"it was made for another architecture")
        shapes = {name: tuple(t.shape) for name, t in _tensors(model).items()}
        for step in self.cuts:
            if step.tensor not in shapes:
                raise PlanError(f"the plan cuts {step.tensor!r}, which {type(model).__name__} doesn't have; "
                                f"it was made for another architecture")
            shape = shapes[step.tensor]
            if step.dim >= len(shape) or shape[step.dim] != step.size:
                raise PlanError(f"the plan was made for {step.tensor!r} with {step.size} entries in dimension "
                                f"{step.dim}, this model's has shape {shape}; apply the plan to the dense model")
        if fingerprint(model) != self.architecture:
            raise PlanError(f"the plan was made for another architecture than this {type(model).__name__} "
                            f"(parameter names or shapes differ)")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a plan from the JSON file ``path``.

        Raises:
            PlanError: the file isn't a plan, or its indices make no sense.
        """
        try:
            return cls.from_dict(read_json(path)).checked()
        except OSError:
            raise
        except Exception as error:
            raise PlanError(f"{path}: not a prune plan ({error})") from error

    def checked(self) -> Self:
        """The plan itself, once its indices are known to be in range and ascending.

        Raises:
            PlanError: they aren't.
        """
        for what, size, kept in [(g.group, g.size, g.kept) for g in self.groups] + [
            (c.tensor, c.size, c.kept) for c in self.cuts
        ]:
            if not np.issubdtype(kept.dtype, np.integer) or kept.ndim != 1:
                raise PlanError(f"{what!r}: expected a list of kept indices")
            if (kept < 0).any() or (kept >= size).any() or (np.diff(kept) <= 0).any():
                raise PlanError(f"{what!r}: kept indices must be ascending and lie in [0, {size})")
        return self

    def __str__(self) -> str:
        lines = [f"keeps {self.n_kept} of {self.n_units} units"]
        for g in self.groups:
            removed = sorted(set(range(g.size)) - set(g.kept.tolist()))
            lines.append(f"  {g.group}: {len(g.kept)} of {g.size}; removed {ranges(removed)}")
        return "\n".join(lines)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under all their names, also what ``state_dict`` leaves out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and dtypes of all parameters and buffers."""
    digest = hashlib.sha256()
    tensors = {name: t for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {'f' if tensor.is_floating_point() else 'i'}\n".encode())
    return digest.hexdigest()


def _get_attribute(module: nn.Module | None, repair: AttributeRepair) -> object:
    value = getattr(module, repair.attribute, None)
    if repair.index < 0 or not isinstance(value, (tuple, list)):
        return value
    return value[repair.index] if repair.index < len(value) else None


def _set_attribute(model: nn.Module, repair: AttributeRepair) -> None:
    module = model.get_submodule(repair.module)
    value: object = repair.new
    if repair.index >= 0:
        old = getattr(module, repair.attribute)
        value = type(old)([*old[: repair.index], repair.new, *old[repair.index + 1 :]])
    setattr(module, repair.attribute, value)


def _repair_attributes(module: nn.Module) -> None:
    """Make the numbers that a module keeps beside its weights agree with their new shapes."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[0], module.weight.shape[1] * module.groups
        module.out_channels, module.in_channels = (second, first) if module.transposed else (first, second)
    elif isinstance(module, nn.RNNBase):
        weights = dict(module.named_parameters())
        module.input_size, module.hidden_size = (int(weights[f"weight_{k}_l0"].shape[1]) for k in ("ih", "hh"))
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    elif isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
    elif isinstance(module, PrunableMultiheadAttention):
        module.embed_dim = module.out_proj.weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        if module.weight is not None:
            module.num_channels = len(module.weight)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vectors = [v for v in (module.weight, module.running_mean) if v is not None]
        if vectors:
            module.num_features = len(vectors[0])
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def ranges(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2, 5``."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts) or "none"
