"""A LightningModule that trains any network to tell classes apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from lightning_effnn.formats.tagging import aside
from lightning_effnn.modules._teaching import divergence

Batch = tuple[Tensor, Tensor]


class ImageClassifier(L.LightningModule):
    """Cross-entropy, accuracy, SGD or AdamW, and a cosine schedule around any network.

    Logs ``train/loss``, ``val/loss``, ``val/acc``, ``test/loss`` and ``test/acc``.

    Args:
        net: any module from inputs ``[B, ...]`` to class scores ``[B, num_classes]``; its ``example_input_array``, if
            it has one, becomes the model's.
        num_classes: length of the scores.
        optimizer: ``"sgd"`` (with momentum) or ``"adamw"``.
        lr: learning rate at the start; usually 0.1 for SGD and 0.001 for AdamW.
        weight_decay: decay of weights; biases and normalisation are left alone.
        momentum: momentum of SGD.
        schedule: ``"cosine"`` falls to zero over the fit, ``"constant"`` stays.
        label_smoothing: share of the label spread over all classes.
        input_shape: shape of one input; where it is given, a random one becomes the ``example_input_array``.
        teacher: a trained network whose scores are learned beside the labels; it stays as it is, and is no part of the
            model's state.
        distillation: share of the loss that is the teacher's: the divergence of both softmaxes at ``temperature``.
        temperature: by which scores are divided for it.

    Source: distillation: Hinton, Vinyals and Dean (2015), arXiv 1503.02531, section 2.

    >>> from lightning_effnn.modules import SmallCNN
    >>> model = ImageClassifier(SmallCNN(), input_shape=(1, 8, 8))
    >>> model(model.example_input_array).shape
    torch.Size([1, 10])
    """

    teacher: nn.Module | None

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        schedule: Literal["cosine", "constant"] = "cosine",
        label_smoothing: float = 0.0,
        input_shape: Sequence[int] | None = None,
        teacher: nn.Module | None = None,
        distillation: float = 0.9,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        _check("optimizer", optimizer, ("sgd", "adamw"))
        _check("schedule", schedule, ("cosine", "constant"))
        if lr <= 0:
            raise ValueError(f"lr is {lr}: use a positive learning rate")
        if not 0 <= distillation <= 1:
            raise ValueError(f"distillation is {distillation}: use a share of the loss from 0 to 1")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}: use a positive number")
        self.save_hyperparameters(ignore=["net", "teacher"])
        self.net = net
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.distillation = distillation
        self.temperature = temperature
        # not registered: its weights are nobody's to train, save or average
        self.__dict__["teacher"] = None if teacher is None else teacher.eval().requires_grad_(False)
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")
        self.example_input_array = getattr(net, "example_input_array", None)
        if input_shape is not None:
            # Its own generator: whether a shape is given must not move the training's random numbers.
            generator = torch.Generator().manual_seed(0)
            self.example_input_array = torch.rand(1, *input_shape, generator=generator, device="cpu")

    def forward(self, inputs: Tensor) -> Tensor:
        """Return class scores ``[B, num_classes]``."""
        scores: Tensor = self.net(inputs)
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        inputs, labels = batch
        scores = self(inputs)
        loss = F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)
        if self.teacher is not None:
            with torch.no_grad(), aside():  # what the model costs is not what its teacher does
                target: Tensor = self.teacher.to(inputs.device)(inputs)
            loss = (1 - self.distillation) * loss + self.distillation * divergence(scores, target, self.temperature)
        self.log("train/loss", loss, batch_size=len(labels), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate("val", batch, self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy."""
        self._evaluate("test", batch, self.test_acc)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, with a cosine schedule by step where one is wanted."""
        optimizer = self._build_optimizer()
        if self.schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise ValueError("schedule is 'cosine', but the fit has no end: set max_epochs, or use 'constant'")
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def _evaluate(self, stage: str, batch: Batch, accuracy: MulticlassAccuracy) -> None:
        inputs, labels = batch
        scores = self(inputs)
        accuracy.update(scores, labels)
        loss = F.cross_entropy(scores, labels)
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}/acc", accuracy, batch_size=len(labels), prog_bar=True)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum)
        return torch.optim.AdamW(groups, lr=self.lr)


def _check(argument: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{argument} is {value!r}: use one of {', '.join(accepted)}")
