"""Choose the bits of every weight and every layer's input while a model trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_effnn.callbacks._first_batches import selection_of, share, tell
from lightning_effnn.callbacks._held_out import HeldOut, held_out_loss
from lightning_effnn.callbacks._refusals import check_end, check_rounds_alone, check_whole_weights
from lightning_effnn.callbacks._reporting import log_figure, log_file, log_parameters, report_folder
from lightning_effnn.callbacks._schedule import Moment, Schedule, epochs_of, passed
from lightning_effnn.formats.tagging import aside
from lightning_effnn.hardware import Accelerator
from lightning_effnn.hardware.engines import check_prices_operations
from lightning_effnn.quantization import (
    Attachment,
    QuantizationPlan,
    ScaleOptimizer,
    Selection,
    WeightFinder,
    activation_sites,
    strip_,
)
from lightning_effnn.quantization.weights import noted_uses, restore_uses_
from lightning_effnn.search.bits import COSTS, BitSearch
from lightning_effnn.search.bits.search import check_options
from lightning_effnn.search.plots import choices_figure

COMPARE_EVERY = 8
"""Steps of training for each comparison of a few draws, which takes as long as one and a half."""


class LowPrecisionSearch(Callback):
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
        self.weights, self.activations = tuple(weights), tuple(activations)
        self.cost, self.accelerator, self.cost_weight = cost, accelerator, cost_weight
        self.warmup, self.freeze = warmup, freeze
        self.window = Schedule.of("(warmup, freeze)", (warmup, freeze))
        self.include, self.exclude, self.seed = include, exclude, seed
        self.export, self.prefix = export, prefix
        self.search: BitSearch | None = None
        self.history: list[dict[str, Any]] = []
        self._held_out: HeldOut | None = None
        self._excluded: list[str] = []  # patterns of exclude, and names of what nobody optimises
        self._position = 0  # of the held-out batches, in the checkpoint
        self._scales: ScaleOptimizer | None = None
        self._stopped = False
        self._stepped = False
        self._interrupted = False
        self._saved: dict[str, Any] | None = None  # a checkpoint's state, until the model is there

    @property
    def plan(self) -> QuantizationPlan | None:
        """The bits that were chosen; None until they are."""
        return None if self.search is None else self.search.plan

    @property
    def state_key(self) -> str:
        """Fixed by the prefix."""
        return f"{type(self).__name__}[{self.prefix}]"

    def state_dict(self) -> dict[str, Any]:
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the model is there."""
        self._saved = state_dict

    def rounds(self, pl_module: Any) -> set[str]:
        """Names of the weights and activations that have to be left alone by others."""
        names = set()
        if self.weights:
            sites = Selection(pl_module, self.include, self.exclude).sites
            names |= {f"weights/{site.name}" for site in sites}
        if self.activations:
            names |= {f"activations/{site.name}" for site in activation_sites(pl_module, self.include, self.exclude)}
        return names

    # the stages of a fit

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse early what cannot work."""
        if stage != "fit":
            return
        check_whole_weights(trainer, self)
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(
                "LowPrecisionSearch asks training_step for the loss of validation batches, which with manual"
                " optimisation would step the optimiser: it needs automatic_optimization"
            )
        check_end(trainer, self, self.window)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on where a checkpoint was taken."""
        check_rounds_alone(trainer, pl_module, self)
        log_parameters(trainer, self)
        if self.search is not None and (self._interrupted or self.search.model is not pl_module):
            self._forget()  # an earlier fit with this callback is over
        self._interrupted = False
        self._restore(pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validate what is ahead, with the same scales on all processes."""
        self._restore(pl_module)
        if self.search is None:
            return
        self.search.ahead_()
        attachment = self.search.attachment
        if trainer.world_size > 1 and attachment is not None:
            _share(trainer, attachment)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Test what was chosen or is ahead, also where only a checkpoint was loaded."""
        self.on_validation_start(trainer, pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Predict with what was chosen or is ahead."""
        self.on_validation_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin, compare, draw or settle, whatever it is time for."""
        step = trainer.current_epoch * self._batches(trainer) + batch_idx
        progress = self.window.progress(passed(trainer, batch_idx), epochs_of(trainer))
        if progress < 0 or self.plan is not None:
            return
        compares = step % COMPARE_EVERY == 0
        with aside():  # a trace of this training step doesn't count what runs beside it
            if self.search is None:
                self._begin(trainer, pl_module, batch, step)
            assert self.search is not None
            if progress >= 1:
                self._settle(trainer)
            elif compares and not self._stopped:
                self._compare(trainer, pl_module, batch, step)
        if self._stopped:
            self.search.ahead_()
        elif self.plan is None:
            self.search.sample_(observing=compares)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note that gradients are complete."""
        self._stepped = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let learned scales follow, once the weights have moved."""
        if self._scales is not None and self._stepped:
            if trainer.world_size > 1:
                _average(trainer, self._scales.scales)
            self._scales.step()
        self._stepped = False
        if trainer.is_last_batch:  # a checkpoint of this step is one of the epoch's end
            self._remember(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log how far the choices are."""
        if self.search is None:
            return
        for name, value in self.search.figures().items():
            pl_module.log(f"{self.prefix}/{name}", value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
        self._remember(trainer.current_epoch)

    def _remember(self, epoch: int) -> None:
        if self.search is None or (self.history and self.history[-1]["epoch"] == epoch):
            return
        controller = self.search.controller
        sure = {name: float(p.detach().max()) for name, p in controller.probabilities.items()}
        self.history.append({"epoch": epoch, "chosen": controller.chosen(), "probability": sure})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Settle, if the fit ended early: before any callback writes what the model has become."""
        if self.search is not None and self.plan is None:
            self._settle(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write plan and figure."""
        if self.search is None:
            rank_zero_warn("LowPrecisionSearch: the fit ended before the search began: no bits were chosen")
            return
        if self.plan is None:  # resumed, with no epoch left to train
            rank_zero_warn(
                "LowPrecisionSearch: no bits were chosen and no plan is written: the checkpoint's search had not ended,"
                f" and max_epochs={trainer.max_epochs} left nothing to train. Resume with more epochs"
            )
            return
        if self.export is not None and trainer.is_global_zero:
            self.plan.save(self.export)
            log_file(trainer, f"{self.prefix}/bits", self.export, "quantization-plan")
            print(f"LowPrecisionSearch: the chosen bits are in {self.export}")
        self._figure(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the model usable: with the weights that were trained, and nothing on it."""
        if self.search is not None:
            strip_(pl_module)
            self._interrupted = True

    # what they do

    def _begin(self, trainer: Any, pl_module: Any, batch: Any, step: int) -> None:
        epochs = epochs_of(trainer)
        start, end = self.window.fractions(epochs)
        steps = trainer.max_steps if epochs is None else epochs * self._batches(trainer)
        self._held_out = HeldOut(trainer)
        held_out = self._held_out.batch(trainer, batch)
        self._look(trainer, pl_module, lambda: held_out_loss(trainer, pl_module, held_out, step))
        self.search = self._attached(pl_module, round((end - start) * steps / COMPARE_EVERY))
        where = "validation batches" if self._held_out.validation else "training batches, for there are no others"
        names = ", ".join(self.search.options)
        rank_zero_info(f"LowPrecisionSearch chooses the bits of {names} by the loss of {where}")
        self.search.survey(lambda: held_out_loss(trainer, pl_module, held_out, step), self.cost, self.accelerator)
        if trainer.world_size > 1:  # each process has seen a batch of its own
            self.search.load_state_dict(trainer.strategy.broadcast(self.search.state_dict()))

    def _look(self, trainer: Any, pl_module: Any, run: Callable[[], object]) -> None:
        """See what multiplies, whatever the classes of the modules, and say what is left out."""
        selection = selection_of(trainer, pl_module, self)
        with WeightFinder(pl_module) as finder:
            run()
        error = share(trainer, pl_module, finder.error)
        self._excluded = selection.excluded
        check_rounds_alone(trainer, pl_module, self)  # of the weights that are known now
        if self.weights:
            tell(type(self).__name__, selection, error)

    def _compare(self, trainer: Any, pl_module: Any, batch: Any, step: int) -> None:
        assert self.search is not None
        if self._held_out is None:
            self._held_out = HeldOut(trainer, self._position)
        held_out = self._held_out.batch(trainer, batch)

        def loss() -> float:
            own = held_out_loss(trainer, pl_module, held_out, step)
            if trainer.world_size == 1:
                return own
            return float(trainer.strategy.reduce(torch.tensor(own, device=pl_module.device), reduce_op="mean"))

        if self.search.compare(loss):
            self.search.step(self.cost_weight)
        else:
            self._stopped = True
            rank_zero_warn(
                f"LowPrecisionSearch: a loss is not finite in epoch {trainer.current_epoch}: no more bits are"
                " chosen, and training goes on with those ahead"
            )

    def _settle(self, trainer: Any) -> None:
        assert self.search is not None
        self.search.settle_()
        attachment = self.search.attachment
        self._scales = ScaleOptimizer([] if attachment is None else attachment.quantizers.parameters())
        if trainer.world_size > 1 and attachment is not None:
            _share(trainer, attachment)
        figures = self.search.figures()
        rank_zero_info(
            "LowPrecisionSearch: the bits are chosen: "
            + ", ".join(f"{self.prefix}/{name} {value:.3g}" for name, value in figures.items())
        )

    @torch.inference_mode(False)  # what is made for a test outlives it
    def _restore(self, pl_module: Any) -> None:
        if self._saved is None:
            return
        saved, self._saved = self._saved, None
        self._forget()
        if saved.get("search") is None:  # taken before the search began
            return
        restore_uses_(pl_module, saved["known"])
        self._excluded = saved["excluded"]
        self.search = self._attached(pl_module, steps=1)  # how fast it learns is part of its state
        self.search.load_state_dict(saved["search"])
        self.history, self._stopped = list(saved["history"]), saved["stopped"]
        self._position = saved["position"]
        if saved["scales"] is not None:
            attachment = self.search.attachment
            self._scales = ScaleOptimizer([] if attachment is None else attachment.quantizers.parameters())
            self._scales.load_state_dict(saved["scales"])

    def _forget(self) -> None:
        """Be as before any search."""
        if self.search is not None:
            strip_(self.search.model)
        self.search, self._held_out, self._scales = None, None, None
        self.history, self._stopped, self._position = [], False, 0

    def _attached(self, pl_module: Any, steps: int) -> BitSearch:
        return BitSearch(
            pl_module, self.weights, self.activations, self.include, self._excluded, steps=steps, seed=self.seed
        )

    def _batches(self, trainer: Any) -> int:
        batches = trainer.num_training_batches
        if math.isinf(batches):
            raise MisconfigurationException(
                "LowPrecisionSearch needs the number of training batches: give the loader a length, or"
                " limit_train_batches"
            )
        return int(batches)

    def _figure(self, trainer: Any) -> None:
        assert self.search is not None
        try:
            figure = choices_figure(self.history, self.search.options)
        except (ImportError, ValueError) as error:
            rank_zero_info(f"LowPrecisionSearch: no figure: {error}")
            return
        log_figure(trainer, f"{self.prefix}/choices", figure, report_folder(trainer, None))


def _average(trainer: Any, scales: Sequence[torch.nn.Parameter]) -> None:
    """Average the gradients of learned scales over the processes, all in one call."""
    gradients = [torch.zeros_like(scale) if scale.grad is None else scale.grad for scale in scales]
    if gradients:
        flat = trainer.strategy.reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
        for scale, mean in zip(scales, flat.split([g.numel() for g in gradients]), strict=True):
            scale.grad = mean.view_as(scale)


def _share(trainer: Any, attachment: Attachment) -> None:
    """Give all processes the quantisers of the first."""
    attachment.quantizers.load_state_dict(trainer.strategy.broadcast(attachment.quantizers.state_dict()))
