"""Prune, then quantise to focused powers of two, while a network trains; write a small file at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_effnn._exchanged import Exchanged
from lightning_effnn.callbacks._after_training import after_training, validated
from lightning_effnn.callbacks._first_batches import FirstBatches, tell
from lightning_effnn.callbacks._reporting import log_file
from lightning_effnn.callbacks._rounding import RoundingCallback, State, share_scales
from lightning_effnn.callbacks._schedule import Moment, Schedule, check_end, epochs_of, passed
from lightning_effnn.callbacks._waiting import let_wait
from lightning_effnn.compression import (
    CompressionReport,
    Following,
    Projector,
    measure_compressed,
    quantize_activations_,
    round_others_,
    save_compressed,
)
from lightning_effnn.compression.activations import check_bits
from lightning_effnn.compression.plots import weight_figure
from lightning_effnn.compression.pruning import check_sparsity
from lightning_effnn.compression.stages import STAGES, Stages
from lightning_effnn.formats.tagging import aside
from lightning_effnn.quantization import Attachment, Selection, strip_, weight_sites
from lightning_effnn.quantization.weights import noted_uses, restore_uses_

_KEPT = ("sparsity", "bits", "method", "scope", "separation", "activations")
"""Arguments that a resumed fit must have as they were."""


class FocusedCompression(RoundingCallback):
    """Sparse weights as recentralised powers of two, and a file many times smaller than the fp32 weights.

    In the window ``prune`` the share of zeros rises to ``sparsity``; in the window ``quantize`` a growing share of the
    weights is rounded, and each layer's format is fitted anew; afterwards the formats stay and the network
    settles on them. The optimiser moves latent weights throughout; between its steps the model *is* the
    compressed network, so validation, checkpoints and other callbacks see what will be shipped. No parameter is
    added to the model or to its optimisers.

    Weights are what multiplies in the first batch, whatever the classes of its modules
    (:func:`~lightning_effnn.quantization.find_weights_`), those of known classes that took no part, and what
    :func:`~lightning_effnn.quantization.declare_weight` says. What doesn't train when the fit begins is left alone,
    unless ``include`` names it. What is left out is said once, as a warning where that is more than a tenth of the
    multiply-accumulates.

    Whatever else writes weights (optimisers of any kind, averages, momentum encoders, checkpoints that are loaded in a
    hook) is kept: it is the new latent value, see :mod:`lightning_effnn.compression.projector`.

    A fit that ends before its schedule (early stopping, ``max_time``) is compressed at once then; what is written has
    been validated once more after that, and a warning tells the figures before and after.

    Logged each epoch: ``compress/sparsity``, ``compress/bits_per_weight`` and ``compress/ratio`` of the whole network,
    biases, norms and what was left alone included, as a file of it would have them
    (:class:`~lightning_effnn.compression.CompressionReport`); ``compress/focused_layers``; and, at validation too,
    ``compress/stage``: 0 dense, 1 pruning, 2 quantising, 3 final, from where on the network is one that could be
    shipped.

    Args:
        sparsity: share of zeros to reach, in [0, 1); 0 leaves out pruning.
        bits: of a weight's code, 3 to 7.
        prune, quantize: windows ``(start, end)``; floats are fractions of the fit, ints epochs; None leaves out.
        method: ``"dns"`` (cut weights may grow back) or ``"magnitude"``.
        scope: what is compared when weights are cut: magnitudes of the whole network (``"global"``; each layer keeps at
            least a third of the average density), of each ``"layer"``, or ``"lamp"`` scores, which leave small layers
            denser (arXiv 2010.07611).
        separation: from which separation of its two lobes on a layer is recentralised (paper: 2.0).
        include, exclude: patterns of parameter names, module names or class names.
        activations: bits to which the inputs of these layers are rounded, from the start of ``quantize`` on and for
            good: the file holds the scales, and loading it into a model rounds them again. None leaves them alone.
        export: path of the ``.effnn`` file written at the end of the fit; None writes none.
        other: how biases, norms and running statistics are stored: ``"fp32"``, ``"fp16"`` or ``"int8"``; narrower ones
            are rounded in the model at the end of the fit too, so that the file holds exactly the model.
        best_of_compressed: callbacks that monitor a metric (``ModelCheckpoint``, ``EarlyStopping``) are asked from
            stage 3 on only, so that the best network is the best of those that could be shipped.
        prefix: first part of the logged keys.

    Raises:
        ValueError: an argument out of range, at construction; at the start of the fit, a weight with NaN or infinity;
            after the first batches, no prunable weight; in the fit, a weight that has become NaN or infinite.
        MisconfigurationException: a window that doesn't fit the fit, a fit without end, an optimiser that evaluates
            the loss several times a step (LBFGS), a strategy that shards parameters, another callback that rounds the
            same weights, or a checkpoint of a fit with other arguments to resume from.

    Example:
        >>> FocusedCompression(sparsity=0.9, bits=5, prune=(0.1, 0.5), quantize=(0.5, 0.9)).bits
        5

    Source: Zhao et al., "Focused Quantization for Sparse CNNs", NeurIPS 2019, arXiv 1903.03046.
    """

    def __init__(
        self,
        sparsity: float = 0.8,
        bits: int = 5,
        prune: tuple[Moment, Moment] | None = (0.1, 0.5),
        quantize: tuple[Moment, Moment] | None = (0.5, 0.9),
        *,
        method: Literal["dns", "magnitude"] = "dns",
        scope: Literal["lamp", "global", "layer"] = "global",
        separation: float = 2.0,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        activations: int | None = None,
        export: str | Path | None = None,
        other: Literal["fp32", "fp16", "int8"] = "fp32",
        best_of_compressed: bool = False,
        prefix: str = "compress",
    ) -> None:
        if not 3 <= bits <= 7:
            raise ValueError(f"bits={bits!r}: 3 to 7 are needed: a component, a sign and at least one exponent")
        for name, value, accepted in (
            ("method", method, ("dns", "magnitude")),
            ("scope", scope, ("lamp", "global", "layer")),
            ("other", other, ("fp32", "fp16", "int8")),
        ):
            if value not in accepted:
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, accepted))} is needed")
        check_sparsity(sparsity)
        if activations is not None:
            check_bits(activations)
            if quantize is None:
                raise ValueError(
                    f"activations={activations}: they are rounded from the start of quantize on, which is None"
                )
        super().__init__(prefix, include, exclude)
        self.sparsity, self.bits, self.activations = sparsity, bits, activations
        self.prune, self.quantize = prune, quantize
        self.method, self.scope, self.separation = method, scope, separation
        self.export, self.other, self.best_of_compressed = export, other, best_of_compressed
        self._stages = Stages(sparsity if prune is not None else 0.0, quantizes=quantize is not None)
        self._pruning = Schedule.of("prune", prune) if prune is not None and sparsity else None
        self._quantizing = Schedule.of("quantize", quantize) if quantize is not None else None
        self.projector: Projector | None = None
        self.report: CompressionReport | None = None
        self._selection: Selection | None = None
        self._attachment: Attachment | None = None  # quantisers of activations
        self._first: FirstBatches | None = None
        self._following: Following | None = None
        self._finished = False  # while the last validation runs
        self._waiting = Exchanged()  # hooks of callbacks that monitor a metric
        self._last = Exchanged()  # the module's hook at the end of the training

    @property
    def stage(self) -> int:
        """How far the network is, as in :data:`~lightning_effnn.compression.stages.STAGES`."""
        return self._stages.stage

    @property
    def _kinds(self) -> tuple[bool, bool]:
        return self._quantizing is not None or self.export is not None, self.activations is not None

    @property
    def _taken(self) -> Projector:
        if self.projector is None:
            raise RuntimeError(f"{self.name} has no weights yet: it takes them when a fit begins")
        return self.projector

    # the beginning of a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse early what cannot work."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_end(trainer, self.name, self._pruning, self._quantizing)
            if self.best_of_compressed:
                self._waiting.put_back()
                self._waiting = let_wait(trainer, lambda: self.stage == 3)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the latent weights out of the model; say what is taken."""
        for optimizer in trainer.optimizers:
            if type(getattr(optimizer, "optimizer", optimizer)).__name__ == "LBFGS":
                raise MisconfigurationException(f"{self.name} cannot follow LBFGS, which steps within its step")
        self._check_rounds_alone(trainer, pl_module)
        saved = self._take_saved()
        self._strip_activations()
        self._stages.pruned = self._stages.rounded = -1
        if saved is not None:
            with self._reading():
                self._check_resumed(saved)
                restore_uses_(pl_module, saved.get("weights", {}))
        self._selection = self._select(trainer, pl_module)
        self.projector = Projector(
            pl_module,
            sites=self._selection.sites,
            method=self.method,
            scope=self.scope,
            bits=self.bits,
            separation=self.separation,
        )
        if saved is None:
            self._first = FirstBatches(self.name, self._selection)
        else:
            self._first = None
            self._go_on(pl_module, saved)
            tell(self.name, self._selection)
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow each step of each optimiser."""
        self._following = self._taken.follow(getattr(o, "optimizer", o) for o in trainer.optimizers)

    # each batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Look at what multiplies in the first batches."""
        if self._first is not None:
            self._first.open()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: object) -> None:
        """Look no further, for now."""
        if self._first is not None:
            self._first.pause()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look on where a training step does several passes by itself."""
        if self._first is not None and not pl_module.automatic_optimization:
            self._first.open()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Take what was seen to multiply, and go on with the schedule."""
        self._taken.sync()
        if self._first is not None and self._first.close(trainer):
            self._take_seen(trainer, pl_module)
        done, epochs = passed(trainer, batch_idx + 1), epochs_of(trainer)
        if self._pruning is not None:
            self._stages.prune(self._taken, self._pruning.progress(done, epochs))
        if self._quantizing is not None:
            progress = self._quantizing.progress(done, epochs)
            if progress >= 0 and self.activations is not None and self._attachment is None:
                self._round_activations(pl_module)
            self._stages.quantize(self._taken, progress)

    def _take_seen(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._selection is not None
        self._taken.take(self._selection.sites or weight_sites(pl_module, self.include, self.exclude))
        self._check_rounds_alone(trainer, pl_module)  # of the weights that are known now

    def _round_activations(self, pl_module: LightningModule, scales: Mapping[str, Tensor] | None = None) -> None:
        assert self.activations is not None
        self._attachment = quantize_activations_(pl_module, self.activations, self.include, self._excluded)
        if scales is not None:
            self._attachment.quantizers.load_state_dict(scales)
        rank_zero_info(f"{self.name} rounds the inputs of {', '.join(self._attachment.activations)}")

    def _strip_activations(self) -> None:
        if self._attachment is not None:
            strip_(self._attachment.model)
            self._attachment = None

    # each epoch

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate what would be shipped."""
        if trainer.state.fn != "fit":
            self._show(pl_module)
        if self._following is not None:
            self._taken.sync()
        self._share_scales(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Once compression is over, whoever exchanges weights for a validation is told what they have become."""
        if self._finished and batch_idx == 0 and dataloader_idx == 0:
            with aside():  # a trace that is open already sees the weights, not how they came
                self._taken.project()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say of which stage the network is that was validated."""
        if self._following is not None or self._finished:
            self._log(pl_module, {"stage": float(self.stage)})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how small it has become."""
        self._taken.sync()
        figures = trainer.strategy.broadcast(self._figures(pl_module) if trainer.is_global_zero else {})
        self._log(pl_module, figures | {"stage": float(self.stage)})

    def _figures(self, pl_module: LightningModule) -> dict[str, float]:
        focused = {"focused_layers": float(self._taken.focused_layers)}
        try:
            report = measure_compressed(pl_module, other=self.other)
        except TypeError as error:  # the state holds what no file could
            self._warn(f"logs no size: {error}")
            return focused
        sizes = {name: float(getattr(report, name)) for name in ("sparsity", "bits_per_weight", "ratio")}
        return sizes | focused

    def _share_scales(self, trainer: Trainer) -> None:
        if self._attachment is not None:
            share_scales(trainer, self._attachment.quantizers)

    # the end of the training, whenever it comes

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle on the formats, and validate what that changes: after all that others do at the end of training."""
        self._last = after_training(pl_module, lambda: self._finish(trainer))

    def _finish(self, trainer: Trainer) -> None:
        stage, before = self.stage, dict(trainer.callback_metrics)
        self._follow_no_more()
        if not self._stages.complete(self._taken):
            return
        if stage == 3:
            told = "weights that others wrote at the end of the training (an average) are compressed"
        else:
            told = f"the fit ended at the stage {STAGES[stage]!r} and the rest was done at once"
        if self.activations is not None and self._attachment is None:
            told += "; no activation is rounded, for none was seen in time"
        if trainer.enable_validation:
            told += "; validated before and after: " + ", ".join(
                f"{name} {float(before.get(name, math.nan)):.4g} and {value:.4g}"
                for name, value in self._validate(trainer).items()
            )
        else:
            told += "; without validation data nothing tells what that costs"
        (self._warn if stage < 3 else self._say)(told)

    def _validate(self, trainer: Trainer) -> dict[str, float]:
        """Validate once more; what that logs, but for our own figures."""
        self._finished = True
        try:
            logged = validated(trainer)
        finally:
            self._finished = False
        return {name: value for name, value in logged.items() if not name.startswith(f"{self.prefix}/")}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and the figure."""
        projector, stage = self._taken, self.stage
        if self._stages.complete(projector):
            why = "weights that were written after the last validation are compressed"
            if stage < 3:
                why = f"no epoch was left after the stage {STAGES[stage]!r}, and the rest was done at once"
            self._warn(f"{why}; what that gives has not been validated")
        self._share_scales(trainer)
        if self.export is not None:
            self.save(pl_module, self.export, write=trainer.is_global_zero)
            log_file(trainer, f"{self.prefix}/model", self.export, "model")
        self._log_figure(trainer, "weights", lambda: weight_figure(projector))
        self._follow_no_more()

    def save(self, pl_module: LightningModule, path: str | Path, *, write: bool = True) -> None:
        """Write the compressed network now, and give the model the values that the file holds.

        Args:
            pl_module: the model in training.
            path: of the ``.effnn`` file.
            write: False on all processes but one.

        Raises:
            RuntimeError: before a fit has begun.
        """
        layers = self._taken.layers
        if write:
            self.report = save_compressed(pl_module, path, other=self.other)
            rank_zero_info(
                f"{path}: {self.report.bytes:,} bytes, {self.report.ratio:.1f} times smaller than fp32,"
                f" {self.report.bits_per_weight:.2f} bits a weight"
            )
        round_others_(pl_module, self.other, exclude=[layer.site.parameter for layer in layers])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the model usable: with its projected weights, and nothing on it."""
        if self.projector is not None:
            self.projector.capture()
        if self._attachment is not None:
            strip_(pl_module)
        super().on_exception(trainer, pl_module, exception)

    def _let_go(self) -> None:
        """Leave the module, other callbacks and torch's optimisers as they were."""
        self._follow_no_more()
        self._waiting.put_back()
        self._last.put_back()

    def _follow_no_more(self) -> None:
        if self._first is not None:
            self._first.end()
            self._first = None
        if self._following is not None:
            self._following.remove()
            self._following = None

    # checkpoints

    def state_dict(self) -> State:
        """Latent weights, masks, formats, how far the schedule has come, and the arguments that have to stay."""
        if self._saved is not None:
            return self._saved
        return {
            "projector": None if self.projector is None else self.projector.state_dict(),
            "excluded": self._excluded,
            "weights": {} if self._selection is None else noted_uses(self._selection.model),
            "activations": None if self._attachment is None else self._attachment.quantizers.state_dict(),
            "pruned": self._stages.pruned,
            "rounded": self._stages.rounded,
            "stage": self.stage,
            "arguments": {name: getattr(self, name) for name in _KEPT},
        }

    def _check_resumed(self, saved: State) -> None:
        """Refuse to go on with other arguments than a checkpoint's."""
        wrong = [
            f"{name}={getattr(self, name)!r} (it had {value!r})"
            for name, value in saved.get("arguments", {}).items()
            if getattr(self, name) != value
        ]
        if wrong:
            raise MisconfigurationException(
                f"{self.name} cannot go on from this checkpoint with {', '.join(wrong)}: give what it had, or"
                " begin a new fit with the checkpoint's weights (load_from_checkpoint)"
            )

    def _go_on(self, pl_module: LightningModule, saved: State) -> None:
        """Have the latent weights and the activations of a checkpoint, in a fit."""
        with self._reading():
            self._stages.pruned, self._stages.rounded = int(saved["pruned"]), int(saved["rounded"])
            if saved["projector"] is not None:
                self._taken.load_state_dict(saved["projector"])
            if saved["activations"] is not None:
                self._round_activations(pl_module, saved["activations"])

    @torch.inference_mode(False)  # what is made for a test outlives it
    def _show(self, pl_module: LightningModule) -> None:
        """Have the network of a checkpoint that was loaded outside a fit: its activations too."""
        saved = self._take_saved()
        if saved is None:
            return
        self._strip_activations()
        with self._reading():
            self._check_resumed(saved)
            restore_uses_(pl_module, saved.get("weights", {}))
            self._excluded = saved.get("excluded", self.exclude)
            if saved["activations"] is not None:
                self._round_activations(pl_module, saved["activations"])
        if saved.get("stage", 3) < 3:
            self._warn(
                f"the checkpoint is of the stage {STAGES[saved['stage']]!r}: this is not yet the"
                " compressed network. best_of_compressed=True has ModelCheckpoint compare compressed ones only"
            )
