"""Logs each epoch what the model would cost on a chip."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from lightning_effnn._tables import ReportTable
from lightning_effnn.callbacks._base import EffnnCallback
from lightning_effnn.callbacks._batches import loader_of
from lightning_effnn.callbacks._reporting import log_table, report_folder, say
from lightning_effnn.callbacks._traced_batch import TracedBatch
from lightning_effnn.hardware import Accelerator, CostReport, Trace, estimate
from lightning_effnn.hardware.plots import cost_figure
from lightning_effnn.hardware.remarks import unknown_remark

Stage = Literal["auto", "train", "validate"]
_ENOUGH = 0.99


class HardwareEnergyMonitor(EffnnCallback):
    """Simulated energy, time and memory traffic of one inference, from one natural batch an epoch.

    The first batch of each epoch is traced as it runs: no extra forward, nothing hooked on the model, training
    with the callback is bit-identical to training without. The figures are logged through ``pl_module.log``, so
    that any logger sees them and ``ModelCheckpoint(monitor="hw/energy_uJ")`` and ``EarlyStopping`` work on
    them: ``hw/energy_uJ``, ``hw/energy_dense_uJ`` (as if nothing were zero), ``hw/latency_us``, ``hw/macs``,
    ``hw/effectual_macs``, ``hw/dram_kB``, ``hw/weights_kB``, ``hw/act_density``, ``hw/coverage``.

    ``trainer.validate`` and ``trainer.test`` trace their first batch too, log the same keys and end with the
    table; ``trainer.predict`` prints and writes the table only, for Lightning logs nothing there. What the trace had
    to assume about the batch, operations whose cost is not known (if they are more than 1 % of the work), and a
    batch that can't be traced are warned of once a run. A batch that can't be traced never stops a run: the last
    figures stay; if there are none yet, nothing is logged (in a fit of several processes: nan).

    Args:
        accelerator: preset name (``effnn hw`` lists them), path of a YAML file, or an ``Accelerator``.
        stage: whose first batch a fit traces: ``"validate"``, ``"train"``, or ``"auto"`` for validation where there
            is one, else training.
        batch_size: inferences the figures are for.
        batch_dim: axis of the batch in the tensors of a batch; found if ``None``.
        inferences: how many inferences a full batch holds; found if ``None``. If the first batch of an epoch is
            smaller than a full one, it holds as many fewer, which is warned of; if that is no whole number, the
            batch can't be traced.
        table_every_n_epochs: how often the table and the figure of all layers are written (to W&B, TensorBoard or
            ``folder``); 0 for the end of the fit only, where they are written in any case.
        depth: parts of a module's name by which layers are grouped in the figure and the summary.
        folder: where tables and figures go as files; by default beside the metrics of a ``CSVLogger``.
        prefix: first part of the logged keys; two monitors in one Trainer need two prefixes.
        verbose: whether to print a line an epoch, with the change against the first, and the tables at the end.

    Raises:
        ValueError: an argument out of range or an unknown accelerator, at construction.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[HardwareEnergyMonitor("eyeriss_like")], logger=False,
        ...                     enable_checkpointing=False, accelerator="cpu")

    Source: cost model as described in ``hardware/README.md``; ZigZag (Mei et al., IEEE TC 2021).
    """

    takes_shards = True

    def __init__(
        self,
        accelerator: str | Accelerator = "eyeriss_like",
        *,
        stage: Stage = "auto",
        batch_size: int = 1,
        batch_dim: int | None = None,
        inferences: int | None = None,
        table_every_n_epochs: int = 10,
        depth: int = 2,
        folder: str | None = None,
        prefix: str = "hw",
        verbose: bool = True,
    ) -> None:
        if stage not in ("auto", "train", "validate"):
            raise ValueError(f"stage={stage!r}: one of 'auto', 'train', 'validate' is needed")
        _check_integer("batch_size", batch_size, 1)
        _check_integer("table_every_n_epochs", table_every_n_epochs, 0)
        _check_integer("depth", depth, 1)
        if inferences is not None:
            _check_integer("inferences", inferences, 1)
        if batch_dim is not None:
            _check_integer("batch_dim", batch_dim, None)
        super().__init__(prefix)
        self.accelerator = Accelerator.load(accelerator)
        self.stage = stage
        self.batch_size = batch_size
        self.batch_dim = batch_dim
        self.inferences = inferences
        self.table_every_n_epochs = table_every_n_epochs
        self.depth = depth
        self.folder = folder
        self.verbose = verbose
        self.report: CostReport | None = None
        self.first: dict[str, float] = {}
        self._traced = TracedBatch(self._warn_once, self.accelerator, batch_size, batch_dim, inferences)
        self._new = False  # whether the report is of this epoch

    def state_dict(self) -> dict[str, Any]:
        """The first epoch's figures and what they are for, so that a resumed fit compares with them."""
        return {"first": dict(self.first), "of": self._of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them, unless they are for another chip or another number of inferences."""
        if state_dict.get("of", self._of) == self._of:
            self.first = dict(state_dict["first"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew: the figures of an earlier run are no part of this one."""
        super().setup(trainer, pl_module, stage)
        self._let_go()
        self.report, self._new = None, False
        if stage == "fit":
            self.first = {}

    def _let_go(self) -> None:
        """Leave no trace open behind an error."""
        self._traced.abandon()

    # the traced batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Open the trace on the first batch of the epoch."""
        self._open(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: object) -> None:
        """Close it: what follows is no inference."""
        self._close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log the figures; a step that never went backward is closed here."""
        self._close()
        if batch_idx == 0:
            self._log_report(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Open the trace on the first batch of the first loader."""
        self._open(trainer, pl_module, batch, batch_idx + dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Close it."""
        self._close()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures."""
        self._log_report(trainer, pl_module)

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end  # Lightning logs nothing in a prediction

    # the console, tables, figures, summary

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line; write table and figure every ``table_every_n_epochs``."""
        self._traced.abandon()  # still open if the module's on_train_batch_start skipped the epoch
        if self._new and self.verbose:
            say(trainer, f"epoch {trainer.current_epoch}: {self._line()}")
        self._new = False
        every = self.table_every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0:
            self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write table and figure of the last epoch; print the first epoch against the last."""
        self._end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the table, unless it is a fit that validates."""
        if trainer.state.fn == "validate":
            self._end(trainer)

    on_test_end = on_predict_end = on_fit_end

    def summary(self) -> ReportTable:
        """First against last epoch, as a rich table."""
        last = self.report.totals() if self.report else {}
        table = ReportTable(title=f"First and last epoch on {self.accelerator.name}", title_justify="left")
        for heading in ("", "first", "last", "change"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, now in last.items():
            before = self.first.get(name, now)
            table.add_row(f"{self.prefix}/{name}", f"{before:,.3f}", f"{now:,.3f}", _change(before, now) or "-")
        return table

    @property
    def _of(self) -> list[str | int]:
        return [self.accelerator.name, self.batch_size]

    def _traces(self, trainer: Trainer) -> bool:
        """Whether the first batch of the loop that runs is the traced one."""
        if trainer.sanity_checking:
            return False
        loop = _loop(trainer)
        if trainer.state.fn != "fit":
            return bool(trainer.state.fn == loop)
        if self.stage == "auto":
            return loop == ("validate" if trainer.enable_validation else "train")
        return loop == self.stage

    def _open(self, trainer: Trainer, pl_module: LightningModule, batch: object, index: int) -> None:
        if index == 0 and self._traces(trainer):
            self._traced.open(pl_module, batch, loader_of(trainer, _loop(trainer)))

    def _close(self) -> None:
        report = self._traced.close()
        if report is None:
            return
        self.report, self._new = report, True
        if report.notes:
            self._warn_once("notes", "; ".join(report.notes))
        if report.coverage < _ENOUGH:
            known = f"{report.coverage:.1%} of the work is known"
            self._warn_once("coverage", f"{known}; {unknown_remark(report.unknown)}" if report.unknown else known)

    def _log_report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._traces(trainer) or (self.report is None and trainer.world_size == 1):
            return
        # Other processes may have a report, and wait for this one's figures.
        totals = self.report.totals() if self.report else dict.fromkeys(self._names(), math.nan)
        if self.report and not self.first and trainer.state.fn == "fit":
            self.first = totals
        self._log(pl_module, totals)

    def _names(self) -> Iterable[str]:
        """The keys that are logged on this chip."""
        return estimate(Trace(operations=()), self.accelerator).totals()

    def _line(self) -> str:
        """The epoch's energy and latency, and how they changed since the first."""
        totals = self.report.totals() if self.report else {}
        figures = []
        for name, unit in (("energy_uJ", "uJ"), ("latency_us", "us")):
            if name in totals:
                change = _change(self.first.get(name, totals[name]), totals[name])
                figures.append(f"{totals[name]:,.2f} {unit}" + (f" ({change})" if change else ""))
        if totals["coverage"] < _ENOUGH:
            figures.append(f"coverage {totals['coverage']:.1%}")
        what = "an inference" if self.batch_size == 1 else f"{self.batch_size} inferences"
        return f"{what} on {self.accelerator.name} ({self.prefix}): {', '.join(figures)}"

    def _end(self, trainer: Trainer) -> None:
        if self.report is None:
            return
        self._write(trainer)
        if not self.verbose:
            return
        say(trainer, str(self.report.table(self.depth)))
        if trainer.state.fn == "fit":
            say(trainer, str(self.summary()))
        folder = report_folder(trainer, self.folder)
        if folder is not None:
            say(trainer, f"table of all layers and figure: {folder}")

    def _write(self, trainer: Trainer) -> None:
        report = self.report
        if report is not None:
            log_table(trainer, f"{self.prefix}/layers", report.rows(), report_folder(trainer, self.folder))
            self._log_figure(trainer, "energy", lambda: cost_figure(report, self.depth), self.folder)


def _loop(trainer: Trainer) -> str:
    """What runs: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``."""
    return trainer.state.stage.value if trainer.state.stage else ""


def _check_integer(name: str, value: object, least: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r}: an integer is needed")
    if least is not None and value < least:
        raise ValueError(f"{name}={value!r}: an integer of {least} or more is needed")


def _change(before: float, now: float) -> str:
    """How a figure changed, or nothing where that has no meaning."""
    return f"{now / before - 1:+.1%}" if before else ""
