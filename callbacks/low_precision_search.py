"""Choose the bits of every weight and every layer's input while a model trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_effnn.callbacks._first_batches import share, tell
from lightning_effnn.callbacks._held_out import HeldOut, held_out_loss
from lightning_effnn.callbacks._reporting import log_file
from lightning_effnn.callbacks._rounding import RoundingCallback, State, share_scales
from lightning_effnn.callbacks._schedule import Moment, Schedule, check_end, epochs_of, passed
from lightning_effnn.formats.tagging import aside
from lightning_effnn.hardware import Accelerator
from lightning_effnn.hardware.engines import check_prices_operations
from lightning_effnn.quantization import QuantizationPlan, ScaleOptimizer, WeightFinder, strip_
from lightning_effnn.quantization.weights import noted_uses, restore_uses_
from lightning_effnn.search.bits import COSTS, BitSearch
from lightning_effnn.search.bits.search import check_options
from lightning_effnn.search.plots import choices_figure

COMPARE_EVERY = 8
"""Steps of training for each comparison of a few draws, which takes as long as one and a half."""


class LowPrecisionSearch(RoundingCallback):
    """Bits for each weight and each layer's input, searched in the fit itself, and a network trained with them.

    Until ``warmup`` the model trains as ever. Then every step trains it with a draw of bits, and every eighth step a
    few draws are compared by the loss of ``training_step`` on a validation batch (without validation data: on the
    training batch, before it is trained on); a controller moves down ``loss + cost_weight * cost``. At ``freeze`` the
    most probable bits stay, and the model trains on with them and learned scales. Validation always sees the bits that
    are ahead. If a loss is not finite the search stops choosing, says so, and training goes on.

    Weights are what multiplies in the run with which the search begins, whatever the classes of the modules, as for
    :class:`~lightning_effnn.callbacks.FocusedCompression`.

    Nothing is registered in the model or its optimisers. At the end of the fit the quantisers stay attached, so that a
    test is of the quantised model; ``quantization.strip_(model)`` takes them off, ``quantization.bake_(model)`` writes
    the levels into the weights.

    Logged each epoch, from the start of the search on: ``search/bits_w`` and ``search/bits_a`` (mean bits of a weight
    and of an activation, of the choices ahead), ``search/cost`` (theirs, relative to fp32), ``search/entropy`` (1 open,
    0 decided).

    Args:
        weights, activations: bits to choose from, 1 to 16 or 32; a list of one is no choice, an empty one leaves them
            alone.
        cost: ``"energy"``, ``"bits"`` or ``"bops"``.
        accelerator: for energy: a preset's name or a YAML file.
        cost_weight: of the cost, relative to fp32, against the loss in its own unit.
        warmup, freeze: when the search begins and ends; a float is a fraction of the fit, an int an epoch.
        include, exclude: patterns of parameter names, module names or class names.
        seed: of the draws.
        export: path of the YAML plan written at the end of the fit, for
            :meth:`~lightning_effnn.quantization.QuantizationPlan.load`; None writes none.
        prefix: first part of the logged keys.

    Raises:
        TypeError, ValueError: an argument out of range, at construction; at the start of the search, a model with
            nothing to quantise or with uninitialised lazy modules.
        MisconfigurationException: a schedule that doesn't fit the fit, a fit without end, manual optimisation, or a
            strategy that shards parameters, or another callback that rounds the same weights or activations.

    Example:
        >>> LowPrecisionSearch(weights=(2, 4, 8), activations=(8,), cost="bits").cost
        'bits'

    Source: architecture and bits by back-propagation in one round: Zhao et al. (2020), "Learned Low Precision Graph
    Neural Networks", arXiv 2009.09232.
    """

    def __init__(
        self,
        weights: Sequence[int] = (2, 4, 6, 8),
        activations: Sequence[int] = (4, 8),
        cost: Literal["energy", "bits", "bops"] = "energy",
        accelerator: str | Path = "eyeriss_like",
        cost_weight: float = 0.1,
        warmup: Moment = 0.2,
        freeze: Moment = 0.8,
        *,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        seed: int = 0,
        export: str | Path | None = None,
        prefix: str = "search",
    ) -> None:
        check_options(weights, activations)
        if cost not in COSTS:
            raise ValueError(f"cost={cost!r}: one of {', '.join(map(repr, COSTS))} is needed")
        if not cost_weight >= 0:
            raise ValueError(f"cost_weight={cost_weight!r}: a number of at least 0 is needed")
        if cost == "energy":
            check_prices_operations(Accelerator.load(accelerator))
        super().__init__(prefix, include, exclude)
        self.weights, self.activations = tuple(weights), tuple(activations)
        self.cost, self.accelerator, self.cost_weight = cost, accelerator, cost_weight
        self.warmup, self.freeze, self.seed, self.export = warmup, freeze, seed, export
        self.window = Schedule.of("(warmup, freeze)", (warmup, freeze))
        self.search: BitSearch | None = None
        self._forget()
        self._interrupted = False

    @property
    def plan(self) -> QuantizationPlan | None:
        """The bits that were chosen; None until they are."""
        return None if self.search is None else self.search.plan

    @property
    def _kinds(self) -> tuple[bool, bool]:
        return bool(self.weights), bool(self.activations)

    # the beginning of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse early what cannot work."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._needs_automatic_optimization(
                pl_module,
                "asks training_step for the loss of validation batches, which with manual optimisation would step the"
                " optimiser",
            )
            check_end(trainer, self.name, self.window)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on where a checkpoint was taken."""
        self._check_rounds_alone(trainer, pl_module)
        super().on_fit_start(trainer, pl_module)
        if self.search is not None and (self._interrupted or self.search.model is not pl_module):
            self._forget()  # an earlier fit with this callback is over
        self._interrupted = False
        self._restore(pl_module)

    def _forget(self) -> None:
        """Be as before any search."""
        if self.search is not None:
            strip_(self.search.model)
        self.search = None
        self.history: list[dict[str, Any]] = []
        self._held_out: HeldOut | None = None
        self._position = 0  # of the held-out batches, in the checkpoint
        self._scales: ScaleOptimizer | None = None
        self._stopped = False  # a loss was not finite
        self._stepped = False  # gradients are complete

    # each batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Begin, compare, draw or settle, whatever it is time for."""
        step = trainer.current_epoch * self._batches(trainer) + batch_idx
        progress = self.window.progress(passed(trainer, batch_idx), epochs_of(trainer))
        if progress < 0 or self.plan is not None:
            return
        compares = step % COMPARE_EVERY == 0
        with aside():  # a trace of this training step doesn't count what runs beside it
            search = self.search or self._begin(trainer, pl_module, batch, step)
            if progress >= 1:
                self._settle(trainer, search)
            elif compares and not self._stopped:
                self._compare(trainer, pl_module, search, batch, step)
        if self._stopped:
            search.ahead_()
        elif search.plan is None:
            search.sample_(observing=compares)

    def _batches(self, trainer: Trainer) -> int:
        batches = trainer.num_training_batches
        if math.isinf(batches):
            raise MisconfigurationException(
                f"{self.name} needs the number of training batches: give the loader a length, or limit_train_batches"
            )
        return int(batches)

    def _begin(self, trainer: Trainer, pl_module: LightningModule, batch: object, step: int) -> BitSearch:
        """See what multiplies and what each option does to it, in a run on a held-out batch."""
        self._held_out = HeldOut(trainer)
        held_out = self._held_out.batch(trainer, batch)

        def run() -> float:
            return held_out_loss(trainer, pl_module, held_out, step)

        selection = self._select(trainer, pl_module)
        with WeightFinder(pl_module) as finder:
            run()
        error = share(trainer, pl_module, finder.error)
        self._check_rounds_alone(trainer, pl_module)  # of the weights that are known now
        if self.weights:
            tell(self.name, selection, error)
        epochs = epochs_of(trainer)
        start, end = self.window.fractions(epochs)
        steps = trainer.max_steps if epochs is None else epochs * self._batches(trainer)
        self.search = self._attached(pl_module, round((end - start) * steps / COMPARE_EVERY))
        where = "validation batches" if self._held_out.validation else "training batches, for there are no others"
        self._say(f"chooses the bits of {', '.join(self.search.options)} by the loss of {where}")
        self.search.survey(run, self.cost, self.accelerator, held_out)
        if trainer.world_size > 1:  # each process has seen a batch of its own
            self.search.load_state_dict(trainer.strategy.broadcast(self.search.state_dict()))
        return self.search

    def _attached(self, pl_module: LightningModule, steps: int) -> BitSearch:
        return BitSearch(
            pl_module, self.weights, self.activations, self.include, self._excluded, steps=steps, seed=self.seed
        )

    def _compare(
        self, trainer: Trainer, pl_module: LightningModule, search: BitSearch, batch: object, step: int
    ) -> None:
        if self._held_out is None:
            self._held_out = HeldOut(trainer, self._position)
        held_out = self._held_out.batch(trainer, batch)

        def loss() -> float:
            own = held_out_loss(trainer, pl_module, held_out, step)
            if trainer.world_size == 1:
                return own
            return float(trainer.strategy.reduce(torch.tensor(own, device=pl_module.device), reduce_op="mean"))

        if search.compare(loss):
            search.step(self.cost_weight)
        else:
            self._stopped = True
            self._warn(
                f"a loss is not finite in epoch {trainer.current_epoch}: no more bits are chosen, and training goes on"
                " with those ahead"
            )

    def _settle(self, trainer: Trainer, search: BitSearch) -> None:
        search.settle_()
        self._scales = ScaleOptimizer(search.quantizers.parameters())
        share_scales(trainer, search.quantizers)
        figures = ", ".join(f"{self.prefix}/{name} {value:.3g}" for name, value in search.figures().items())
        self._say(f"the bits are chosen: {figures}")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note that gradients are complete."""
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Let learned scales follow, once the weights have moved."""
        if self._scales is not None and self._stepped:
            if trainer.world_size > 1:
                _average(trainer, self._scales.scales)
            self._scales.step()
        self._stepped = False
        if trainer.is_last_batch:  # a checkpoint of this step is one of the epoch's end
            self._remember(trainer.current_epoch)

    # each epoch

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate what is ahead, with the same scales on all processes."""
        self._restore(pl_module)
        if self.search is not None:
            self.search.ahead_()
            share_scales(trainer, self.search.quantizers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how far the choices are."""
        if self.search is not None:
            self._log(pl_module, self.search.figures())
            self._remember(trainer.current_epoch)

    def _remember(self, epoch: int) -> None:
        if self.search is None or (self.history and self.history[-1]["epoch"] == epoch):
            return
        controller = self.search.controller
        sure = {name: float(p.detach().max()) for name, p in controller.probabilities.items()}
        self.history.append({"epoch": epoch, "chosen": controller.chosen(), "probability": sure})

    # the end of the training, whenever it comes

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle, if the fit ended early: before any callback writes what the model has become."""
        if self.search is not None and self.plan is None:
            self._settle(trainer, self.search)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write plan and figure."""
        search = self.search
        if search is None:
            self._warn("the fit ended before the search began: no bits were chosen")
            return
        if search.plan is None:  # resumed, with no epoch left to train
            self._warn(
                "no bits were chosen and no plan is written: the checkpoint's search had not ended, and"
                f" max_epochs={trainer.max_epochs} left nothing to train. Resume with more epochs"
            )
            return
        if self.export is not None and trainer.is_global_zero:
            search.plan.save(self.export)
            log_file(trainer, f"{self.prefix}/bits", self.export, "quantization-plan")
            print(f"{self.name}: the chosen bits are in {self.export}")
        self._log_figure(trainer, "choices", lambda: choices_figure(self.history, search.options))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model usable: with the weights that were trained, and nothing on it."""
        if self.search is not None:
            strip_(pl_module)
            self._interrupted = True

    # checkpoints

    def state_dict(self) -> State:
        """The search, its scales' optimiser, and where the held-out batches are."""
        if self._saved is not None:
            return self._saved
        if self.search is None:
            return {"search": None}  # Lightning would not save an empty one
        return {
            "search": self.search.state_dict(),
            "scales": None if self._scales is None else self._scales.state_dict(),
            "position": self._position if self._held_out is None else self._held_out.position,
            "history": self.history,
            "stopped": self._stopped,
            "known": noted_uses(self.search.model),
            "excluded": self._excluded,
        }

    @torch.inference_mode(False)  # what is made for a test outlives it
    def _restore(self, pl_module: LightningModule) -> None:
        """Have the search of a checkpoint, if one was loaded since."""
        saved = self._take_saved()
        if saved is None:
            return
        self._forget()
        if saved.get("search") is None:  # taken before the search began
            return
        with self._reading():
            restore_uses_(pl_module, saved["known"])
            self._excluded = saved["excluded"]
            self.search = self._attached(pl_module, steps=1)  # how fast it learns is part of its state
            self.search.load_state_dict(saved["search"])
            self.history, self._stopped = list(saved["history"]), saved["stopped"]
            self._position = saved["position"]
            if saved["scales"] is not None:
                self._scales = ScaleOptimizer(self.search.quantizers.parameters())
                self._scales.load_state_dict(saved["scales"])


def _average(trainer: Trainer, scales: Sequence[nn.Parameter]) -> None:
    """Average the gradients of learned scales over the processes, all in one call."""
    gradients = [torch.zeros_like(scale) if scale.grad is None else scale.grad for scale in scales]
    if gradients:
        flat = trainer.strategy.reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
        for scale, mean in zip(scales, flat.split([g.numel() for g in gradients]), strict=True):
            scale.grad = mean.view_as(scale)
