"""Attack a network while it trains, and log what the worst inputs cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from lightning_effnn._random import random_state_kept
from lightning_effnn.callbacks._base import EffnnCallback
from lightning_effnn.callbacks._batches import loader_of
from lightning_effnn.callbacks._reporting import log_table, report_folder
from lightning_effnn.formats.tagging import aside
from lightning_effnn.hardware import Accelerator
from lightning_effnn.robustness.evaluation import ATTACKS, SpongeReport, evaluate, named_attacks
from lightning_effnn.robustness.plots import sponge_figure


class SpongeEvaluation(EffnnCallback):
    """Every few epochs, after validation: energy of natural inputs and of the worst attack on the first of them.

    Logged: ``sponge/natural_uJ``, ``sponge/worst_uJ``, ``sponge/gain``, always together; a table of all attacks and a
    figure of the layers that spend more go to the logger or the folder at the end.

    Args:
        every_n_epochs: between two evaluations; the last epoch is always evaluated.
        accelerator: a preset's name or a YAML file.
        attacks: out of :data:`~lightning_effnn.robustness.ATTACKS`.
        eps: largest change of a number; None lets attacks go anywhere in the range.
        limit: validation inputs to attack.
        steps: of each attack.
        low, high: range of valid inputs.
        prefix: first part of the logged keys.

    Raises:
        ValueError: an argument out of range, an unknown attack or accelerator.
        MisconfigurationException: a fit without validation data, or one whose strategy shards weights.

    Example:
        >>> SpongeEvaluation(every_n_epochs=5, attacks=("pgd", "genetic")).attacks
        ('pgd', 'genetic')

    Source: Shumailov et al. (2021), "Sponge Examples", arXiv 2006.03463.
    """

    def __init__(
        self,
        every_n_epochs: int = 5,
        accelerator: str | Path = "eyeriss_like",
        attacks: Sequence[str] = ATTACKS,
        eps: float | None = 8 / 255,
        limit: int = 16,
        steps: int = 20,
        low: float = 0.0,
        high: float = 1.0,
        *,
        prefix: str = "sponge",
    ) -> None:
        for name, value in (("every_n_epochs", every_n_epochs), ("limit", limit), ("steps", steps)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: a whole number of at least 1 is needed")
        if eps is not None and not eps > 0:
            raise ValueError(f"eps={eps!r}: a number above 0, or None, is needed")
        named_attacks(attacks, Accelerator.load(accelerator), eps, steps, low, high, 0)  # refuses unknown ones
        super().__init__(prefix)
        self.every_n_epochs, self.accelerator, self.attacks = every_n_epochs, accelerator, tuple(attacks)
        self.eps, self.limit, self.steps, self.low, self.high = eps, limit, steps, low, high
        self.report: SpongeReport | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a fit that never validates."""
        self._needs_validation(trainer, "natural inputs to attack")
        super().on_fit_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack, and log natural, worst and gain."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if trainer.sanity_checking or trainer.state.fn != "fit" or (epoch % self.every_n_epochs and not last):
            return
        # a loader's iterator and attacks draw random numbers; attacks need gradients, also in a validation
        with random_state_kept([pl_module.device]), torch.inference_mode(False), torch.enable_grad(), aside():
            self.report = evaluate(
                pl_module, _batches(trainer), self.accelerator, self.attacks, self.eps, self.limit, self.steps,
                self.low, self.high,
            )  # fmt: skip
        natural, worst = self.report.natural.mean_uJ, self.report.worst.mean_uJ
        self._log(pl_module, {"natural_uJ": natural, "worst_uJ": worst, "gain": self.report.gain})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write table and figure of the last evaluation."""
        report = self.report
        if report is None:
            return
        log_table(trainer, f"{self.prefix}/attacks", report.rows(), report_folder(trainer, None))
        self._log_figure(trainer, "layers", lambda: sponge_figure(report))
        if trainer.is_global_zero:
            Console(width=100).print(report.table())


def _batches(trainer: Trainer) -> Iterator[object]:
    for batch in loader_of(trainer, "validate") or ():
        yield trainer.strategy.batch_to_device(batch)
