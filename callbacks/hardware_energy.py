"""Logs each epoch what the model would cost on a chip."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from rich.console import Console

from lightning_effnn._tables import ReportTable
from lightning_effnn.callbacks._reporting import log_figure, log_parameters, log_table, report_folder
from lightning_effnn.hardware import Accelerator, CostReport, Tracer, estimate

Stage = Literal["auto", "train", "validate"]
_ENOUGH = 0.99


class HardwareEnergyMonitor(Callback):
    """Simulated energy, time and memory traffic of one inference, from one natural batch an epoch.

    The first batch of each epoch is traced as it runs: no extra forward, nothing hooked on the model, training
    with the callback is bit-identical to training without. The figures are logged through ``pl_module.log``, so
    that any logger sees them and ``ModelCheckpoint(monitor="hw/energy_uJ")`` and ``EarlyStopping`` work on
    them: ``hw/energy_uJ``, ``hw/energy_dense_uJ`` (as if nothing were zero), ``hw/latency_us``, ``hw/macs``,
    ``hw/effectual_macs``, ``hw/dram_kB``, ``hw/weights_kB``, ``hw/act_density``, ``hw/coverage``.

    Args:
        accelerator: preset name (``effnn hw`` lists them), path of a YAML file, or an ``Accelerator``.
        stage: whose first batch is traced: ``"validate"``, ``"train"``, or ``"auto"`` for validation where there
            is one, else training.
        batch_size: inferences the figures are for.
        table_every_n_epochs: how often the table and the figure of all layers are written (to W&B, TensorBoard or
            ``folder``); 0 for the end of the fit only, where they are written in any case.
        depth: parts of a module's name by which layers are grouped in the figure and the summary.
        folder: where tables and figures go as files; by default beside the metrics of a ``CSVLogger``.
        prefix: first part of the logged keys; two monitors in one Trainer need two prefixes.

    Raises:
        ValueError: an argument out of range or an unknown accelerator, at construction.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[HardwareEnergyMonitor("eyeriss_like")], logger=False,
        ...                     enable_checkpointing=False, accelerator="cpu")

    Source: cost model as described in ``hardware/README.md``; ZigZag (Mei et al., IEEE TC 2021).
    """

    def __init__(
        self,
        accelerator: str | Accelerator = "eyeriss_like",
        *,
        stage: Stage = "auto",
        batch_size: int = 1,
        table_every_n_epochs: int = 10,
        depth: int = 2,
        folder: str | None = None,
        prefix: str = "hw",
    ) -> None:
        if stage not in ("auto", "train", "validate"):
            raise ValueError(f"stage={stage!r}: one of 'auto', 'train', 'validate' is needed")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("table_every_n_epochs", table_every_n_epochs, 0),
            ("depth", depth, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value!r}: an integer of {least} or more is needed")
        self.accelerator = Accelerator.load(accelerator)
        self.stage = stage
        self.batch_size = batch_size
        self.table_every_n_epochs = table_every_n_epochs
        self.depth = depth
        self.folder = folder
        self.prefix = prefix
        self.report: CostReport | None = None
        self.first: dict[str, float] = {}
        self._tracer: Tracer | None = None
        self._warned = False

    @property
    def state_key(self) -> str:
        """Two monitors in one Trainer keep their states apart by prefix."""
        return f"{type(self).__name__}[{self.prefix}]"

    def state_dict(self) -> dict[str, Any]:
        """The first epoch's figures, for the summary of a resumed fit."""
        return {"first": dict(self.first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.first = dict(state_dict["first"])

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Log the parameters."""
        log_parameters(trainer, self)

    # the traced batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Open the trace on the first batch of the epoch."""
        if batch_idx == 0 and self._stage(trainer) == "train":
            self._open(pl_module, batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Close it: what follows is no inference."""
        self._close()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the figures; a step that never went backward is closed here."""
        self._close()
        if batch_idx == 0 and self._stage(trainer) == "train":
            self._log(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Open the trace on the first batch of the first loader."""
        if batch_idx == dataloader_idx == 0 and self._validating(trainer):
            self._open(pl_module, batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Close it."""
        self._close()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the figures."""
        if self._validating(trainer):
            self._log(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no trace open behind an error; the error goes its way."""
        if self._tracer is not None:
            self._tracer.abandon()
            self._tracer = None

    # tables, figures, summary

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write table and figure every ``table_every_n_epochs``."""
        every = self.table_every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            self._write(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write table and figure of the last epoch; print the first epoch against the last."""
        if self.report is None:
            return
        self._write(trainer)
        if trainer.is_global_zero:
            console = Console(width=100)
            console.print(self.report.table(self.depth))
            console.print(self.summary())
            folder = report_folder(trainer, self.folder)
            if folder is not None:
                print(f"table of all layers and figure: {folder}")

    def summary(self) -> ReportTable:
        """First against last epoch, as a rich table."""
        last = self.report.totals() if self.report else {}
        table = ReportTable(title=f"First and last epoch on {self.accelerator.name}", title_justify="left")
        for heading in ("", "first", "last", "change"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, now in last.items():
            before = self.first.get(name, now)
            change = f"{now / before - 1:+.1%}" if before else "-"
            table.add_row(f"{self.prefix}/{name}", f"{before:,.3f}", f"{now:,.3f}", change)
        return table

    def _stage(self, trainer: Any) -> str:
        if self.stage != "auto":
            return self.stage
        return "validate" if trainer.enable_validation else "train"

    def _validating(self, trainer: Any) -> bool:
        return not trainer.sanity_checking and trainer.state.fn == "fit" and self._stage(trainer) == "validate"

    def _open(self, pl_module: Any, batch: Any) -> None:
        self._tracer = Tracer(pl_module, batch_size=self.batch_size, example=batch)
        self._tracer.__enter__()

    def _close(self) -> None:
        if self._tracer is None:
            return
        tracer, self._tracer = self._tracer, None
        tracer.__exit__(None, None, None)
        self.report = estimate(tracer.trace, self.accelerator)
        if not self._warned and self.report.coverage < _ENOUGH:
            self._warned = True
            unknown = ", ".join(sorted(self.report.unknown))
            rank_zero_warn(
                f"{type(self).__name__}: {self.report.coverage:.1%} of the work is known; counted by elements moved"
                f" only: {unknown}"
            )

    def _log(self, trainer: Any, pl_module: Any) -> None:
        if self.report is None:
            return
        totals = self.report.totals()
        if not self.first:
            self.first = totals
        for name, value in totals.items():
            pl_module.log(f"{self.prefix}/{name}", value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def _write(self, trainer: Any) -> None:
        if self.report is None:
            return
        folder = report_folder(trainer, self.folder)
        log_table(trainer, f"{self.prefix}/layers", self.report.rows(), folder)
        try:
            from lightning_effnn.hardware.plots import cost_figure

            figure = cost_figure(self.report, self.depth)
        except ImportError as error:
            rank_zero_info(f"{type(self).__name__}: no figure: {error}")
            return
        log_figure(trainer, f"{self.prefix}/energy", figure, folder and Path(folder))
