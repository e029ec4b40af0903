"""Prune, then quantise to focused powers of two, while a network trains; write a small file at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_effnn.callbacks._first_batches import FirstBatches, selection_of, tell
from lightning_effnn.callbacks._refusals import check_end, check_rounds_alone, check_whole_weights
from lightning_effnn.callbacks._reporting import log_figure, log_file, log_parameters, report_folder
from lightning_effnn.callbacks._schedule import Moment, Schedule, epochs_of, passed
from lightning_effnn.compression import (
    CompressionReport,
    Projector,
    measure_compressed,
    quantize_activations_,
    round_others_,
    save_compressed,
)
from lightning_effnn.compression.activations import check_bits
from lightning_effnn.compression.pruning import check_sparsity, cubic_sparsity
from lightning_effnn.quantization import Attachment, Selection, activation_sites, strip_, weight_sites
from lightning_effnn.quantization.weights import noted_uses, restore_uses_

FRACTIONS = (0.25, 0.5, 0.75, 0.875, 1.0)
"""Shares of the weights that are rounded, one after another (arXiv 1903.03046, section 5)."""
PRUNING_STEPS = 100
"""How often masks are chosen anew within the pruning window."""


class FocusedCompression(Callback):
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

    Logged each epoch: ``compress/sparsity``, ``compress/bits_per_weight`` and ``compress/ratio`` of the whole network,
    biases, norms and what was left alone included, as a file of it would have them
    (:class:`~lightning_effnn.compression.CompressionReport`); and ``compress/focused_layers``.

    Args:
        sparsity: share of zeros to reach, in [0, 1); 0 leaves out pruning.
        bits: of a weight's code, 3 to 7.
        prune, quantize: windows ``(start, end)``; floats are fractions of the fit, ints epochs; None leaves out.
        method: ``"dns"`` (cut weights may grow back) or ``"magnitude"``.
        scope: what is compared when weights are cut: magnitudes of the whole network (``"global"``), of each
            ``"layer"``, or ``"lamp"`` scores, which leave small layers denser (arXiv 2010.07611).
        separation: from which separation of its two lobes on a layer is recentralised (paper: 2.0).
        include, exclude: patterns of parameter names, module names or class names.
        activations: bits to which the inputs of these layers are rounded, from the start of ``quantize`` on and for
            good: the file holds the scales, and loading it into a model rounds them again. None leaves them alone.
        export: path of the ``.effnn`` file written at the end of the fit; None writes none.
        other: how biases, norms and running statistics are stored: ``"fp32"``, ``"fp16"`` or ``"int8"``; narrower ones
            are rounded in the model at the end of the fit too, so that the file holds exactly the model.
        prefix: first part of the logged keys.

    Raises:
        ValueError: an argument out of range, at construction; at the start of the fit, a weight with NaN or infinity;
            after the first batches, no prunable weight.
        MisconfigurationException: a window that doesn't fit the fit, a fit without end, an optimiser that evaluates the
            loss several times a step (LBFGS), or a strategy that shards parameters, or another
            callback that rounds the same weights.

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
        prefix: str = "compress",
    ) -> None:
        check_sparsity(sparsity)
        if not 3 <= bits <= 7:
            raise ValueError(f"bits={bits!r}: 3 to 7 are needed: a component, a sign and at least one exponent")
        for name, value, accepted in (
            ("method", method, ("dns", "magnitude")),
            ("scope", scope, ("lamp", "global", "layer")),
            ("other", other, ("fp32", "fp16", "int8")),
        ):
            if value not in accepted:
                raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, accepted))} is needed")
        if activations is not None:
            check_bits(activations)
            if quantize is None:
                raise ValueError(
                    f"activations={activations}: they are rounded from the start of quantize on, which is None"
                )
        self.sparsity, self.bits, self.activations = sparsity, bits, activations
        self.prune, self.quantize = prune, quantize
        self._pruning = Schedule.of("prune", prune) if prune is not None and sparsity else None
        self._quantizing = Schedule.of("quantize", quantize) if quantize is not None else None
        self.method, self.scope, self.separation = method, scope, separation
        self.include, self.exclude = include, exclude
        self.export, self.other, self.prefix = export, other, prefix
        self.projector: Projector | None = None
        self._attachment: Attachment | None = None
        self.report: CompressionReport | None = None
        self._selection: Selection | None = None
        self._first: FirstBatches | None = None
        self._saved: dict[str, Any] | None = None
        self._saved_scales: dict[str, Any] | None = None
        self._saved_weights: dict[str, dict[str, Any]] = {}
        self._hooks: list[Any] = []
        self._pruned = -1  # last of the PRUNING_STEPS done
        self._rounded = -1  # last of the FRACTIONS done

    @property
    def state_key(self) -> str:
        """Fixed by the prefix."""
        return f"{type(self).__name__}[{self.prefix}]"

    def state_dict(self) -> dict[str, Any]:
        """Latent weights, masks, formats, and how far the schedule has come."""
        projector = self._saved if self.projector is None else self.projector.state_dict()
        scales = self._saved_scales if self._attachment is None else self._attachment.quantizers.state_dict()
        weights = self._saved_weights if self._selection is None else noted_uses(self._selection.model)
        return {
            "projector": projector,
            "weights": weights,
            "activations": scales,
            "pruned": self._pruned,
            "rounded": self._rounded,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the model is there."""
        self._saved, self._saved_scales = state_dict["projector"], state_dict["activations"]
        self._saved_weights = state_dict["weights"]
        self._pruned, self._rounded = state_dict["pruned"], state_dict["rounded"]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse early what cannot work."""
        if stage != "fit":
            return
        check_whole_weights(trainer, self)
        check_end(trainer, self, self._pruning, self._quantizing)

    def rounds(self, pl_module: Any) -> set[str]:
        """Names of the weights and activations that have to be left alone by others."""
        names = set()
        if self._quantizing is not None or self.export is not None:
            sites = Selection(pl_module, self.include, self.exclude).sites
            names |= {f"weights/{site.name}" for site in sites}
        if self.activations is not None:
            names |= {f"activations/{site.name}" for site in activation_sites(pl_module, self.include, self.exclude)}
        return names

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the latent weights out of the model; say what is taken."""
        for optimizer in trainer.optimizers:
            if type(getattr(optimizer, "optimizer", optimizer)).__name__ == "LBFGS":
                raise MisconfigurationException("FocusedCompression cannot follow LBFGS, which steps within its step")
        check_rounds_alone(trainer, pl_module, self)
        if self._saved is None:  # an earlier fit with this callback is over
            self._pruned = self._rounded = -1
        if self._attachment is not None:
            strip_(self._attachment.model)
            self._attachment = None
        restore_uses_(pl_module, self._saved_weights)
        self._selection = selection_of(trainer, pl_module, self)
        self.projector = Projector(
            pl_module,
            sites=self._selection.sites,
            method=self.method,
            scope=self.scope,
            bits=self.bits,
            separation=self.separation,
        )
        self._first = FirstBatches(type(self).__name__, self._selection) if self._saved is None else None
        if self._saved is not None:
            self.projector.load_state_dict(self._saved)
            self._saved = None
            tell(type(self).__name__, self._selection)
        if self._saved_scales is not None:
            self._round_activations(pl_module)
            assert self._attachment is not None
            self._attachment.quantizers.load_state_dict(self._saved_scales)
            self._saved_scales = None
        log_parameters(trainer, self)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look at what multiplies in the first batches."""
        if self._first is not None:
            self._first.open()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Look no further, for now."""
        if self._first is not None:
            self._first.pause()

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Look on where a training step does several passes by itself."""
        if self._first is not None and not pl_module.automatic_optimization:
            self._first.open()

    def _take(self, trainer: Any, pl_module: Any) -> None:
        """Take what was seen to multiply."""
        assert self.projector is not None
        if self._first is not None and self._first.close(trainer):
            assert self._selection is not None
            self.projector.take(self._selection.sites or weight_sites(pl_module, self.include, self.exclude))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Follow each step of each optimiser."""
        for optimizer in trainer.optimizers:
            hook = getattr(optimizer, "optimizer", optimizer).register_step_post_hook(self._after_step)
            self._hooks.append(hook)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Put the latent weights back, for the optimiser to move."""
        assert self.projector is not None
        if self.projector.projected:
            self.projector.learn_alpha(optimizer.param_groups[0]["lr"])
        self.projector.restore()

    def _after_step(self, *_: Any) -> None:
        assert self.projector is not None
        self.projector.capture()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Go on with the schedule."""
        assert self.projector is not None
        self.projector.capture()  # where a scaler has skipped the step
        self._take(trainer, pl_module)
        done = passed(trainer, batch_idx + 1)
        if self._pruning is not None:
            progress = self._pruning.progress(done, epochs_of(trainer))
            self._prune_to(math.floor(progress * PRUNING_STEPS))
        if self._quantizing is not None:
            progress = self._quantizing.progress(done, epochs_of(trainer))
            if progress >= 0 and self.activations is not None and self._attachment is None:
                self._round_activations(pl_module)
            self._round_to(min(math.floor(progress * len(FRACTIONS)), len(FRACTIONS) - 1))

    def _prune_to(self, step: int) -> None:
        assert self.projector is not None
        if step > self._pruned:
            self._pruned = step
            self.projector.prune(cubic_sparsity(self.sparsity, step / PRUNING_STEPS))
            if step >= PRUNING_STEPS:
                self.projector.settle()

    def _round_to(self, step: int) -> None:
        assert self.projector is not None
        if step > self._rounded:
            self._rounded = step
            self.projector.quantize(FRACTIONS[step])

    def _round_activations(self, pl_module: Any) -> None:
        assert self.activations is not None
        assert self._selection is not None
        exclude = self._selection.excluded
        self._attachment = quantize_activations_(pl_module, self.activations, self.include, exclude)
        rank_zero_info(f"FocusedCompression rounds the inputs of {', '.join(self._attachment.activations)}")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Validate with the same scales on all processes: each has observed batches of its own."""
        if self._attachment is not None and trainer.world_size > 1:
            state = trainer.strategy.broadcast(self._attachment.quantizers.state_dict())
            self._attachment.quantizers.load_state_dict(state)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log how small it has become."""
        figures = self._figures(pl_module) if trainer.is_global_zero else None
        for name, value in trainer.strategy.broadcast(figures).items():
            pl_module.log(f"{self.prefix}/{name}", value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _figures(self, pl_module: Any) -> dict[str, float]:
        assert self.projector is not None
        figures = {"focused_layers": float(self.projector.focused_layers)}
        try:
            report = measure_compressed(pl_module, other=self.other)
        except TypeError as error:  # the state holds what no file could
            rank_zero_warn(f"FocusedCompression logs no size: {error}")
            return figures
        return {"sparsity": report.sparsity, "bits_per_weight": report.bits_per_weight, "ratio": report.ratio} | figures

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Settle on the formats, write the file and the figure."""
        assert self.projector is not None
        if self._pruning is not None:  # a fit that was stopped early is compressed as asked for all the same
            self._prune_to(PRUNING_STEPS)
        if self._quantizing is not None:
            self._round_to(len(FRACTIONS) - 1)
        self.projector.finish()
        self.on_validation_start(trainer, pl_module)
        if self.export is not None:
            self.save(pl_module, self.export, write=trainer.is_global_zero)
            log_file(trainer, f"{self.prefix}/model", self.export, "model")
        self._figure(trainer)
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the model usable: with its projected weights, and nothing on it."""
        if self.projector is not None:
            self.projector.capture()
        if self._attachment is not None:
            strip_(pl_module)
        self._release()

    def save(self, pl_module: Any, path: str | Path, *, write: bool = True) -> None:
        """Write the compressed network now, and give the model the values that the file holds.

        Args:
            pl_module: the model in training.
            path: of the ``.effnn`` file.
            write: False on all processes but one.
        """
        assert self.projector is not None
        if write:
            self.report = save_compressed(pl_module, path, other=self.other)
            rank_zero_info(
                f"{path}: {self.report.bytes:,} bytes, {self.report.ratio:.1f} times smaller than fp32,"
                f" {self.report.bits_per_weight:.2f} bits a weight"
            )
        round_others_(pl_module, self.other, exclude=[layer.site.parameter for layer in self.projector.layers])

    def _figure(self, trainer: Any) -> None:
        assert self.projector is not None
        try:
            from lightning_effnn.compression.plots import weight_figure

            figure = weight_figure(self.projector)
        except ImportError as error:
            rank_zero_info(f"FocusedCompression: no figure: {error}")
            return
        log_figure(trainer, f"{self.prefix}/weights", figure, report_folder(trainer, None))

    def _release(self) -> None:
        if self._first is not None:
            self._first.end()
            self._first = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
