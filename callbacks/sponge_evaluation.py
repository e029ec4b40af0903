"""Attack a network while it trains, and log what the worst inputs cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn
from rich.console import Console

from lightning_effnn._random import random_state_kept
from lightning_effnn.callbacks._refusals import check_whole_weights
from lightning_effnn.callbacks._reporting import log_figure, log_parameters, log_table, report_folder
from lightning_effnn.formats.tagging import aside
from lightning_effnn.hardware import Accelerator
from lightning_effnn.robustness.evaluation import ATTACKS, SpongeReport, evaluate, named_attacks
from lightning_effnn.robustness.plots import sponge_figure


class SpongeEvaluation(Callback):
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
        ValueError: an argument out of range, an unknown attack or accelerator; in the fit, no validation data.

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
        self.every_n_epochs, self.accelerator, self.attacks = every_n_epochs, accelerator, tuple(attacks)
        self.eps, self.limit, self.steps, self.low, self.high = eps, limit, steps, low, high
        self.prefix = prefix
        self.report: SpongeReport | None = None

    @property
    def state_key(self) -> str:
        """Fixed by the prefix."""
        return f"{type(self).__name__}[{self.prefix}]"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse early what cannot work."""
        if stage == "fit":
            check_whole_weights(trainer, self)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a fit that never validates; log the parameters.

        Raises:
            ValueError: there are no validation batches to attack.
        """
        if not trainer.enable_validation:
            raise ValueError("SpongeEvaluation attacks validation batches: give the fit a validation loader")
        log_parameters(trainer, self)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Attack, and log natural, worst and gain."""
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if trainer.sanity_checking or trainer.state.fn != "fit" or (epoch % self.every_n_epochs and not last):
            return
        # a loader's iterator and attacks draw random numbers; attacks need gradients, also in a validation
        with random_state_kept([pl_module.device]), torch.inference_mode(False), torch.enable_grad(), aside():
            self.report = evaluate(
                pl_module, self._batches(trainer), self.accelerator, self.attacks, self.eps, self.limit, self.steps,
                self.low, self.high,
            )  # fmt: skip
        figures = {
            "natural_uJ": self.report.natural.mean_uJ,
            "worst_uJ": self.report.worst.mean_uJ,
            "gain": self.report.gain,
        }
        for name, value in figures.items():
            pl_module.log(f"{self.prefix}/{name}", value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write table and figure of the last evaluation."""
        if self.report is None:
            return
        folder = report_folder(trainer, None)
        log_table(trainer, f"{self.prefix}/attacks", self.report.rows(), folder)
        if trainer.is_global_zero:
            try:
                log_figure(trainer, f"{self.prefix}/layers", sponge_figure(self.report), folder)
            except ImportError as error:
                rank_zero_warn(f"SpongeEvaluation: {error}")
            Console(width=100).print(self.report.table())

    def _batches(self, trainer: Any) -> Any:
        loaders = trainer.val_dataloaders
        loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
        for batch in loader:
            yield trainer.strategy.batch_to_device(batch)
