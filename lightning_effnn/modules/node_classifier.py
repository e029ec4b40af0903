"""A LightningModule that trains a network to name the classes of a graph's nodes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_effnn._files import write_whole
from lightning_effnn.modules._nodes import Graph, Teacher, node_accuracy, node_loss, node_mask, parameter_groups


class NodeClassifier(L.LightningModule):
    """Cross-entropy on the training nodes of one graph with Adam; the weights of the best validation are those kept.

    A batch is a torch-geometric ``Data`` with ``x``, ``edge_index``, ``y`` and the masks ``train_mask``, ``val_mask``,
    ``test_mask``. Training ends when validation hasn't improved for ``patience`` epochs. The best weights so far are
    kept in memory and put back at the end of the fit, so that a test is of these. With ``patience=None`` training goes
    on to the end and the last weights stay, as a callback needs that changes the weights for good. Logs
    ``train/loss``, ``val/loss``, ``val/acc``, ``test/loss`` and ``test/acc``.

    With a ``teacher`` the divergence of the softmax from the teacher's, over all nodes, joins the loss. Where labels
    are few, networks of few bits lose least this way.

    Args:
        net: from features ``[N, C]`` and edges ``[2, E]`` to scores ``[N, num_classes]``.
        lr: learning rate.
        weight_decay: of matrices.
        patience: epochs without a better validation after which training ends; None for never.
        teacher: a trained network, called as ``net``; it stays as it is, and is no part of the model's state.
        export: path of the safetensors file of the net's weights, written at the end of the fit; None writes none.

    Raises:
        ValueError: a learning rate that is not positive, or a patience below 1; in training, a graph without training
            nodes, or a teacher whose scores have another shape.

    Source: optimiser and numbers are those of Kipf and Welling (2017), arXiv 1609.02907, section 5.2; teaching: Hinton,
    Vinyals and Dean (2015), arXiv 1503.02531, section 2, at temperature 1.

    >>> from lightning_effnn.search.graph import GraphNet, GraphNetConfig
    >>> NodeClassifier(GraphNet(GraphNetConfig.gcn(32, 4))).patience
    100
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        patience: int | None = 100,
        teacher: nn.Module | None = None,
        export: str | Path | None = None,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr is {lr}: use a positive learning rate")
        if patience is not None and patience < 1:
            raise ValueError(f"patience is {patience}: use a whole number of at least 1")
        self.save_hyperparameters(ignore=["net", "teacher"])
        self.net = net
        self.teacher = None if teacher is None else Teacher(teacher)
        self.lr = lr
        self.weight_decay = weight_decay
        self.patience = patience
        self.export = export
        self.best_epoch = -1
        self._best: tuple[float, float] | None = None  # accuracy, and minus the loss where accuracies are equal
        self._best_weights: dict[str, Tensor] | None = None

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return scores ``[N, num_classes]``."""
        scores: Tensor = self.net(x, edge_index)
        return scores

    def training_step(self, batch: Graph, batch_idx: int) -> Tensor | None:
        """Return the loss of the training nodes; a mini-batch without any is passed over."""
        mask = node_mask(batch, "train_mask")
        if mask is None:
            if self.trainer.num_training_batches == 1:
                raise ValueError("train_mask of the graph is empty: at least one training node is needed")
            return None
        scores = self(batch.x, batch.edge_index)
        loss = node_loss(scores, batch.y, mask)
        if self.teacher is not None:
            loss = loss + self.teacher.divergence(scores, batch)
        self.log("train/loss", loss, batch_size=int(mask.sum()), prog_bar=True)
        return loss

    def validation_step(self, batch: Graph, batch_idx: int) -> None:
        """Log loss and accuracy of the validation nodes."""
        self._evaluate("val", batch)

    def test_step(self, batch: Graph, batch_idx: int) -> None:
        """Log loss and accuracy of the test nodes."""
        self._evaluate("test", batch)

    def on_validation_end(self) -> None:
        """Keep the weights if they are the best so far; end the fit if it is long since they were."""
        metrics = self.trainer.callback_metrics
        if self.patience is None or self.trainer.sanity_checking or "val/acc" not in metrics:
            return
        found = float(metrics["val/acc"]), -float(metrics["val/loss"])
        if self._best is None or found > self._best:
            self._best, self.best_epoch = found, self.current_epoch
            self._best_weights = copy.deepcopy(self.net.state_dict())
        elif self.current_epoch - self.best_epoch >= self.patience:
            self.trainer.should_stop = True

    def on_fit_end(self) -> None:
        """Put the best weights back; write them, where a path was given."""
        if self._best_weights is not None:
            self.net.load_state_dict(self._best_weights)
        if self.export is not None and self.trainer.is_global_zero:
            state = {name: tensor.contiguous() for name, tensor in self.net.state_dict().items()}
            write_whole(self.export, lambda beside: save_file(state, beside))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the best weights so far."""
        checkpoint["best"] = {"found": self._best, "epoch": self.best_epoch, "weights": self._best_weights}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the best weights so far."""
        best = checkpoint.get("best", {})
        self._best = tuple(best["found"]) if best.get("found") else None
        self.best_epoch, self._best_weights = best.get("epoch", -1), best.get("weights")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameter_groups(self.net, self.lr, self.weight_decay))

    def _evaluate(self, stage: str, batch: Graph) -> None:
        mask = node_mask(batch, f"{stage}_mask")
        if mask is None:
            return
        scores = self(batch.x, batch.edge_index)
        size = int(mask.sum())
        self.log(f"{stage}/loss", node_loss(scores, batch.y, mask), batch_size=size)
        self.log(f"{stage}/acc", node_accuracy(scores, batch.y, mask), batch_size=size, prog_bar=True)
