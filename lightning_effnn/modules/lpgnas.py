"""A LightningModule that finds a graph network together with the bits of each of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_effnn._random import random_state_kept
from lightning_effnn.hardware import Accelerator
from lightning_effnn.hardware.engines import check_prices_operations
from lightning_effnn.modules._nodes import (
    Graph,
    held_out,
    node_accuracy,
    node_loss,
    node_mask,
    parameter_groups,
    step_seed,
)
from lightning_effnn.quantization.quantizer import scales_kept
from lightning_effnn.search.controller import Controller, Gates
from lightning_effnn.search.graph import COSTS, GraphNet, GraphSpace, LogCost, SuperGraphNet, graph_cost, graph_sizes
from lightning_effnn.search.graph.config import ACTIVATIONS, AGGREGATIONS, ATTENTIONS, FULL, SKIPS
from lightning_effnn.search.graph.costs import graph_extents
from lightning_effnn.search.plots import plot_choices
from lightning_effnn.search.surrogate import AdditiveSurrogate


class LPGNAS(L.LightningModule):
    """One round of search for the architecture and the quantisation of a graph network.

    Two controllers choose: one the parts of each block, one the bits of each weight and activation. After a warm-up of
    the shared weights, steps alternate: weights on the training nodes, with a sampled network; controllers on the
    validation nodes (a quarter of the training nodes where there are none), with ``error + cost_weight * cost``. The
    error rate that is expected of the choices is learned from ``samples`` sampled networks a step, by
    :class:`~lightning_effnn.search.surrogate.AdditiveSurrogate`; the cost is
    :class:`~lightning_effnn.search.graph.LogCost`, 1 for the largest network in fp32. :meth:`derive` gives the network
    that is ahead.

    Each step's random numbers follow from the seed, the epoch and the batch: a fit that is interrupted and resumed ends
    bit-identical to one that wasn't. If a loss is not finite, its step is left out, the choices stay as they are from
    there on, and a warning says so.

    Logs ``train/loss``, ``val/loss``, ``val/acc`` (of the network ahead, with shared weights), and each epoch
    ``search/bits_w`` and ``search/bits_a`` (mean bits of its weights and activations), ``search/cost`` (expected) and
    ``search/entropy`` (1 all open, 0 decided).

    Args:
        in_channels, num_classes: of the data.
        num_layers, hidden_channels, attention, aggregation, activation, skip, w_bits, a_bits, dropout, norm: the
            space, see :class:`~lightning_effnn.search.graph.GraphSpace`; ``w_bits=(32,), a_bits=(32,)`` chooses parts
            alone, ``norm="mean"`` is for graphs of many edges a node.
        cost: ``"energy"``, ``"bits"`` or ``"bops"``.
        accelerator: for energy: a preset's name or a YAML file.
        cost_weight: errors that are put up with (0.1: ten in a hundred) for going all the way from the largest network
            in fp32 to the smallest one.
        samples: networks a step of the controllers.
        warmup: share of the fit before the first choice.
        lr, weight_decay: of the weights.
        controller_lr: of the controllers.
        seed: of all random numbers.
        export: path of the YAML of the network ahead, written at the end of the fit; a figure of how choices settled is
            put beside it where matplotlib is installed. None writes nothing.

    Raises:
        ValueError: an argument out of range, an accelerator that is unknown or prices whole modules; in training,
            a graph without training nodes.
        MisconfigurationException: a fit without ``max_epochs``.
        ImportError: without torch-geometric; the message names the extra.

    Source: a reconstruction of Zhao et al. (2020), "Learned Low Precision Graph Neural Networks", arXiv 2009.09232. How
    the controllers learn and the scale of the cost are choices made here.

    >>> search = LPGNAS(32, 4, hidden_channels=(8, 16), w_bits=(4, 8), a_bits=(8,), cost="bits")
    >>> search.derive().config.blocks[0].width
    8
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_layers: int = 2,
        hidden_channels: Sequence[int] = (16, 32, 64, 128),
        attention: Sequence[str] = ATTENTIONS,
        aggregation: Sequence[str] = AGGREGATIONS,
        activation: Sequence[str] = ACTIVATIONS,
        skip: Sequence[str] = SKIPS,
        w_bits: Sequence[int] = (1, 2, 4, 6, 8, FULL),
        a_bits: Sequence[int] = (2, 4, 6, 8, FULL),
        dropout: float = 0.5,
        norm: Literal["none", "mean"] = "none",
        cost: Literal["energy", "bits", "bops"] = "energy",
        accelerator: str = "eyeriss_like",
        cost_weight: float = 0.1,
        samples: int = 2,
        warmup: float = 0.25,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        controller_lr: float = 2.0,
        seed: int = 0,
        export: str | Path | None = None,
    ) -> None:
        super().__init__()
        if cost not in COSTS:
            raise ValueError(f"cost is {cost!r}: use one of {', '.join(COSTS)}")
        if cost == "energy":
            check_prices_operations(Accelerator.load(accelerator))
        for name, value, least in (("cost_weight", cost_weight, 0), ("samples", samples, 1), ("warmup", warmup, 0)):
            if not value >= least:
                raise ValueError(f"{name} is {value!r}: use {least} or more")
        for name, value in (("lr", lr), ("controller_lr", controller_lr)):
            if not value > 0:
                raise ValueError(f"{name} is {value!r}: use a positive learning rate")
        if warmup >= 1:
            raise ValueError(f"warmup is {warmup!r}: use a share of the fit below 1, else nothing is ever chosen")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.space = GraphSpace(
            in_channels, num_classes, num_layers, hidden_channels, attention, aggregation, activation, skip, w_bits,
            a_bits, dropout, norm,
        )  # fmt: skip
        self.architecture = Controller(self.space.architecture, seed=step_seed(seed, 1))
        self.quantization = Controller(self.space.quantization, seed=step_seed(seed, 2))
        with random_state_kept():
            torch.default_generator.manual_seed(step_seed(seed, 0))  # torch.manual_seed would seed all devices
            self.net = SuperGraphNet(self.space)
        self.surrogate = AdditiveSurrogate(self.space.options, features=self.space.features())
        self.history: list[dict[str, Any]] = []
        self._cost: LogCost | None = None
        self._extents = (1, 1)
        self._settled = False
        self._validated = False

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return scores ``[N, num_classes]`` of the network ahead, with shared weights."""
        scores: Tensor = self.net(x, edge_index, self._gates_ahead())
        return scores

    @property
    def chosen(self) -> dict[str, Any]:
        """The option ahead of each choice."""
        return {**self.architecture.chosen(), **self.quantization.chosen()}

    def derive(self, graph: tuple[Tensor, Tensor] | None = None) -> GraphNet:
        """Return the network ahead, a plain module, with the weights it shares here, to be trained on.

        Training ``GraphNet(net.config)`` from scratch instead is as good for most networks.

        Args:
            graph: ``(x, edge_index)`` on which it is to give the scores that it gives here, up to its quantisers'
                steps; without it the scale of what is aggregated differs.
        """
        return self.net.derive(self.chosen, graph)

    def on_fit_start(self) -> None:
        """Refuse a fit without an end: the warm-up is a share of it."""
        if self.trainer.max_epochs is None or self.trainer.max_epochs < 1:
            raise MisconfigurationException("LPGNAS has a warm-up that is a share of the fit: it needs max_epochs")

    def training_step(self, batch: Graph, batch_idx: int) -> None:
        """One step of the weights; after the warm-up one of the controllers."""
        train, val = self._nodes(batch)
        done = (self.current_epoch + batch_idx / self.trainer.num_training_batches) / (self.trainer.max_epochs or 1)
        with random_state_kept([self.device]):
            torch.manual_seed(step_seed(self.hparams["seed"], self.current_epoch, batch_idx))
            if train is not None:
                self._step_weights(batch, train)
            if val is not None and done >= self.hparams["warmup"] and not self._settled:
                self._step_controllers(batch, val)

    def _nodes(self, batch: Graph) -> tuple[Tensor | None, Tensor | None]:
        """Nodes for the weights and nodes for the controllers."""
        train, val = node_mask(batch, "train_mask"), node_mask(batch, "val_mask")
        whole = self.trainer.num_training_batches == 1
        if train is None and whole:
            raise ValueError("train_mask of the graph is empty: at least one training node is needed")
        self._validated |= val is not None
        if self._validated or train is None or not (whole or self.current_epoch):
            return train, val  # whether mini-batches have validation nodes shows in the first epoch
        return held_out(batch, train)

    def _step_weights(self, batch: Graph, mask: Tensor) -> None:
        optimizer, _ = self.optimizers()  # type: ignore[attr-defined]
        gates = self._gates_ahead() if self._settled else self._sample()
        loss = node_loss(self.net(batch.x, batch.edge_index, gates), batch.y, mask)
        optimizer.zero_grad()
        if bool(torch.isfinite(loss)):
            self.manual_backward(loss)
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            length = float(torch.stack([p.grad.norm() for p in parameters]).norm())
            if length < float("inf"):
                # Networks with sums have gradients a hundred times those of networks with means; for Adam only the
                # former would count.
                torch._foreach_mul_([p.grad for p in parameters], 1 / (length + 1e-12))
                optimizer.step()
                self.log("train/loss", loss.detach(), batch_size=int(mask.sum()), prog_bar=True)
                return
        optimizer.zero_grad()
        self._settle()

    def _step_controllers(self, batch: Graph, mask: Tensor) -> None:
        _, optimizer = self.optimizers()  # type: ignore[attr-defined]
        if self._cost is None:
            graph = batch.x, batch.edge_index
            self._cost = LogCost(graph_cost(self.hparams["cost"], self.net, *graph, self.hparams["accelerator"]))
        if not self._try_networks(batch, mask):
            self._settle()
            return
        probabilities = {name: p.detach().requires_grad_() for name, p in self._probabilities().items()}
        errors = self.surrogate.expected(probabilities) + self.space.unseen(probabilities)
        objective = errors + self.hparams["cost_weight"] * self._cost(probabilities)
        gradients = torch.autograd.grad(objective, list(probabilities.values()), allow_unused=True)
        # Mirror descent: logits move by what an option does, not by how probable it is, nor all equally far as with
        # Adam, which decides what makes no difference too.
        for logits, gradient in zip((*self.architecture.logits, *self.quantization.logits), gradients, strict=True):
            logits.grad = gradient
        optimizer.step()

    @torch.no_grad()
    def _try_networks(self, batch: Graph, mask: Tensor) -> bool:
        """Tell the surrogate the error rates of sampled networks; False where scores are not finite."""
        training = self.net.training
        self.net.eval()  # what dropout does to one network is no reason to choose another
        finite = True
        for _ in range(self.hparams["samples"]):
            gates = self._sample()
            scores = self.net(batch.x, batch.edge_index, gates)
            finite = finite and bool(torch.isfinite(scores[mask]).all())
            if finite:
                self.surrogate.observe(gates, 1 - float(node_accuracy(scores, batch.y, mask)))
        self.net.train(training)
        return finite

    def _settle(self) -> None:
        """Choose no more."""
        if not self._settled:
            self._settled = True
            rank_zero_warn(
                f"LPGNAS: a loss or gradient is not finite in epoch {self.current_epoch}: the step is left out, and the"
                " choices stay as they are; the weights of the network ahead train on"
            )

    def _sample(self) -> Gates:
        picks = {**self.architecture.draw(), **self.quantization.draw()}
        return {
            name: torch.eye(len(options), device=self.device)[picks[name]]
            for name, options in self.space.options.items()
        }

    def _probabilities(self) -> Gates:
        return {**self.architecture.probabilities, **self.quantization.probabilities}

    def _gates_ahead(self) -> Gates:
        chosen = self.chosen
        return {**self.architecture.gates_of(chosen), **self.quantization.gates_of(chosen)}

    def validation_step(self, batch: Graph, batch_idx: int) -> None:
        """Log loss and accuracy, on the validation nodes, of the network ahead with shared weights."""
        self._extents = graph_extents(batch.x, batch.edge_index)
        mask = node_mask(batch, "val_mask")
        if mask is not None:
            with scales_kept(self.net):  # a fit that is validated more often is the same fit
                scores = self(batch.x, batch.edge_index)
            self.log("val/loss", node_loss(scores, batch.y, mask), batch_size=int(mask.sum()))
            self.log("val/acc", node_accuracy(scores, batch.y, mask), batch_size=int(mask.sum()), prog_bar=True)

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Log how far the choices are, and keep what the figure needs."""
        chosen, probabilities = self.chosen, self._probabilities()
        sizes = graph_sizes(self.space.config(chosen), *self._extents)
        controllers = (self.architecture, self.quantization)
        self.log("search/entropy", sum(float(c.entropy) for c in controllers) / len(controllers))
        if self._cost is not None:
            self.log("search/cost", float(self._cost(probabilities)))
        self.log("search/bits_w", sizes.bits_per_weight)
        self.log("search/bits_a", sizes.bits_per_activation)
        self.history.append({"chosen": chosen, "probability": {n: float(p.max()) for n, p in probabilities.items()}})

    def on_fit_end(self) -> None:
        """Write the network ahead, where a path was given."""
        if self._cost is None:
            rank_zero_warn("LPGNAS: nothing was chosen: no batch after the warm-up had validation nodes")
        path = self.hparams["export"]
        if path is None or not self.trainer.is_global_zero:
            return
        self.space.config(self.chosen).to_yaml(path)
        print(f"LPGNAS: the network is described in {path}")
        try:
            plot_choices(self.history, self.space.options, Path(path).with_suffix(".png"))
        except (ImportError, ValueError) as error:
            rank_zero_warn(f"LPGNAS: no figure of the choices: {error}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the cost's tables and the way here."""
        checkpoint["lpgnas"] = {
            "cost": None if self._cost is None else self._cost.state,
            "history": self.history,
            "settled": self._settled,
            "validated": self._validated,
            "extents": list(self._extents),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        kept = checkpoint["lpgnas"]
        self._cost = None if kept["cost"] is None else LogCost.from_state(kept["cost"])
        self.history, self._extents = list(kept["history"]), tuple(kept["extents"])
        self._settled, self._validated = kept["settled"], kept["validated"]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Adam for the weights, and SGD for the logits of the controllers."""
        weights = torch.optim.Adam(parameter_groups(self.net, self.hparams["lr"], self.hparams["weight_decay"]))
        logits = [*self.architecture.parameters(), *self.quantization.parameters()]
        return [weights, torch.optim.SGD(logits, lr=self.hparams["controller_lr"])]
