"""A small, honest fine-tuning loop."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from ..errors import ConfigError, DataError
from ..game.data import LabelledData, check_samples, read_data
from ..game.values import check_class_targets

__all__ = ["FineTuned", "fine_tune"]


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """What :func:`fine_tune` returns.

    Attributes:
        model: a trained copy, in the original's mode: the checkpoint of lowest validation loss.
        losses: validation cross-entropy in nats, before training and after every epoch.
        best_epoch: the epoch that ``model`` is from; 0 is the network as it came.
    """

    model: nn.Module
    losses: tuple[float, ...]
    best_epoch: int


def fine_tune(
    model: nn.Module, data: Any, *, validation: Any, teacher: nn.Module | None = None, epochs: int = 5,
    lr: float = 1e-3, weight_decay: float = 1e-3, batch_size: int = 64, temperature: float = 4.0, seed: int = 0,
    progress: bool = True,
) -> FineTuned:
    """Train a copy of ``model`` by AdamW with a one-cycle schedule; keep the epoch with the lowest validation loss.

    Args:
        data: what is trained on, in any form that :func:`mipprune.prune` takes.
        validation: picks the checkpoint; keep the test data out of it.
        teacher: the dense network; with one, the loss is half cross-entropy and half ``t^2 KL`` to its outputs
            softened at ``temperature`` (1503.02531).
        epochs, batch_size: of the training.
        lr: highest learning rate.
        weight_decay: of AdamW.
        seed: of the order of the samples and dropout.
        progress: show a progress bar.

    Ctrl-C ends training; the best checkpoint so far is returned.

    Raises:
        ConfigError: no epoch, a rate or temperature that isn't above 0, a teacher of another output.
        DataError: data that can't be read, are empty, hold NaN, or don't fit the network.
    """
    if epochs < 1 or not lr > 0 or batch_size < 1:
        raise ConfigError(f"fine_tune needs epochs >= 1, lr > 0 and batch_size >= 1, got {epochs}, {lr}, {batch_size}")
    if not isinstance(epochs, int) or not isinstance(batch_size, int):
        raise ConfigError(f"fine_tune: epochs and batch_size are whole numbers, got {epochs} and {batch_size}")
    if not weight_decay >= 0 or not temperature > 0:
        raise ConfigError(f"fine_tune needs weight_decay >= 0 and temperature > 0, got {weight_decay}, {temperature}")
    samples, held = read_data(data, model, "training data"), read_data(validation, model, "validation data")
    for part, what in ((samples, "training data"), (held, "validation data")):
        _check_fit(model, part, what, teacher)
    student = copy.deepcopy(model)
    soft = None if teacher is None else _softened(teacher, samples, temperature)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay)
    batches = -(-len(samples) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * batches)
    generator = torch.Generator().manual_seed(seed)
    losses = [_loss(student, held)]
    best, best_epoch = copy.deepcopy(student.state_dict()), 0
    try:
        for epoch in tqdm(range(1, epochs + 1), desc="fine-tuning", disable=not progress, leave=False):
            student.train()
            for index in torch.randperm(len(samples), generator=generator).split(batch_size):
                if len(index) == 1:
                    continue  # batch-norm has no variance over a single sample
                part = samples.take(index.to(samples.targets.device))
                logits = student(*part.inputs)
                loss = F.cross_entropy(logits, part.targets.long())
                if soft is not None:
                    apart = F.kl_div(F.log_softmax(logits / temperature, 1), soft[index], reduction="batchmean")
                    loss = 0.5 * loss + 0.5 * temperature**2 * apart
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            losses.append(_loss(student, held))
            if losses[-1] < losses[best_epoch]:
                best, best_epoch = copy.deepcopy(student.state_dict()), epoch
    except KeyboardInterrupt:
        pass
    student.load_state_dict(best)
    return FineTuned(student.train(model.training), tuple(losses), best_epoch)


@torch.no_grad()
def _check_fit(model: nn.Module, part: LabelledData, what: str, teacher: nn.Module | None) -> None:
    check_samples(part, what)
    outputs = []
    for network in (model,) if teacher is None else (model, teacher):
        was = network.training
        network.eval()
        try:
            outputs.append(network(*part.take(slice(0, 1)).inputs))
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in part.inputs)
            who = "network" if network is model else "teacher"
            raise DataError(f"{what}: the {who} doesn't run on inputs of shape {shapes}: {error}") from error
        finally:
            network.train(was)
    check_class_targets(outputs[0], part.targets, what)
    if outputs[-1].shape != outputs[0].shape:
        raise ConfigError(f"the teacher puts out {outputs[-1].shape[1:]}, the network {outputs[0].shape[1:]}")


@torch.no_grad()
def _softened(teacher: nn.Module, samples: LabelledData, temperature: float) -> torch.Tensor:
    was = teacher.training
    teacher.eval()
    try:
        logits = torch.cat([teacher(*part.inputs) for part in samples.batches()])
    finally:
        teacher.train(was)
    return torch.softmax(logits / temperature, 1)


@torch.no_grad()
def _loss(model: nn.Module, data: LabelledData) -> float:
    model.eval()
    total = sum(float(F.cross_entropy(model(*p.inputs), p.targets.long(), reduction="sum")) for p in data.batches())
    return total / len(data)
