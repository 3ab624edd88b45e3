"""Several processes or GPUs through torch.distributed, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

if dist.is_available():
    # its functions have the default group as a default argument: imported once there is one, by torch.export, they
    # would keep it and its threads past close(), and such a thread can abort the process while Python ends
    import torch.distributed.nn.functional  # noqa: F401

from .errors import ConfigError
from .estimate.communicator import Communicator

__all__ = ["TorchCommunicator"]


class TorchCommunicator(Communicator):
    """The processes of a torch.distributed group, for ``communicator=`` of the estimators.

    Results travel through the CPU with gloo, whatever device a rank's game runs on, so a GPU per rank needs no NCCL::

        communicator = mp.TorchCommunicator()                       # in a script that torchrun starts
        model.to(f"cuda:{communicator.local_rank}")                 # where there are GPUs
        mp.shapley(game, n_evals=50_000, seed=0, communicator=communicator)

    Args:
        group: a group that can gather CPU objects (gloo).  By default a gloo group of all processes; if the default
            group isn't initialised yet, it's done here from the environment that torchrun sets.

    Raises:
        ConfigError: torch.distributed isn't there, or the process wasn't started by torchrun and has no group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available():
            raise ConfigError("this torch was built without torch.distributed")
        if not dist.is_initialized():
            if "RANK" not in os.environ:
                raise ConfigError("no process group: start the script with `torchrun --nproc-per-node N script.py`, or "
                                  "call torch.distributed.init_process_group before")
            dist.init_process_group("gloo")
        if group is None and dist.get_backend() != "gloo":
            group = dist.new_group(backend="gloo")  # NCCL sends tensors of GPUs only
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine: which GPU it should use."""
        return int(os.environ.get("LOCAL_RANK", self.rank))

    def gather(self, mine: Any) -> list[Any]:
        """Every rank's ``mine``, by rank.  Objects are pickled between these processes; nothing touches a file."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self.group)
        return found

    def close(self) -> None:
        """End the default process group: call it last in a script."""
        if dist.is_initialized():
            dist.destroy_process_group()
