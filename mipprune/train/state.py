"""The state of a training run that loses units, and its file: safetensors with JSON inside, replaced atomically."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from ..errors import DataError
from ..graph import UnitGraph
from ..records import frozen_array, write_bytes_atomic
from ..surgery import PrunePlan, transfer_optimizer
from .schedule import PruningEvent

__all__ = ["TrainingState", "identity"]

_KEY = "mipprune.training"


@dataclasses.dataclass
class TrainingState:
    """Everything that the rest of a run depends on, between two epochs.

    Attributes:
        model: the network with the units that are left, in training mode.
        optimizer: of its parameters.
        kept: bool (n_units,), the units that are left in the dense network's numbering.
        epoch: epochs done.
        vectors: the flatness penalty's eigenvectors.
        events, losses, radii: the history; one training loss and one spectral radius per epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    kept: np.ndarray
    epoch: int = 0
    vectors: dict[str, tuple[torch.Tensor, torch.Tensor]] = dataclasses.field(default_factory=dict)
    events: list[PruningEvent] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    radii: list[float] = dataclasses.field(default_factory=list)

    def remove(self, dense: UnitGraph, small: UnitGraph, kept: np.ndarray) -> None:
        """Keep only the units ``kept`` of the present network, whose graph is ``small``; momentum goes with them.

        A single unit that is left of a group may not be a unit of ``small`` any more (it looks like a constant size).
        """
        plan = PrunePlan.from_mask(small, kept)
        model = plan.apply(self.model)
        self.optimizer = transfer_optimizer(plan, self.model, model, self.optimizer)
        number = np.full(small.n_units, -1)
        for site, units in small.unit_sites.items():  # the dense number of every unit that is left
            own = dense.unit_sites[site]
            left = own[np.where(own < 0, True, self.kept[own])]
            number[units[units >= 0]] = left[units >= 0]
        mask = self.kept.copy()
        mask[number[~kept]] = False
        self.model, self.kept = model, mask  # vectors of another shape start anew

    def save(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        """Write the state; a reader sees the old file or the new one."""
        tensors = {f"model/{name}": t for name, t in _own_tensors(self.model).items()}
        scalars: dict[str, float] = {}
        for i, parameter in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer/{i}/{key}"] = value
                else:
                    scalars[f"{i}/{key}"] = value
        for layer, (v, u) in self.vectors.items():
            tensors[f"flatness/{layer}/v"], tensors[f"flatness/{layer}/u"] = v, u
        document = {
            "settings": settings, "epoch": self.epoch, "kept": np.flatnonzero(self.kept).tolist(), "scalars": scalars,
            "events": [event.to_dict() for event in self.events], "losses": self.losses, "radii": self.radii,
        }
        stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        payload = safetensors.torch.save(stored, metadata={_KEY: json.dumps(document, allow_nan=False)})
        write_bytes_atomic(path, payload)

    def load(self, path: str | os.PathLike[str], settings: dict[str, Any], dense: UnitGraph) -> None:
        """Go on from a file; this state must be a fresh one, of the dense network.

        Raises:
            DataError: the file is no checkpoint, or one of another network, data or settings; it is left alone.
        """
        document, tensors = _read(Path(path))
        for name in sorted(settings.keys() | document["settings"].keys()):
            now, then = settings.get(name), document["settings"].get(name)
            if now != then:
                raise DataError(f"{path}: saved with {name}={then!r}, but this run has {name}={now!r}; resume with "
                                f"equal settings, or name another file")
        kept = np.zeros(dense.n_units, dtype=bool)
        kept[document["kept"]] = True
        plan = PrunePlan.from_mask(dense, kept)
        model = plan.apply(self.model)
        self.optimizer = transfer_optimizer(plan, self.model, model, self.optimizer)
        self.model, self.kept, self.epoch = model, kept, document["epoch"]
        with torch.no_grad():
            for name, tensor in _own_tensors(model).items():
                tensor.copy_(tensors[f"model/{name}"])
        scalars: dict[str, float] = document["scalars"]
        for i, parameter in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            own: dict[str, Any] = {k.partition("/")[2]: v for k, v in scalars.items() if k.partition("/")[0] == str(i)}
            for name, tensor in tensors.items():
                kind, _, rest = name.partition("/")
                if kind == "optimizer" and rest.partition("/")[0] == str(i):
                    # Adam's step counter lives on the CPU, moments beside their parameter
                    own[rest.partition("/")[2]] = tensor.to(parameter.device) if tensor.ndim else tensor
            self.optimizer.state[parameter] = own
        device = next(model.parameters()).device
        layers = {name[len("flatness/"):-2] for name in tensors if name.startswith("flatness/")}
        self.vectors = {
            layer: (tensors[f"flatness/{layer}/v"].to(device), tensors[f"flatness/{layer}/u"].to(device))
            for layer in layers
        }
        self.events = [PruningEvent.from_dict(event) for event in document["events"]]
        self.losses, self.radii = document["losses"], document["radii"]


def identity(model: nn.Module, tensors: tuple[torch.Tensor, ...]) -> str:
    """SHA-256 over the weights of ``model`` and the data: what a checkpoint belongs to."""
    digest = hashlib.sha256()
    for name, tensor in [*sorted(model.state_dict().items()), *((str(i), t) for i, t in enumerate(tensors))]:
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(frozen_array(array, array.dtype).tobytes())
    return digest.hexdigest()


def _own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, also those that a state_dict leaves out; tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[_KEY])
            return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except OSError:
        raise
    except Exception as error:
        raise DataError(f"{path}: not a checkpoint of train_and_prune ({error})") from error
